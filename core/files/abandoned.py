"""Temporary folders named after the process that writes them, and whether that one is gone.

Owns the judgement alone; what is temporary, and what becomes of it, each writer's module knows.
"""

from pathlib import Path

import psutil

_CLOCK_SLACK_S = 2.0


def is_left(path: Path, pid: int) -> bool:
    """Whether the process that made a folder is gone.

    Where containers start anew, every process gets the number of its forerunner, this one too: one
    that began after the folder was last touched did not make it.

    Args:
        path: of the folder; one that is gone by now is nobody's.
        pid: of its writer.
    """
    try:
        began = float(psutil.Process(pid).create_time())
        return path.stat().st_ctime + _CLOCK_SLACK_S < began
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
