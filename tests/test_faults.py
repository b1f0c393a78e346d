"""Kill it at any moment, fill its disk: every job ends whole, resumable, or plainly failed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from core import jobs, registry
from core.config import Settings
from core.jobs import state
from core.jobs.state import Job
from core.phantom import write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
N_KILLS = 8
OVERRIDES = ["train.epochs=40", "train.val_fraction=0.25", "train.n_views=3"]
# Stands for the app's server: finds orphans when it starts, then polls the jobs as pages do.
SERVER = """
import sys, time
from pathlib import Path
from core import jobs, registry
registry.clean_leftovers(Path(sys.argv[1]))
while True:
    jobs.list_jobs(Path(sys.argv[1]))
    print("polled", flush=True)
    time.sleep(0.5)
"""


@contextmanager
def server(checkpoints: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(checkpoints)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_dataset(folder, n_train=64, n_test=4, size=64)
    return folder


def start(settings: Settings, data: Path, name: str = "m") -> Job:
    params = {"data": str(data), "name": name, "preset": "tiny-random", "overrides": OVERRIDES}
    return jobs.start("train", params, title=name, settings=settings)


def check_whole(checkpoints: Path) -> None:
    """Every listed model loads; state files are whole; nothing half-written is listed."""
    for summary in registry.list_models(checkpoints):
        assert summary.problem is None
        registry.load_bundle(checkpoints, summary.model_id, settings=Settings(device="cpu"))
    for folder in state.list_folders(state.jobs_dir(checkpoints)):
        json.loads((folder / "state.json").read_text(encoding="utf-8"))
        assert state.read_job(folder).error_code != "job.damaged"


def kill(process: state.ProcessId | None) -> None:
    if process is not None and state.is_alive(process):
        os.kill(process.pid, signal.SIGKILL)


def wait_until_ended(checkpoints: Path, job: Job, *, seconds: float = 300) -> Job:
    end = time.monotonic() + seconds
    while (now := jobs.find(checkpoints, job.job_id)).is_open:
        assert time.monotonic() < end, now
        time.sleep(0.2)
    return now


def test_sigkill_at_many_moments_of_worker_supervisor_server_and_all(
    data: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "ck"
    settings = Settings(checkpoints_dir=checkpoints, device="cpu", n_threads=1)
    rng = np.random.default_rng(4)
    job = start(settings, data)
    targets = []
    for index in range(N_KILLS):
        target = ("worker", "supervisor", "server", "all")[index % 4]
        with server(checkpoints) as process:
            time.sleep(float(rng.uniform(0.0, 6.0)))
            now = state.read_job(jobs.folder_of(checkpoints, job.job_id))
            targets.append((target, now.status, round(now.progress, 2)))
            if target in ("server", "all"):
                process.kill()
            if target in ("worker", "all"):
                kill(now.worker)
            if target in ("supervisor", "all"):
                kill(now.supervisor)
        check_whole(checkpoints)
        with server(checkpoints):  # restarted: it finds what was orphaned
            end = time.monotonic() + 10
            while target != "server" and time.monotonic() < end:
                found = jobs.find(checkpoints, job.job_id)
                if found.status != "running" or found.supervisor != now.supervisor:
                    break
                time.sleep(0.2)
        found = jobs.find(checkpoints, job.job_id)
        if found.status == "done":
            break
        if found.status == "failed":
            assert found.error_code in ("job.interrupted", "job.killed"), found
            assert found.can_resume
            jobs.resume(checkpoints, job.job_id, settings=settings)
    print(targets)  # noqa: T201 - with pytest -s: where the kills fell
    if jobs.find(checkpoints, job.job_id).can_resume:
        jobs.resume(checkpoints, job.job_id, settings=settings)
    assert wait_until_ended(checkpoints, job).status == "done"
    check_whole(checkpoints)
    assert [m.model_id for m in registry.list_models(checkpoints)] == ["m"]
    registry.clean_leftovers(checkpoints)
    assert not list(checkpoints.glob(".writing-*"))


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of its own, of a few megabytes."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"a small file system needs the right to mount: {made.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free_mb", [1, 3, 8, 14])
def test_a_full_disk_ends_in_a_clear_state_and_goes_on_when_there_is_room(
    data: Path, tmp_path: Path, free_mb: int
) -> None:
    with small_disk(tmp_path / "disk", megabytes=200) as disk:
        checkpoints = disk / "ck"
        settings = Settings(checkpoints_dir=checkpoints, device="cpu", n_threads=1)
        job = start(settings, data)
        ballast = disk / "ballast"
        leave(ballast, disk, megabytes=free_mb)
        ended = wait_until_ended(checkpoints, job)
        assert ended.status == "failed"
        assert ended.error_code in ("job.disk", "data.disk"), ended
        assert registry.list_models(checkpoints) == []
        assert not list(checkpoints.glob(".writing-*"))
        ballast.unlink()
        jobs.resume(checkpoints, job.job_id, settings=settings)
        assert wait_until_ended(checkpoints, job).status == "done"
        check_whole(checkpoints)


def leave(ballast: Path, disk: Path, *, megabytes: int) -> None:
    free = shutil.disk_usage(disk).free - megabytes * 2**20
    with ballast.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, free)


def test_data_removed_while_it_runs_ends_clearly_and_goes_on_when_it_is_back(
    data: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "ck"
    settings = Settings(checkpoints_dir=checkpoints, device="cpu", n_threads=1)
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    job = start(settings, mine)
    folder = jobs.folder_of(checkpoints, job.job_id)
    end = time.monotonic() + 120
    while "running the trunks" not in (folder / "log.txt").read_text(encoding="utf-8"):
        assert time.monotonic() < end
        time.sleep(0.02)
    mine.rename(tmp_path / "moved")
    ended = wait_until_ended(checkpoints, job)
    if ended.status == "done":
        pytest.skip("all images had been read before the folder was moved")
    assert (ended.status, ended.error_code) == ("failed", "data.removed")
    assert registry.list_models(checkpoints) == []
    (tmp_path / "moved").rename(mine)
    jobs.resume(checkpoints, job.job_id, settings=settings)
    assert wait_until_ended(checkpoints, job).status == "done"


def test_two_users_start_at_once_one_runs_one_waits_both_see_both(
    data: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "ck"
    checkpoints.mkdir()
    command = [sys.executable, "-m", "core", "jobs", "train", "--data", str(data)]
    command += ["--preset", "tiny-random", "--checkpoints", str(checkpoints)]
    for setting in OVERRIDES:
        command += ["--set", setting]
    environment = {**os.environ, "NEIGHBORDX_DEVICE": "cpu", "NEIGHBORDX_THREADS": "1"}
    both = [
        subprocess.Popen([*command, "--name", name], cwd=ROOT, env=environment)
        for name in ("anna", "bert")
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    seen = set()
    end = time.monotonic() + 600
    while True:
        listed = jobs.list_jobs(checkpoints)
        assert {job.title for job in listed} == {"anna", "bert"}
        seen.add(tuple(sorted(job.status for job in listed)))
        if all(not job.is_open for job in listed):
            break
        assert time.monotonic() < end
        time.sleep(0.2)
    assert {job.status for job in listed} == {"done"}
    assert ("queued", "running") in seen
    assert ("running", "running") not in seen
    assert [m.model_id for m in registry.list_models(checkpoints)] == ["anna", "bert"]
