"""How a job ended: what a failure means and what to do next, as a sentence and a code.

Owns the interpretation of exceptions and exit statuses; writes a job's final state.
"""

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import CoreError, JobError
from core.jobs import state
from core.jobs.state import Job

_FULL_BYTES = 1 << 20  # if less than this is free, any failure is blamed on the disk
_DISK = "the disk is full{free}. Free some space, then resume: training goes on where it was."
_MEMORY = (
    "memory ran out. Choose a smaller preset or fewer images per class and step "
    "(train.n_images_per_class), or close other programs, then resume."
)


def describe(err: BaseException, folder: Path) -> dict[str, Any]:
    """Return the error, error_code and error_params of a failure in the worker."""
    for one in _chain(err):
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return _disk(folder)
        if "No space left" in str(one) or "os error 28" in str(one):
            return _disk(folder)
        if isinstance(one, MemoryError) or _is_memory(one):
            return {"error": _MEMORY, "error_code": "job.memory"}
    if shutil.disk_usage(folder).free < _FULL_BYTES:  # e.g. torch's writer gives no reason
        return _disk(folder)
    if isinstance(err, CoreError):
        params = {key: _plain(value) for key, value in err.params.items()}
        return {"error": str(err), "error_code": err.code, "error_params": params}
    return {
        "error": f"unexpected {type(err).__name__}; the job's log has the details.",
        "error_code": "job.unexpected",
        "error_params": {"name": type(err).__name__},
    }


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__


def _is_memory(err: BaseException) -> bool:
    text = str(err).lower()
    wording = (
        "out of memory", "can't allocate memory", "cannot allocate memory",
        "can't start new thread",  # no memory for its stack
        "could not create a primitive",  # oneDNN's wording
    )  # fmt: skip
    return isinstance(err, RuntimeError | OSError) and any(words in text for words in wording)


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) else str(value)


def explain_os_error(err: OSError) -> str:
    """Explain a file-system error in a sentence, for a command that has to stop."""
    path = Path(os.fsdecode(err.filename)) if isinstance(err.filename, str | bytes) else None
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((p for p in path.absolute().parents if p.is_dir()), None) if path else None
        return _describe_full_disk(folder, place=str(folder))
    if err.strerror is None:  # not from the system but from a library
        return str(err) or type(err).__name__
    return f"{err.strerror}: {path}" if path else err.strerror


def _describe_full_disk(folder: Path | None, *, place: str) -> str:
    free = f": {shutil.disk_usage(folder).free / 1e6:.0f} MB are free in {place}" if folder else ""
    return _DISK.format(free=free)


def _disk(folder: Path) -> dict[str, Any]:
    return {
        "error": _describe_full_disk(folder, place="the folder of models"),
        "error_code": "job.disk",
        "error_params": {"free_mb": round(shutil.disk_usage(folder).free / 1e6)},
    }


def to_job_error(err: OSError, folder: Path) -> JobError:
    """Convert a file-system error while queueing a job into one that a page can show."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        told = _disk(folder)
        return JobError(told["error"], code=told["error_code"], params=told["error_params"])
    return JobError(
        f"the job could not be written ({err.strerror or err}); check the folder of models.",
        code="job.write",
    )


def finish(folder: Path, *, returncode: int | None) -> Job:
    """Write a running job's final state from its outcome, or from how its process ended.

    The caller must hold the queue lock.

    Args:
        folder: of the job.
        returncode: of the worker, negative for a signal; None if its end was not observed.
    """
    (folder / "reserve").unlink(missing_ok=True)
    try:
        outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        if outcome["status"] == "done":
            return state.transition(folder, "done")
        return state.transition(folder, "failed", **outcome["failure"])
    except (OSError, ValueError, KeyError):
        return state.transition(folder, "failed", **_explain(folder, returncode))


def _explain(folder: Path, returncode: int | None) -> dict[str, Any]:
    """Describe a worker that left no outcome: killed, or unable to write one."""
    is_full = shutil.disk_usage(folder).free < _FULL_BYTES
    if returncode == -signal.SIGBUS or is_full:  # no disk space for a page of a mapped file
        return _disk(folder)
    if returncode is None:
        return {
            "error": "the job was cut off (crash, power cut or kill). Resume it: training goes on "
            "from its last checkpoint.",
            "error_code": "job.interrupted",
        }
    if returncode == -signal.SIGKILL:
        return {
            "error": "the system ended the process, most likely because memory ran out. Choose a "
            "smaller preset or close other programs, then resume.",
            "error_code": "job.killed",
        }
    return {
        "error": f"the process ended with status {returncode}; the job's log has the details.",
        "error_code": "job.unexpected",
        "error_params": {"name": f"status {returncode}"},
    }
