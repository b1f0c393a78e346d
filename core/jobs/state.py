"""The state of a job on disk: its files, its transitions, whether its processes are alive.

Owns the files of ``checkpoints/.jobs/<job_id>/``. Every file is written whole and renamed; the
supervisor (or whoever finds it dead) writes ``state.json``, the worker alone ``progress.json``.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from core.errors import JobError
from core.files.whole import write_text

OPEN = ("queued", "running")
ENDED = ("done", "failed", "cancelled")
_ALLOWED = {
    ("queued", "queued"),  # another supervisor waits for it
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "running"),  # its worker is known
    ("running", "done"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}
JOB_ID = re.compile(r"\d{8}-\d{6}-\d{6}")
_RESERVE_BYTES = 64 * 1024  # given up when the disk is full, so that the end can be written
_CLOCK_SLACK_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: float  # seconds since the epoch


@dataclass(frozen=True)
class Job:
    """One job as it stands. Times are ISO 8601, UTC."""

    job_id: str
    kind: str
    title: str
    params: Mapping[str, Any]
    created: str
    status: str = "queued"
    queued: str = ""
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
        """Whether it waits or runs."""
        return self.status in OPEN

    @property
    def can_resume(self) -> bool:
        """Whether it may be queued again; training goes on where it was."""
        return self.status in ("failed", "cancelled")


def jobs_dir(checkpoints_dir: Path) -> Path:
    """Where the jobs of a checkpoints folder lie."""
    return checkpoints_dir.resolve() / ".jobs"


def now() -> str:
    """This moment, ISO 8601, UTC, to the microsecond: it orders the queue."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextmanager
def hold_queue(directory: Path) -> Iterator[None]:
    """Hold the lock under which states change; it dies with its process.

    Raises:
        JobError: another process holds it for half a minute.
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
    """Write a new job's folder; call it with the queue held."""
    temporary = directory / f".new-{job.job_id}"
    temporary.mkdir()
    spec = {name: getattr(job, name) for name in ("job_id", "kind", "title", "params", "created")}
    write_json(temporary / "spec.json", spec, durable=True)
    write_json(temporary / "state.json", {"status": "queued", "queued": now()}, durable=True)
    (temporary / "reserve").write_bytes(os.urandom(_RESERVE_BYTES))
    folder = directory / job.job_id
    temporary.rename(folder)
    return folder


def find_folder(directory: Path, job_id: str) -> Path:
    """Match an id against the listing.

    Raises:
        JobError: no such job.
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
    """Folders of the jobs, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and JOB_ID.fullmatch(p.name))


def read_job(folder: Path) -> Job:
    """Read a job; one whose files are damaged is failed and says so."""
    try:
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name in ("supervisor", "worker"):
            if state.get(name) is not None:
                state[name] = ProcessId(**state[name])
        job = Job(**spec, **state)
    except (OSError, ValueError, TypeError) as err:
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
        return {"progress": float(raw["progress"]), "message": str(raw["message"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def transition(folder: Path, status: str, **changes: Any) -> Job:
    """Move a job to another status: the only place where ``state.json`` is replaced.

    Call it with the queue held. Start and end times are set here.

    Raises:
        JobError: the step is not one a job can make.
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
        times = {"queued": now(), "started": "", "ended": "", "worker": None, "n_spawns": 0}
        times |= {"error": "", "error_code": "", "error_params": {}}
    elif status == "running" and not before.started:
        times = {"started": now()}
    elif status in ENDED:
        times = {"ended": now(), "worker": None, "supervisor": None}
        (folder / "reserve").unlink(missing_ok=True)
    job = dataclasses.replace(before, status=status, **(times | changes))
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


def identify(pid: int) -> ProcessId:
    """The identity of a process that is alive now."""
    try:
        return ProcessId(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:  # it ended at once
        return ProcessId(pid, 0.0)


def is_alive(process: ProcessId | None) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    if process is None:
        return False
    try:
        found = psutil.Process(process.pid)
        same: bool = abs(found.create_time() - process.started) < _CLOCK_SLACK_S
        return same and bool(found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # somebody else's process has the number now
        return False


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Write a JSON file whole; ``durable``: it must survive a power cut."""
    write_text(path, json.dumps(value, ensure_ascii=False), durable=durable)
