"""Deleting uploaded data: refused while a job needs it; derived data is deleted too."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from core.config import Settings
from core.data.uploads import clean_uploads, find_data, uploads_dir
from core.errors import DataError, JobError
from core.files import abandoned
from core.jobs import queue, state
from core.jobs.state import Job
from core.jobs.uploads import delete_upload, list_models_of, list_users

NAME = "eyes-0123456789"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoints folder with two uploads."""
    for name in (NAME, "other"):
        (uploads_dir(tmp_path / "ck") / name / "normal").mkdir(parents=True)
    return tmp_path / "ck"


def put(directory: Path, kind: str, status: str, *, place: str = NAME, **more: str) -> Job:
    """Create a job on an upload in the given state; this process stands in for the worker."""
    folder = state.jobs_dir(directory)
    number = len(state.list_folders(folder))
    data = uploads_dir(directory).resolve() / place / "normal"  # inside a wrapping folder
    params = {"data": str(data), "name": f"m{number}", **more}
    job = Job(f"20260101-000000-{number:06d}", kind, f"job {number}", params, "now")
    with state.hold_queue(folder):
        made = state.create(folder, job)
        me = state.identify(os.getpid())
        state.transition(made, "queued", supervisor=me)
        for step in () if status == "queued" else ("running", status):
            state.transition(made, step, supervisor=me)
    return job


@pytest.mark.parametrize("status", ["queued", "running"])
def test_it_is_refused_while_a_job_needs_it(directory: Path, status: str) -> None:
    put(directory, "evaluate", "done")
    busy = put(directory, "train", status)
    with pytest.raises(JobError, match=f"needs the data '{NAME}' and is {status}") as caught:
        delete_upload(directory, NAME)
    assert caught.value.code == "job.data_in_use"
    assert (uploads_dir(directory) / NAME / "normal").is_dir()
    assert len(queue.list_jobs(directory)) == 2
    queue.cancel(directory, busy.job_id)
    if status == "running":
        with state.hold_queue(state.jobs_dir(directory)):
            state.transition(queue.folder_of(directory, busy.job_id), "cancelled")
    delete_upload(directory, NAME)
    assert not (uploads_dir(directory) / NAME).exists()


def test_checks_and_comparisons_go_with_it_and_other_data_stay(directory: Path) -> None:
    gone = [put(directory, kind, "done") for kind in ("audit", "trial", "compare")]
    kept = [put(directory, "train", "done"), put(directory, "audit", "done", place="other")]
    waiting = put(directory, "train", "queued", place="other")
    assert {job.job_id for job in list_users(directory, NAME)} == {
        job.job_id for job in (*gone, kept[0])
    }
    delete_upload(directory, NAME)
    left = {job.job_id for job in queue.list_jobs(directory)}
    assert left == {job.job_id for job in (*kept, waiting)}
    assert list(uploads_dir(directory).iterdir()) == [uploads_dir(directory) / "other"]


def test_evaluations_and_kept_comparisons_go_with_it_too(directory: Path) -> None:
    uploads = uploads_dir(directory).resolve()
    kept = directory / ".comparisons"
    kept.mkdir()
    for place in (NAME, "other"):
        root = str(uploads / place / "normal")
        folder = directory / "m" / "evaluations" / f"{place}-test"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"data_root": root}), encoding="utf-8")
        (folder / "arrays.npz").write_bytes(b"pictures")
        told = {"first": "a", "second": "b", "data_root": root}
        (kept / f"{place}.json").write_text(json.dumps(told), encoding="utf-8")
        told = {"first": "old", "second": place}  # does not record its data folder
        (kept / f"old-{place}.json").write_text(json.dumps(told), encoding="utf-8")
    (kept / "damaged.json").write_text("{", encoding="utf-8")
    put(directory, "compare", "done", first="old", second=NAME)
    put(directory, "compare", "done", place="other", first="old", second="other")
    delete_upload(directory, NAME)
    assert [p.name for p in (directory / "m" / "evaluations").iterdir()] == ["other-test"]
    left = {p.name for p in kept.iterdir()}
    assert left == {"other.json", "old-other.json", "damaged.json"}


@pytest.mark.parametrize("name", ["", ".", "..", "../ck", ".hidden", "none"])
def test_a_name_is_matched_never_joined(directory: Path, name: str) -> None:
    (uploads_dir(directory) / ".hidden").mkdir()
    with pytest.raises(DataError, match="there is no uploaded data"):
        delete_upload(directory, name)


def begin_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted container: this process has the id of an earlier one."""
    monkeypatch.setattr(psutil.Process, "create_time", lambda _process: time.time() + 60.0)


def test_what_a_cut_off_unpacking_or_deletion_left_goes_at_the_next_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = uploads_dir(directory)
    for name in (".deleted-x", f".unpacking-x-{2**22 - 3}", f".unpacking-y-{os.getpid()}"):
        (uploads / name).mkdir()
    mine = uploads / ".deleted-scans"  # somebody's own folder of such a name
    mine.mkdir()
    (mine / "x.png").touch()
    half = uploads / ".deleted-half"
    half.mkdir()
    (half / "x.png").touch()
    abandoned.mark(half)
    clean_uploads(directory)
    assert (mine / "x.png").exists()
    shutil.rmtree(mine)
    assert {p.name for p in uploads.iterdir()} == {NAME, "other", f".unpacking-y-{os.getpid()}"}
    assert set(find_data(Settings(directory, data_dir=directory / "none"))) == {NAME, "other"}
    begin_later(monkeypatch)
    clean_uploads(directory)
    assert {p.name for p in uploads.iterdir()} == {NAME, "other"}


def test_models_trained_on_it_are_told(tiny_checkpoints: Path, tmp_path: Path) -> None:
    directory = tmp_path / "ck"
    shutil.copytree(tiny_checkpoints, directory)
    (uploads_dir(directory) / NAME).mkdir(parents=True)
    assert list_models_of(directory, NAME) == []
    for name in ("demo-triplet", "demo-metric"):
        path = directory / name / "config.json"
        root = str(uploads_dir(directory).resolve() / NAME / "eyes")
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(str(tiny_checkpoints / ".demo-data"), root), encoding="utf-8")
    assert list_models_of(directory, NAME) == ["demo-metric", "demo-triplet"]


def test_the_command_asks_first(
    run: Callable[..., int],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(directory))
    monkeypatch.setattr("typer.confirm", lambda _text: False)
    assert run("delete-data", NAME) == 2
    assert (uploads_dir(directory) / NAME).is_dir()
    assert run("delete-data", "nothing") == 2
    assert "there is no uploaded data" in capsys.readouterr().err
    assert run("delete-data", NAME, "--yes") == 0
    assert not (uploads_dir(directory) / NAME).exists()
