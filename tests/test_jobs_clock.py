"""The queue does not depend on the wall clock: order, ids and liveness hold when it is set."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.config import Settings
from core.jobs import __main__ as supervisor
from core.jobs import queue, state
from core.jobs.state import Job, ProcessId

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


class Clock:
    """The wall clock, which tests set."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(state, "_read_clock", clock)
    return clock


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Jobs are queued without a process of their own: this one stands in for it."""
    settings = Settings(tmp_path / "ck", device="cpu")
    settings.checkpoints_dir.mkdir()

    def spawn(folder: Path, _settings: Settings) -> Job:
        me = state.identify(os.getpid())
        return state.transition(folder, "queued", supervisor=me, n_spawns=1)

    monkeypatch.setattr(queue, "_spawn", spawn)
    return settings


def start(settings: Settings, title: str) -> Job:
    return queue.start("train", {"name": title, "data": "/none"}, title=title, settings=settings)


def list_first(settings: Settings) -> list[str]:
    """Titles of the jobs whose turn it is."""
    folders = state.list_folders(state.jobs_dir(settings.checkpoints_dir))
    waiting = [(folder, state.read_job(folder)) for folder in folders]
    return [
        job.title
        for folder, job in waiting
        if job.status == "queued" and supervisor._is_first(folder, job)
    ]


def end(settings: Settings, job: Job) -> None:
    folder = queue.folder_of(settings.checkpoints_dir, job.job_id)
    with state.hold_queue(folder.parent):
        state.transition(folder, "running")
        state.transition(folder, "cancelled")


@pytest.mark.parametrize("step", [timedelta(days=-1), timedelta(days=1), timedelta(0)])
def test_jobs_run_and_are_listed_in_the_order_they_were_queued(
    settings: Settings, clock: Clock, step: timedelta
) -> None:
    jobs = [start(settings, "one")]
    clock.now += step
    jobs.append(start(settings, "two"))
    clock.now -= 2 * step
    jobs.append(start(settings, "three"))
    assert [job.title for job in queue.list_jobs(settings.checkpoints_dir)] == [
        "three", "two", "one",
    ]  # fmt: skip
    assert [job.turn for job in jobs] == [1, 2, 3]
    for job in jobs:
        assert list_first(settings) == [job.title]
        end(settings, job)
    again = queue.resume(settings.checkpoints_dir, jobs[0].job_id, settings=settings)
    later = start(settings, "four")
    assert (again.turn, later.turn) == (4, 5)
    assert list_first(settings) == ["one"]


def test_two_jobs_at_the_same_moment_of_the_clock_have_two_ids(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_read_clock", lambda: NOON)
    ids = [start(settings, title).job_id for title in ("one", "two", "three")]
    assert ids == ["20260601-120000-000000", "20260601-120000-000001", "20260601-120000-000002"]


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
def test_a_live_job_is_not_declared_dead_when_the_clock_is_set(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("only Linux tells a process's start without the wall clock")
    job = start(settings, "one")
    folder = queue.folder_of(settings.checkpoints_dir, job.job_id)
    with state.hold_queue(folder.parent):
        state.transition(folder, "running", worker=state.identify(os.getpid()))
    original = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: original(process) + step)
    assert queue.find(settings.checkpoints_dir, job.job_id).status == "running"


def put_legacy(directory: Path, job_id: str, when: str, **changes: Any) -> Path:
    """A waiting job as an earlier version wrote it."""
    folder = state.jobs_dir(directory) / job_id
    folder.mkdir(parents=True)
    spec = {"job_id": job_id, "kind": "train", "title": job_id, "params": {}, "created": when}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    me = state.identify(os.getpid())
    process = {"pid": me.pid, "started": me.started}
    told = {
        "status": "queued", "queued": when, "started": "", "ended": "", "error": "",
        "error_code": "", "error_params": {}, "supervisor": process, "worker": None, "n_spawns": 1,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps({**told, **changes}), encoding="utf-8")
    return folder


def test_jobs_of_an_earlier_version_come_first_in_their_own_order(
    settings: Settings, clock: Clock
) -> None:
    clock.now = NOON - timedelta(days=400)
    put_legacy(settings.checkpoints_dir, "20260101-000000-000001", "2026-01-02T00:00:00+00:00")
    put_legacy(settings.checkpoints_dir, "20260101-000000-000002", "2026-01-01T00:00:00+00:00")
    new = start(settings, "new")
    assert new.turn == 1
    assert list_first(settings) == ["20260101-000000-000002"]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 3},
        {"status": "asleep"},
        {"queued": 7},
        {"turn": "first"},
        {"n_spawns": None},
        {"supervisor": {"pid": "1", "started": 1.0}},
        {"supervisor": 4},
        {"error_params": []},
        {"surprise": 1},
    ],
)
def test_a_state_of_wrong_values_is_a_damaged_job(
    settings: Settings, changes: dict[str, Any]
) -> None:
    folder = put_legacy(settings.checkpoints_dir, "20260101-000000-000001", "then", **changes)
    job = queue.find(settings.checkpoints_dir, folder.name)
    assert (job.status, job.error_code) == ("failed", "job.damaged")
    assert "\n" not in job.error
    queue.delete(settings.checkpoints_dir, folder.name)
    assert queue.list_jobs(settings.checkpoints_dir) == []


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", '{"status": "done"}', "[" * 100_000])
def test_a_specification_of_wrong_values_is_a_damaged_job(settings: Settings, text: str) -> None:
    folder = put_legacy(settings.checkpoints_dir, "20260101-000000-000001", "then")
    (folder / "spec.json").write_text(text, encoding="utf-8")
    assert state.read_job(folder).error_code == "job.damaged"


@pytest.mark.parametrize("progress", [float("nan"), -1.0, 7.0, "x", None, []])
def test_progress_of_wrong_values_is_not_shown(settings: Settings, progress: object) -> None:
    folder = put_legacy(
        settings.checkpoints_dir, "20260101-000000-000001", "then", status="running", started="then"
    )
    told = {"progress": progress, "message": "m"}
    (folder / "progress.json").write_text(json.dumps(told), encoding="utf-8")
    assert state.read_job(folder).progress == 0.0


def test_a_process_known_by_an_earlier_version_still_counts() -> None:
    me = state.identify(os.getpid())
    assert state.is_alive(ProcessId(me.pid, me.started))
