"""Detect orphaned temporary folders, whose writing process has died.

Owns only the check; each writer's module knows its temporary names and how to clean them up.
"""

from pathlib import Path

import psutil

_CLOCK_SLACK_S = 2.0


def is_left(path: Path, pid: int) -> bool:
    """Whether the process that wrote a folder has died.

    Process ids repeat after a container restart, so a process that started after the folder was
    last modified is not its writer.

    Args:
        path: the folder; one that no longer exists counts as abandoned.
        pid: process id of the writer.
    """
    try:
        began = float(psutil.Process(pid).create_time())
        return path.stat().st_ctime + _CLOCK_SLACK_S < began
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
