"""A read-only folder of models: what only reads goes on, what needs writing says so at once."""

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request

import app
from core.assessment.assess import assess
from core.assessment.store import list_evaluations
from core.config import Settings
from core.errors import ConfigError, JobError
from core.files import abandoned
from core.files.processes import ProcessId
from core.files.read_only import is_read_only
from core.jobs import queue, state
from core.jobs.state import Job
from core.models import registry
from core.models.exchange import export_model, import_model

CPU = Settings(device="cpu")
DEAD = ProcessId(2**22 - 3, 1.0)


def put_dead_job(directory: Path) -> str:
    folder = state.jobs_dir(directory)
    job = Job("20260101-000000-000000", "train", "t", {}, "then")
    with state.hold_queue(folder):
        state.create(folder, job)
        state.transition(folder / job.job_id, "running", supervisor=DEAD)
    return job.job_id


@pytest.fixture(scope="module")
def models(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The models with a job and a leftover of killed processes, on a read-only mount."""
    directory = tmp_path_factory.mktemp("read-only") / "ck"
    shutil.copytree(
        tiny_checkpoints, directory, ignore=shutil.ignore_patterns(".runs", "evaluations")
    )
    left = directory / f".writing-x-{DEAD.pid}"
    left.mkdir()
    (left / abandoned.MARK).write_text(json.dumps(dataclasses.asdict(DEAD)), encoding="utf-8")
    (left / "config.json").write_text("{}", encoding="utf-8")
    put_dead_job(directory)
    mount = ["mount", "--bind", str(directory), str(directory)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a read-only folder needs the right to mount: {done.stderr.decode()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(directory)], check=True)
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_it_is_known_without_trying(models: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (models / "x").touch()
    assert is_read_only(models)
    assert is_read_only(models / "new" / "folder")
    assert not is_read_only(tmp_path)
    assert not is_read_only(tmp_path / "new" / "folder")


def test_the_app_starts_and_is_ready(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(models))

    async def start() -> None:
        async with app.lifespan(app.app):
            pass

    asyncio.run(start())
    app.import_and_tidy(models)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: pytest.fail("its space does not matter"))
    answer = app.ready(Request({"type": "http"}))
    assert (answer.status_code, json.loads(bytes(answer.body))["ready"]) == (200, True)


def test_without_jobs_the_app_starts_too(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to fail at making the jobs' folder."""
    monkeypatch.setattr(state, "jobs_dir", lambda folder: folder / ".none")
    queue.settle(models)
    assert queue.list_jobs(models) == []


def test_lists_are_read(models: Path) -> None:
    assert [m.problem for m in registry.list_models(models)] == [None, None, None]
    assert registry.load_bundle(models, "demo", settings=CPU).model_id == "demo"
    assert [job.status for job in queue.list_jobs(models)] == ["running"]
    assert queue.find(models, "20260101-000000-000000").title == "t"
    assert list_evaluations(models, "demo") == []


def test_an_evaluation_is_made_and_that_it_is_not_kept_is_said(
    models: Path, tiny_checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(models, device="cpu")
    with caplog.at_level(logging.WARNING):
        found = assess("demo", tiny_checkpoints / ".demo-data", split="test", settings=settings)
    assert found.result["n"] == 16
    assert "this evaluation is not kept" in caplog.text
    assert not (models / "demo" / "evaluations").exists()


def test_a_study_that_could_not_be_kept_is_refused_before_an_image_is_read(models: Path) -> None:
    settings = Settings(models, device="cpu")
    with pytest.raises(ConfigError, match=r"cannot write .* \(Read-only file system\)"):
        assess("demo", Path("/none"), split="test", settings=settings, parts=["robustness"])


def test_what_needs_writing_says_so(models: Path, tmp_path: Path) -> None:
    path = export_model(models, "demo-triplet", tmp_path / "m.neighbordx", settings=CPU)
    settings = Settings(models, device="cpu")
    for refused in (
        lambda: registry.delete_model(models, "demo"),
        lambda: registry.activate(models, "demo-metric"),
        lambda: import_model(models, path, settings=CPU, name="new"),
    ):
        with pytest.raises(ConfigError, match=r"cannot write .* \(Read-only file system\)"):
            refused()
    with pytest.raises(JobError, match="Read-only file system"):
        queue.start("evaluate", {"model": "demo"}, title="t", settings=settings)
    assert {"demo", "demo-metric", "demo-triplet"} <= set(os.listdir(models))
