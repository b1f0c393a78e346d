"""The state of a job on disk: its files, its transitions, whether its processes are alive.

Owns the files of ``checkpoints/.jobs/<job_id>/``. Every file is written atomically. The supervisor
(or whoever finds it dead) writes ``state.json``; only the worker writes ``progress.json``.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock, Timeout

from core.config import build_record
from core.errors import JobError
from core.files.processes import ProcessId, identify, is_alive
from core.files.whole import write_text

__all__ = [
    "ENDED", "JOB_ID", "OPEN", "Job", "ProcessId", "create", "find_folder", "hold_queue",
    "identify", "is_alive", "jobs_dir", "list_folders", "now", "read_job", "reserve_id",
    "transition", "write_json",
]  # fmt: skip
Status = Literal["queued", "running", "done", "failed", "cancelled"]

OPEN = ("queued", "running")
ENDED = ("done", "failed", "cancelled")
_ALLOWED = {
    ("queued", "queued"),  # another supervisor is waiting for its turn
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "running"),  # its worker has been recorded
    ("running", "done"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}
JOB_ID = re.compile(r"\d{8}-\d{6}-\d{6}")
_RESERVE_BYTES = 64 * 1024  # freed when the disk is full, so that the final state can be written
_ID_FORMAT = "%Y%m%d-%H%M%S-%f"


@dataclass(frozen=True)
class Job:
    """The current state of one job. Times are ISO 8601, UTC."""

    job_id: str
    kind: str
    title: str
    params: Mapping[str, Any]
    created: str
    status: Status = "queued"
    queued: str = ""
    turn: int = 0  # grows with every job that is queued; 0 in records of earlier versions
    started: str = ""
    ended: str = ""
    progress: float = 0.0
    message: str = ""
    error: str = ""
    error_code: str = ""
    error_params: Mapping[str, Any] = field(default_factory=dict)
    supervisor: ProcessId | None = None
    worker: ProcessId | None = None
    n_spawns: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it is waiting or running."""
        return self.status in OPEN

    @property
    def can_resume(self) -> bool:
        """Whether it can be queued again; training continues where it stopped."""
        return self.status in ("failed", "cancelled")


def jobs_dir(checkpoints_dir: Path) -> Path:
    """The folder of the jobs that belong to a checkpoints folder."""
    return checkpoints_dir.resolve() / ".jobs"


def now() -> str:
    """The current time, ISO 8601, UTC, in microseconds. For people only: nothing is ordered by it,
    because a clock can be set back."""
    return _read_clock().isoformat(timespec="microseconds")


def _read_clock() -> datetime:
    return datetime.now(UTC)


def reserve_id(directory: Path) -> str:
    """A new job's id: the time, but later than every id there is, so that ids grow whatever the
    clock does. The caller must hold the queue lock.
    """
    wanted = _read_clock()
    for folder in reversed(list_folders(directory)):
        try:
            newest = datetime.strptime(folder.name, _ID_FORMAT).replace(tzinfo=UTC)
        except ValueError:  # no job of ours
            continue
        wanted = max(wanted, newest + timedelta(microseconds=1))
        break
    return wanted.strftime(_ID_FORMAT)


def _next_turn(directory: Path) -> int:
    """The turn of a job queued now; the caller must hold the queue lock."""
    return 1 + max((read_job(folder).turn for folder in list_folders(directory)), default=0)


@contextmanager
def hold_queue(directory: Path) -> Iterator[None]:
    """Hold the lock for changing states; it is released if the process dies.

    Raises:
        JobError: another process held it for half a minute.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "lock")
    try:
        lock.acquire(timeout=30)
    except Timeout as err:
        raise JobError(
            f"the list of jobs is locked by another process ({directory / 'lock'}); try again.",
            code="job.locked",
        ) from err
    try:
        yield
    finally:
        lock.release()


def create(directory: Path, job: Job) -> Path:
    """Create a new job's folder; the caller must hold the queue lock."""
    temporary = directory / f".new-{job.job_id}"
    temporary.mkdir()
    spec = {name: getattr(job, name) for name in ("job_id", "kind", "title", "params", "created")}
    write_json(temporary / "spec.json", spec, durable=True)
    told = {"status": "queued", "queued": now(), "turn": _next_turn(directory)}
    write_json(temporary / "state.json", told, durable=True)
    (temporary / "reserve").write_bytes(os.urandom(_RESERVE_BYTES))
    folder = directory / job.job_id
    temporary.rename(folder)
    return folder


def find_folder(directory: Path, job_id: str) -> Path:
    """Match an id against the listing.

    Raises:
        JobError: there is no such job.
    """
    for folder in list_folders(directory):
        if folder.name == job_id:
            return folder
    raise JobError(
        f"there is no job {job_id!r}; `python -m core jobs list` shows those there are.",
        code="job.unknown",
        params={"job_id": job_id},
    )


def list_folders(directory: Path) -> list[Path]:
    """List the job folders, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and JOB_ID.fullmatch(p.name))


def read_job(folder: Path) -> Job:
    """Read a job; if its files are damaged, it is returned as failed with the reason."""
    try:
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        job = build_record(Job, {**spec, **state}, "job")
        if job.job_id != folder.name:
            raise ValueError(f"it says that it is job {job.job_id!r}")
    except (OSError, ValueError, TypeError, RecursionError) as err:
        return Job(
            folder.name,
            kind="",
            title=folder.name,
            params={},
            created="",
            status="failed",
            error=f"the files of this job cannot be read ({err}); delete it.",
            error_code="job.damaged",
        )
    return dataclasses.replace(job, **_read_progress(folder)) if job.started else job


def _read_progress(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        done = float(raw["progress"])
        if not 0.0 <= done <= 1.0:  # also if it is not a number
            return {}
        return {"progress": done, "message": str(raw["message"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def transition(folder: Path, status: str, **changes: Any) -> Job:
    """Move a job to another status: the only function that replaces ``state.json``.

    The caller must hold the queue lock. Sets the start and end times.

    Raises:
        JobError: the transition is not allowed.
    """
    before = read_job(folder)
    if (before.status, status) not in _ALLOWED:
        raise JobError(
            f"job {folder.name} is {before.status} and cannot become {status}.",
            code="job.transition",
            params={"job_id": folder.name, "status": before.status},
        )
    times: dict[str, Any] = {}
    if status == "queued" and before.status != "queued":
        times = {"queued": now(), "turn": _next_turn(folder.parent)}
        times |= {"started": "", "ended": "", "worker": None, "n_spawns": 0}
        times |= {"error": "", "error_code": "", "error_params": {}}
    elif status == "running" and not before.started:
        times = {"started": now()}
    elif status in ENDED:
        times = {"ended": now(), "worker": None, "supervisor": None}
        (folder / "reserve").unlink(missing_ok=True)
    job = dataclasses.replace(before, status=cast(Status, status), **(times | changes))
    state = dataclasses.asdict(job)
    for name in ("job_id", "kind", "title", "params", "created", "progress", "message"):
        state.pop(name)
    write_json(folder / "state.json", state, durable=True)
    if status == "queued":
        (folder / "cancel").unlink(missing_ok=True)
        for name in ("outcome.json", "progress.json", "result.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "reserve").write_bytes(os.urandom(_RESERVE_BYTES))
    return job


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Write a JSON file atomically; ``durable`` makes it survive a power cut."""
    write_text(path, json.dumps(value, ensure_ascii=False), durable=durable)
