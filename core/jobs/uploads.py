"""Delete uploaded data: check whether it is in use, and remove everything derived from it.

Owns the refusal while a job needs the data, and the removal of the thumbnails and file names that
audits, evaluations and comparisons saved from it.
"""

import re
from pathlib import Path

from core.assessment.model_comparison import delete_comparisons
from core.assessment.store import delete_evaluations
from core.data.uploads import find_upload
from core.errors import DataError, JobError
from core.files import abandoned
from core.files.names import read_path
from core.jobs import state
from core.jobs.queue import delete, settle
from core.jobs.state import Job
from core.models.bundle_files import read_bundle_config
from core.models.ensemble import is_ensemble
from core.models.registry import list_models

_UPLOAD = re.compile(r".+-[0-9a-f]{10}")  # as core.data.uploads names what it unpacks


def list_users(checkpoints_dir: Path, name: str) -> list[Job]:
    """List every job that uses an uploaded data set, newest first.

    Args:
        checkpoints_dir: contains the uploads.
        name: as listed by ``core.data.uploads.find_data``.

    Raises:
        DataError: there is no such upload.
    """
    folder = find_upload(checkpoints_dir, name).resolve()
    found = [state.read_job(f) for f in state.list_folders(state.jobs_dir(checkpoints_dir))]
    return [
        job
        for job in reversed(found)
        if Path(str(job.params.get("data", "/"))).is_relative_to(folder)
    ]


def list_models_of(checkpoints_dir: Path, name: str) -> list[str]:
    """List the models that were trained on an uploaded data set.

    Raises:
        DataError: there is no such upload.
    """
    folder = find_upload(checkpoints_dir, name).resolve()
    return [
        model.model_id
        for model in list_models(checkpoints_dir)
        if model.problem is None
        and not is_ensemble(place := checkpoints_dir / model.model_id)
        and read_path(read_bundle_config(place).data_root).is_relative_to(folder)
    ]


def delete_upload(checkpoints_dir: Path, name: str) -> None:
    """Delete an uploaded data set with the audits, evaluations and comparisons made from it.

    Models trained on it are kept, including their own thumbnails.

    Raises:
        DataError: there is no such upload, or the folder was put there by hand.
        JobError: an unfinished job needs it.
    """
    folder = find_upload(checkpoints_dir, name)
    if folder.is_symlink() or not _UPLOAD.fullmatch(name):
        raise DataError(
            f"{folder} was not unpacked from an uploaded zip, so it is left alone. Remove it "
            "yourself if you no longer need it.",
            code="data.not_upload",
            params={"name": name},
        )
    settle(checkpoints_dir)
    directory = state.jobs_dir(checkpoints_dir)
    with state.hold_queue(directory):  # so that no job starts on it meanwhile
        users = list_users(checkpoints_dir, name)
        busy = next((job for job in users if job.is_open), None)
        if busy is not None:
            raise JobError(
                f"job {busy.job_id} ({busy.title}) needs the data {name!r} and is {busy.status}; "
                "wait for it or cancel it first.",
                code="job.data_in_use",
                params={"name": name, "title": busy.title},
            )
        compared = [job.params for job in users if job.kind == "compare"]
        pairs = [(str(p.get("first")), str(p.get("second"))) for p in compared]
        delete_evaluations(checkpoints_dir, folder.resolve())
        delete_comparisons(checkpoints_dir, folder.resolve(), pairs=pairs)
        doomed = folder.with_name(f".deleted-{folder.name}")
        abandoned.mark(folder)
        folder.rename(doomed)
    for job in users:
        if job.kind in ("audit", "trial", "compare"):
            delete(checkpoints_dir, job.job_id)
    abandoned.remove(doomed)  # leftovers are removed at the next start
