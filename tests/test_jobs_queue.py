"""The queue: real processes, their states on disk, and every way they can end."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.errors import DataError, JobError
from core.jobs import ending, queue, state
from core.jobs.kinds import KINDS, Work
from core.jobs.metrics import MetricsWriter, read_log, read_metrics
from core.jobs.state import Job, ProcessId

QUICK = ["train.epochs=1", "train.val_fraction=0.25"]
LONG = ["train.epochs=1000", "train.val_fraction=0.25"]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A checkpoints folder whose processes are ended after the test."""
    settings = Settings(checkpoints_dir=tmp_path / "ck", device="cpu", n_threads=1)
    settings.checkpoints_dir.mkdir()
    yield settings
    for folder in state.list_folders(state.jobs_dir(settings.checkpoints_dir)):
        job = state.read_job(folder)
        for process in (job.supervisor, job.worker):
            is_mine = process is not None and process.pid == os.getpid()  # it stood in for a job
            if not is_mine and process is not None and state.is_alive(process):
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def directory(settings: Settings) -> Path:
    return settings.checkpoints_dir


def start_train(settings: Settings, data: Path, name: str, overrides: list[str]) -> Job:
    params = {"data": str(data), "name": name, "preset": "tiny-random", "overrides": overrides}
    return queue.start("train", params, title=name, settings=settings)


def wait_for(check: Callable[[], object], *, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def has_begun(directory: Path, job: Job) -> bool:
    return bool(queue.find(directory, job.job_id).message)


def make_folder(directory: Path, status: str = "queued", **changes: object) -> Path:
    """Create a job on disk without a process."""
    folder = state.jobs_dir(directory)
    job = Job(f"20260101-000000-{len(state.list_folders(folder)):06d}", "train", "t", {}, "now")
    with state.hold_queue(folder):
        made = state.create(folder, job)
        for step in {"queued": [], "running": ["running"]}.get(status, ["running", status]):
            state.transition(made, step, **changes)
    return made


@pytest.mark.slow
def test_a_job_trains_a_model_while_another_waits_and_all_see_both(
    settings: Settings, directory: Path, phantom_folder: Path
) -> None:
    first = start_train(settings, phantom_folder, "one", QUICK)
    second = start_train(settings, phantom_folder, "two", QUICK)
    wait_for(lambda: queue.find(directory, first.job_id).status == "running")
    assert [job.title for job in queue.list_jobs(directory)] == ["two", "one"]
    seen = set()

    def both_done() -> bool:
        listed = queue.list_jobs(directory)
        seen.add(tuple(sorted(job.status for job in listed)))
        return all(job.status == "done" for job in listed)

    wait_for(both_done, seconds=400)
    assert ("queued", "running") in seen
    assert ("running", "running") not in seen
    done = queue.find(directory, first.job_id)
    assert done.progress == 1.0
    assert done.started < done.ended < queue.find(directory, second.job_id).ended
    assert queue.read_result(directory, first.job_id) == {"model_id": "one"}
    assert (directory / "one" / "config.json").is_file()
    assert not list(directory.glob(".writing-*"))
    folder = queue.folder_of(directory, first.job_id)
    records = read_metrics(folder)
    last = records[-1]
    assert last["step"] == last["n_steps"] > 0
    assert 0 <= last["active"] <= 1
    assert {s["k"] for s in last["validation"]["k_scores"]} == {1, 3, 5}
    assert len(last["validation"]["map"]["xy"]) == len(last["validation"]["map"]["is_disease"])
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    with pytest.raises(JobError, match="model 'one' exists"):
        start_train(settings, phantom_folder, "one", QUICK)


@pytest.mark.slow
def test_cancel_ends_a_running_job_within_five_seconds_and_resume_goes_on(
    settings: Settings, directory: Path, phantom_folder: Path
) -> None:
    job = start_train(settings, phantom_folder, "m", LONG)
    waiting = start_train(settings, phantom_folder, "n", QUICK)
    with pytest.raises(JobError, match="is already making a model called 'm'"):
        start_train(settings, phantom_folder, "m", QUICK)
    wait_for(lambda: queue.find(directory, job.job_id).message.startswith("training"))
    assert queue.cancel(directory, waiting.job_id).status == "cancelled"
    running = queue.find(directory, job.job_id)
    with pytest.raises(JobError, match="cancel it first"):
        queue.delete(directory, job.job_id)
    began = time.monotonic()
    queue.cancel(directory, job.job_id)
    wait_for(lambda: queue.find(directory, job.job_id).status == "cancelled", seconds=5)
    assert time.monotonic() - began < 5
    assert not state.is_alive(running.worker)
    assert not (directory / "m").exists()
    step = json.loads((directory / ".runs" / "m" / "run.json").read_text(encoding="utf-8"))
    assert step["run"]["train"]["epochs"] == 1000
    resumed = queue.resume(directory, job.job_id, settings=settings)
    assert resumed.status == "queued"
    wait_for(lambda: has_begun(directory, job))
    log = "\n".join(read_log(queue.folder_of(directory, job.job_id)))
    wait_for(lambda: "goes on from the last checkpoint" in log or has_begun(directory, job))
    queue.cancel(directory, job.job_id)
    wait_for(lambda: not queue.find(directory, job.job_id).is_open, seconds=5)
    queue.delete(directory, job.job_id)
    assert not (directory / ".runs" / "m").exists()
    with pytest.raises(JobError, match="there is no job"):
        queue.find(directory, job.job_id)


@pytest.mark.slow
def test_a_job_whose_processes_are_killed_becomes_failed_and_resumable(
    settings: Settings, directory: Path, phantom_folder: Path
) -> None:
    job = start_train(settings, phantom_folder, "m", LONG)
    wait_for(lambda: has_begun(directory, job))
    running = queue.find(directory, job.job_id)
    assert running.supervisor is not None
    assert running.worker is not None
    os.kill(running.supervisor.pid, signal.SIGKILL)  # the worker must not continue alone
    wait_for(lambda: queue.find(directory, job.job_id).status == "failed", seconds=10)
    ended = queue.find(directory, job.job_id)
    assert ended.error_code == "job.interrupted"
    assert ended.can_resume
    assert not state.is_alive(running.worker)
    queue.resume(directory, job.job_id, settings=settings)
    wait_for(lambda: queue.find(directory, job.job_id).worker is not None)
    worker = queue.find(directory, job.job_id).worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)  # as the kernel does when memory runs out
    wait_for(lambda: queue.find(directory, job.job_id).status == "failed", seconds=10)
    assert queue.find(directory, job.job_id).error_code == "job.killed"


