"""Detect temporary folders whose writing process has died.

Only the check is here; each writer's module knows its temporary names and what to do with them.
"""

from pathlib import Path

import psutil

_CLOCK_SLACK_S = 2.0


def is_left(path: Path, pid: int) -> bool:
    """Whether the process that wrote a folder has died.

    In a restarted container, process ids repeat: a process that started after the folder was last
    touched did not write it.

    Args:
        path: the folder; one that no longer exists counts as abandoned.
        pid: of its writer.
    """
    try:
        began = float(psutil.Process(pid).create_time())
        return path.stat().st_ctime + _CLOCK_SLACK_S < began
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
