"""The lock on an unfinished run's folder: one process trains in it or deletes it.

The kernel releases it when the process dies, so it needs no clock. Beside it lies who holds it.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import JobError
from core.files.processes import ProcessId, identify, is_alive
from core.files.whole import write_text

_HOLDER = "holder.json"


@contextmanager
def hold_run(folder: Path, *, called: str) -> Iterator[None]:
    """Lock the folder for this process; the lock is released when the process dies.

    Args:
        folder: an existing folder, named after the model.
        called: the model's name in the error.

    Raises:
        JobError: another process holds it; the message says which, and since when.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise JobError(
            f"{called} is being trained by {_describe_holder(folder)}. Wait for it or stop it.",
            code="job.busy",
            params={"name": folder.name},
        ) from err
    try:
        _write_holder(folder)
        yield
    finally:
        lock.release()


def _write_holder(folder: Path) -> None:
    told = dataclasses.asdict(identify(os.getpid()))
    since = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(folder / _HOLDER, json.dumps({"process": told, "since": since}), durable=False)


def _describe_holder(folder: Path) -> str:
    """Which process holds the lock, in words."""
    try:
        told = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        process, since = ProcessId(**told["process"]), datetime.fromisoformat(told["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if not is_alive(process):  # the holder has not said who it is yet, or is on another machine
        return "another process"
    return f"process {process.pid} since {since:%Y-%m-%d %H:%M} UTC"