def test_a_waiting_job_that_lost_its_process_gets_another(
    settings: Settings, directory: Path, phantom_folder: Path
) -> None:
    busy = make_folder(directory, "running", supervisor=state.identify(os.getpid()))
    waiting = start_train(settings, phantom_folder, "n", QUICK)
    assert waiting.supervisor is not None
    os.kill(waiting.supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not state.is_alive(waiting.supervisor))
    again = queue.find(directory, waiting.job_id)
    assert again.status == "queued"
    assert again.supervisor != waiting.supervisor
    assert again.n_spawns == 2
    with pytest.raises(JobError, match="is already making a model called 'n'"):
        start_train(settings, phantom_folder, "n", QUICK)
    assert queue.cancel(directory, waiting.job_id).status == "cancelled"
    assert not (directory / "n").exists()
    with state.hold_queue(busy.parent):
        state.transition(busy, "cancelled")


def test_data_removed_while_it_waits_or_runs_is_said(
    settings: Settings, directory: Path, tmp_path: Path
) -> None:
    job = start_train(settings, tmp_path / "gone", "m", QUICK)
    wait_for(lambda: not queue.find(directory, job.job_id).is_open)
    ended = queue.find(directory, job.job_id)
    assert (ended.status, ended.error_code) == ("failed", "data.missing")
    assert list(directory.iterdir()) == [state.jobs_dir(directory)]


def test_an_image_that_vanishes_stops_the_trunk_cache(
    phantom_dataset: Dataset, tiny_config: RunConfig, tmp_path: Path
) -> None:
    from dataclasses import replace

    from core.training.run import train

    gone = replace(phantom_dataset.records[0], path=tmp_path / "gone.png", split="train")
    data = replace(phantom_dataset, records=(gone, *phantom_dataset.records[1:]))
    with pytest.raises(DataError, match="no longer there") as caught:
        train(data, tiny_config, name="m", settings=Settings(tmp_path / "ck", device="cpu"))
    assert caught.value.code == "data.removed"


def test_every_other_step_than_the_allowed_is_refused(directory: Path) -> None:
    folder = make_folder(directory, "done")
    for status in ("queued", "running", "failed", "cancelled"):
        with state.hold_queue(folder.parent), pytest.raises(JobError, match="cannot become"):
            state.transition(folder, status)
    folder = make_folder(directory, "cancelled")
    with state.hold_queue(folder.parent):
        assert state.transition(folder, "queued").ended == ""


