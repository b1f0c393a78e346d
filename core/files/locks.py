"""The lock on an unfinished run's folder: one process trains in it or deletes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import JobError


@contextmanager
def hold_run(folder: Path, *, called: str) -> Iterator[None]:
    """Hold the folder for this process alone; the lock dies with the process.

    Args:
        folder: it exists, and is named after the model.
        called: how the error names the model.

    Raises:
        JobError: another process holds it.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise JobError(
            f"another process is training {called} now (lock {folder / 'lock'}). Wait for it or "
            "stop it.",
            code="job.busy",
            params={"name": folder.name},
        ) from err
    try:
        yield
    finally:
        lock.release()
