"""The queue of background jobs: start, cancel, resume, find, delete.

The jobs of a lane run one at a time, in order of arrival. The lanes and kinds of job are in
``core.jobs.kinds``, the files of a job in ``core.jobs.state``.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core.config import MEMBERS, Settings
from core.config.settings import find_cache_dir
from core.errors import CheckpointError, JobError
from core.files import abandoned
from core.files.locks import hold_run
from core.files.read_only import is_read_only
from core.jobs import ending, state
from core.jobs.kinds import KINDS, makes_model
from core.jobs.state import Job
from core.models.marks import check_free

logger = logging.getLogger(__name__)

__all__ = [
    "Job", "cancel", "delete", "find", "find_latest", "folder_of", "list_jobs", "read_result",
    "resume", "settle", "start",
]  # fmt: skip
_ROOT = Path(__file__).parents[2]
_MAX_SPAWNS = 3  # per waiting job, so that a failing supervisor is not restarted for ever
_CANCEL_FLAG = "cancel"
# Read by OpenMP (torch, faiss, scikit-learn), Numba (the map) and OpenBLAS (NumPy) at their start.
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def start(kind: str, params: Mapping[str, Any], *, title: str, settings: Settings) -> Job:
    """Queue a job and launch the process that waits for its turn and runs it.

    Args:
        kind: one of ``kinds.KINDS``.
        params: plain JSON values, see ``core.jobs.kinds``; absolute paths. ``name`` is the model to
            be trained: no other open job may train a model of the same name.
        title: shown to users.
        settings: the worker gets the same device, threads and checkpoints folder.

    Raises:
        JobError: the kind is unknown, the name is taken, or the disk is full.
    """
    if kind not in KINDS:
        raise JobError(f"unknown kind of job {kind!r}; choose one of {', '.join(KINDS)}.")
    directory = state.jobs_dir(settings.checkpoints_dir)
    try:
        with state.hold_queue(directory):
            _settle_all(directory)
            job_id = state.reserve_id(directory)
            job = Job(job_id, kind, title, dict(params), created=state.now())
            _check_name(settings.checkpoints_dir, directory, job)
            folder = state.create(directory, job)
            return _spawn(folder, settings)
    except OSError as err:
        raise ending.to_job_error(err, settings.checkpoints_dir) from err


def list_jobs(checkpoints_dir: Path) -> list[Job]:
    """List every job, newest first, after settling orphaned ones."""
    directory = state.jobs_dir(checkpoints_dir)
    settle(checkpoints_dir)
    return [state.read_job(folder) for folder in reversed(state.list_folders(directory))]


def find_latest(checkpoints_dir: Path, kind: str, params: Mapping[str, Any]) -> Job | None:
    """Find the newest job of a kind with exactly these parameters."""
    wanted = json.loads(json.dumps(dict(params)))
    for job in list_jobs(checkpoints_dir):
        if job.kind == kind and job.params == wanted:
            return job
    return None


def find(checkpoints_dir: Path, job_id: str) -> Job:
    """Find a job by its id.

    Raises:
        JobError: there is no such job.
    """
    settle(checkpoints_dir)
    return state.read_job(state.find_folder(state.jobs_dir(checkpoints_dir), job_id))


def folder_of(checkpoints_dir: Path, job_id: str) -> Path:
    """The folder of a job's log, metrics and result.

    Raises:
        JobError: there is no such job.
    """
    return state.find_folder(state.jobs_dir(checkpoints_dir), job_id)


def read_result(checkpoints_dir: Path, job_id: str) -> dict[str, Any]:
    """Read a finished job's result; its content depends on the kind.

    Raises:
        JobError: there is no such job, or it has no result (yet).
    """
    path = folder_of(checkpoints_dir, job_id) / "result.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise JobError(
            f"job {job_id} has no result; wait until it is done.",
            code="job.no_result",
            params={"job_id": job_id},
        ) from err
    return found


def settle(checkpoints_dir: Path) -> None:
    """Settle orphaned jobs: one that was running becomes failed, a waiting one is queued again.

    Called when the app starts and before every listing; cheap if there are none. In a folder that
    cannot be written nothing is settled: no job can be running from here.
    """
    directory = state.jobs_dir(checkpoints_dir)
    if not directory.is_dir() or is_read_only(directory):
        return
    with state.hold_queue(directory):
        _settle_all(directory)


def cancel(checkpoints_dir: Path, job_id: str) -> Job:
    """Ask a job to stop: a waiting one is cancelled at once, a running one within 5 seconds.

    Raises:
        JobError: there is no such job.
    """
    directory = state.jobs_dir(checkpoints_dir)
    folder = state.find_folder(directory, job_id)
    with state.hold_queue(directory):
        if state.read_job(folder).is_open:
            (folder / _CANCEL_FLAG).touch()
        if state.read_job(folder).status == "queued":
            return state.transition(folder, "cancelled")
    return state.read_job(folder)


def resume(checkpoints_dir: Path, job_id: str, *, settings: Settings) -> Job:
    """Queue a failed or cancelled job again; training continues from its last checkpoint.

    Raises:
        JobError: there is no such job, it has not failed, or its model's name is taken by now.
    """
    directory = state.jobs_dir(checkpoints_dir)
    folder = state.find_folder(directory, job_id)
    try:
        with state.hold_queue(directory):
            _settle_all(directory)
            _check_name(checkpoints_dir, directory, state.read_job(folder))
            state.transition(folder, "queued")
            return _spawn(folder, settings)
    except OSError as err:
        raise ending.to_job_error(err, checkpoints_dir) from err


def delete(checkpoints_dir: Path, job_id: str) -> None:
    """Delete an ended job, with its unfinished run unless another job may resume that run.

    Raises:
        JobError: there is no such job, it has not ended, or another process is training in its
            run's folder.
    """
    directory = state.jobs_dir(checkpoints_dir)
    folder = state.find_folder(directory, job_id)
    with state.hold_queue(directory):
        _settle_all(directory)
        job = state.read_job(folder)
        if job.is_open:
            raise JobError(
                f"job {job_id} is {job.status}; cancel it first.",
                code="job.open",
                params={"job_id": job_id, "status": job.status},
            )
        doomed = directory / f".deleted-{job_id}"
        others = [state.read_job(f) for f in state.list_folders(directory) if f.name != job_id]
        needed = {run for other in others for run in _list_runs(other)}
        _delete_runs(checkpoints_dir, sorted(set(_list_runs(job)) - needed))
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _delete_runs(checkpoints_dir: Path, names: Sequence[str]) -> None:
    """Delete unfinished runs: all of them, or none if another process is using one."""
    with ExitStack() as held:
        folders = [checkpoints_dir / ".runs" / name for name in names]
        folders = [f for f in folders if f.is_dir() and not f.is_symlink()]
        for folder in folders:
            held.enter_context(hold_run(folder, called=f"model {folder.name!r}"))
        for folder in folders:  # rename first, so that a new run starts in a new folder
            doomed = checkpoints_dir / f".deleted-{folder.name}-{os.getpid()}"
            abandoned.mark(folder).rename(doomed)
            abandoned.remove(doomed)


def _list_runs(job: Job) -> list[str]:
    """List the folders in ``.runs`` that a training job uses or left unfinished."""
    if not makes_model(job.kind) or job.status == "done":
        return []
    models = _list_models(job)
    return [*models, f"{models[0]}-cache"] if len(models) > 1 else models


def _list_models(job: Job) -> list[str]:
    """List the models that a training job creates, including members."""
    name = job.params.get("name")
    if name is None:
        return []
    return [str(name), *(f"{name}-{m}" for m in MEMBERS if job.params.get("is_ensemble"))]


def _check_name(checkpoints_dir: Path, directory: Path, job: Job) -> None:
    if not makes_model(job.kind) or job.params.get("name") is None:
        return
    mine = _list_models(job)
    others = [state.read_job(f) for f in state.list_folders(directory) if f.name != job.job_id]
    for rival in others:
        if not makes_model(rival.kind) or not rival.is_open:
            continue
        for name in set(mine) & set(_list_models(rival)):
            raise JobError(
                f"job {rival.job_id} is already making a model called {name!r}; choose another "
                "name.",
                code="job.name_taken",
                params={"name": name},
            )
    for name in mine:  # not for a resumed job, which may have made the model itself
        if job.n_spawns:
            continue
        try:
            check_free(checkpoints_dir, name)
        except CheckpointError as err:
            raise JobError(str(err), code="job.name_taken", params={"name": name}) from err


def _settle_all(directory: Path) -> None:
    for folder in state.list_folders(directory):
        job = state.read_job(folder)
        if not job.is_open or state.is_alive(job.supervisor) or state.is_alive(job.worker):
            continue
        if (folder / _CANCEL_FLAG).exists():
            state.transition(folder, "cancelled")
        elif job.status == "running":
            ending.finish(folder, returncode=None)
        elif job.n_spawns >= _MAX_SPAWNS:
            state.transition(
                folder,
                "failed",
                error="the process that waits for this job's turn ended three times; see its log.",
                error_code="job.no_process",
            )
        else:
            logger.info("a waiting job had lost its process and gets another one")
            _spawn(folder, Settings.from_env())


def _spawn(folder: Path, settings: Settings) -> Job:
    """Launch the supervisor in its own session; the caller must hold the queue lock."""
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.jobs", str(folder)],
            cwd=_ROOT,
            env=_environment(settings, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C on the server does not stop it
        )
    # Reap it when it ends, so that it does not become a zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    job = state.read_job(folder)
    return state.transition(
        folder, "queued", supervisor=state.identify(process.pid), n_spawns=job.n_spawns + 1
    )


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    chosen = {
        "NEIGHBORDX_CHECKPOINTS": str(folder.parents[1]),
        "NEIGHBORDX_DEVICE": settings.device,
        "NEIGHBORDX_THREADS": str(settings.n_threads),
    }
    if settings.weights_dir:
        chosen["NEIGHBORDX_WEIGHTS_DIR"] = str(settings.weights_dir.resolve())
    if settings.database_url:
        chosen["NEIGHBORDX_DATABASE"] = settings.database_url
    if settings.n_threads:  # else a library's own pool takes every core, whatever torch was told
        chosen |= dict.fromkeys(_THREADS, str(settings.n_threads))
    return {**os.environ, "NEIGHBORDX_CACHE": str(find_cache_dir()), **chosen}