def test_a_process_is_known_by_its_start_not_by_its_number_alone() -> None:
    me = state.identify(os.getpid())
    assert state.is_alive(me)
    assert not state.is_alive(ProcessId(me.pid, me.started - 3600))
    assert not state.is_alive(None)
    assert not state.is_alive(ProcessId(2**22 - 3, 1.0))


def test_running_without_a_process_is_found_at_start(directory: Path) -> None:
    dead = ProcessId(psutil.Process().pid, 1.0)
    folder = make_folder(directory, "running", supervisor=dead)
    cancelled = make_folder(directory, "running", supervisor=dead)
    (cancelled / "cancel").touch()
    finished = make_folder(directory, "running", supervisor=dead)
    (finished / "outcome.json").write_text('{"status": "done"}', encoding="utf-8")
    queue.settle(directory)
    assert state.read_job(folder).error_code == "job.interrupted"
    assert state.read_job(cancelled).status == "cancelled"
    assert state.read_job(finished).status == "done"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "no"), "job.disk"),
        (OSError(errno.EDQUOT, "no"), "job.disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "job.disk"),
        (MemoryError(), "job.memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "job.memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "job.memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "job.memory"),
        (RuntimeError("can't start new thread"), "job.memory"),
        (DataError("gone", code="data.removed"), "data.removed"),
        (RuntimeError("something else"), "job.unexpected"),
    ],
)
def test_a_failure_is_told_by_what_it_means(error: Exception, code: str, tmp_path: Path) -> None:
    assert ending.describe(error, tmp_path)["error_code"] == code
    outer = DataError("wrapped", code="data")
    outer.__cause__ = error
    assert ending.describe(outer, tmp_path)["error_code"] in (code, "data")


@pytest.mark.parametrize(
    ("returncode", "code"),
    [(None, "job.interrupted"), (-signal.SIGKILL, "job.killed"), (-signal.SIGBUS, "job.disk"),
     (3, "job.unexpected")],
)  # fmt: skip
def test_a_worker_without_a_last_word_is_explained(
    directory: Path, returncode: int | None, code: str
) -> None:
    folder = make_folder(directory, "running")
    with state.hold_queue(folder.parent):
        job = ending.finish(folder, returncode=returncode)
    assert (job.status, job.error_code) == ("failed", code)
    assert not (folder / "reserve").exists()


def test_damaged_files_make_a_failed_job_that_can_be_deleted(directory: Path) -> None:
    folder = make_folder(directory, "done")
    (folder / "state.json").write_text("{", encoding="utf-8")
    job = queue.find(directory, folder.name)
    assert (job.status, job.error_code) == ("failed", "job.damaged")
    queue.delete(directory, folder.name)
    assert queue.list_jobs(directory) == []


def put_train(directory: Path, status: str, name: str, *, is_ensemble: bool = False) -> str:
    """Create a train job and its run folders on disk; this process stands in for the worker."""
    folder = state.jobs_dir(directory)
    params = {"name": name, "is_ensemble": is_ensemble}
    job = Job(f"20260101-000000-{len(state.list_folders(folder)):06d}", "train", "t", params, "now")
    with state.hold_queue(folder):
        made = state.create(folder, job)
        state.transition(made, "running", supervisor=state.identify(os.getpid()))
        if status != "running":
            state.transition(made, status)
    for run in queue._list_runs(job):
        (directory / ".runs" / run).mkdir(parents=True, exist_ok=True)
    return job.job_id


def list_runs(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / ".runs").iterdir())


def test_a_deleted_job_leaves_the_runs_that_others_need(directory: Path) -> None:
    ended = put_train(directory, "failed", "m")
    again = put_train(directory, "running", "m")
    put_train(directory, "running", "m-cache")
    queue.delete(directory, ended)
    assert list_runs(directory) == ["m", "m-cache"]
    with state.hold_queue(state.jobs_dir(directory)):
        state.transition(queue.folder_of(directory, again), "failed")
    queue.delete(directory, again)
    assert list_runs(directory) == ["m-cache"]
    pair = put_train(directory, "cancelled", "p", is_ensemble=True)
    assert list_runs(directory) == ["m-cache", "p", "p-cache", "p-metric", "p-triplet"]
    queue.delete(directory, pair)
    assert list_runs(directory) == ["m-cache"]


