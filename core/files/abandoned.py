"""Temporary folders that say who writes them, and what is left when that process has died.

Owns the writer's mark and the check. Each writer's module knows its temporary names; only a folder
that bears the mark, or is empty, is ever removed, so a user's own folder of such a name is safe.
"""

import dataclasses
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from core.files.processes import ProcessId, identify, is_alive

MARK = ".written-by.json"
_CLOCK_SLACK_S = 2.0


def mark(folder: Path) -> Path:
    """Mark an existing folder as a temporary one of this process, and return it."""
    told = dataclasses.asdict(identify(os.getpid()))
    (folder / MARK).write_text(json.dumps(told), encoding="utf-8")
    return folder


def unmark(folder: Path) -> None:
    """Remove the mark: the folder is finished and takes its final name next."""
    (folder / MARK).unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether a folder is marked as temporary, or empty; never true for a link."""
    if path.is_symlink() or not path.is_dir():
        return False
    return _read_writer(path) is not None or not any(path.iterdir())


def is_left(path: Path, pid: int) -> bool:
    """Whether the process that wrote a folder has died.

    A marked folder names its process exactly. For another one, process ids repeat after a container
    restart, so a process that started after the folder was last modified is not its writer.

    Args:
        path: the folder; one that no longer exists counts as abandoned.
        pid: process id of the writer, for a folder without the mark.
    """
    writer = _read_writer(path)
    if writer is not None:
        return not is_alive(writer)
    try:
        began = float(psutil.Process(pid).create_time())
        return path.stat().st_ctime + _CLOCK_SLACK_S < began
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def remove(folder: Path) -> None:
    """Remove a temporary folder, its mark last, so that a cut-off removal can be repeated."""
    try:
        inside = list(folder.iterdir())
    except OSError:
        return
    for path in inside:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARK:
            with suppress(OSError):  # read-only: it stays
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _read_writer(folder: Path) -> ProcessId | None:
    try:
        return ProcessId(**json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
