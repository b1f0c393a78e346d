"""The lock on an unfinished run's folder: one process trains in it or deletes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import JobError


@contextmanager
def hold_run(folder: Path, *, called: str) -> Iterator[None]:
    """Lock the folder for this process; the lock is released when the process dies.

    Args:
        folder: an existing folder, named after the model.
        called: the model's name in the error.

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