def test_a_run_in_progress_is_not_deleted_with_an_older_job(directory: Path) -> None:
    pair = put_train(directory, "failed", "p", is_ensemble=True)
    lock = FileLock(directory / ".runs" / "p-metric" / "lock")
    lock.acquire()  # as `python -m core train --resume` in a terminal does
    with pytest.raises(
        JobError, match="model 'p-metric' is being trained by another process"
    ) as caught:
        queue.delete(directory, pair)
    assert caught.value.code == "job.busy"
    assert list_runs(directory) == ["p", "p-cache", "p-metric", "p-triplet"]
    assert queue.find(directory, pair).status == "failed"
    lock.release()
    queue.delete(directory, pair)
    assert list_runs(directory) == []


def test_a_resumed_job_knows_its_own_model_from_one_that_took_the_name(
    tiny_checkpoints: Path, settings: Settings, directory: Path
) -> None:
    data = str(tiny_checkpoints / ".demo-data")
    params: dict[str, Any] = {
        "name": "demo", "data": data, "preset": "tiny-random", "is_ensemble": True,
        "overrides": ["train.val_fraction=0.25"],
    }  # fmt: skip
    for name in ("demo", "demo-triplet", "demo-metric"):
        shutil.copytree(tiny_checkpoints / name, directory / name)
    work = Work(directory, params, settings)
    assert KINDS["train"].run(work) == {"model_id": "demo"}
    alone = {**params, "name": "demo-triplet", "is_ensemble": False}
    assert KINDS["train"].run(Work(directory, alone, settings)) == {"model_id": "demo-triplet"}
    shutil.rmtree(directory / "demo-metric")
    shutil.copytree(directory / "demo-triplet", directory / "demo-metric")
    for wrong, name in (
        ({**alone, "seed": 7}, "demo-triplet"),
        ({**alone, "data": str(directory)}, "demo-triplet"),
        ({**alone, "disease_class": "normal"}, "demo-triplet"),
        ({**alone, "name": "demo"}, "demo"),
        (params, "demo"),  # it has another member now
        ({**params, "name": "demo-triplet"}, "demo-triplet"),
    ):
        with pytest.raises(JobError, match=f"another model called '{name}'") as caught:
            KINDS["train"].run(Work(directory, wrong, settings))
        assert (caught.value.code, caught.value.params) == ("job.name_taken", {"name": name})


def test_unknown_kinds_and_ids_are_refused(settings: Settings, directory: Path) -> None:
    with pytest.raises(JobError, match="unknown kind"):
        queue.start("guess", {}, title="", settings=settings)
    for strange in ("../../etc", "20260101-000000-zzzzzz", ""):
        with pytest.raises(JobError, match="there is no job"):
            queue.find(directory, strange)
    folder = make_folder(directory, "done")
    with pytest.raises(JobError, match="has no result"):
        queue.read_result(directory, folder.name)


def test_metrics_skip_a_torn_line_and_count_a_repeated_step_once(tmp_path: Path) -> None:
    figures = {"spread": 0.5, "separation": 1.0, "active": 1.0, "adapter_lr": 1.0, "tail_lr": 0.1}
    with MetricsWriter(tmp_path) as write:
        for step, loss in ((20, 3.0), (40, 2.0), (20, 1.0)):
            write({"step": float(step), "n_steps": 40.0, "loss": loss, **figures})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"step": 60.0, "lo')
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(20, 1.0), (40, 2.0)]
    assert read_metrics(tmp_path / "none") == []
    assert read_log(tmp_path) == []


def test_a_worker_gets_the_servers_settings_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started in the program's folder, so a relative path would be another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEIGHBORDX_CACHE", "cache")
    monkeypatch.setenv("NEIGHBORDX_DATABASE", "sqlite:///here.sqlite")
    monkeypatch.setenv("NEIGHBORDX_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    folder = tmp_path / "ck" / ".jobs" / "20260101-000000-000000"
    told = queue._environment(Settings.from_env(), folder)
    assert told["NEIGHBORDX_CACHE"] == str(tmp_path / "cache")
    assert told["NEIGHBORDX_DATABASE"] == f"sqlite:///{tmp_path / 'here.sqlite'}"
    assert told["NEIGHBORDX_CHECKPOINTS"] == str(tmp_path / "ck")
    for name in ("NEIGHBORDX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        assert told[name] == "3"
    monkeypatch.setenv("NEIGHBORDX_THREADS", "0")
    assert queue._environment(Settings.from_env(), folder)["OMP_NUM_THREADS"] == "64"
