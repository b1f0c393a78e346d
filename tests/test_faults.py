"""Kill it at any moment, fill its disk: every job ends whole, resumable, or plainly failed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
N_KILLS = 20
TARGETS = {  # what a kill hits
    "worker": ("worker",),
    "job": ("supervisor", "worker"),
    "server": ("server",),
    "supervisor": ("supervisor",),
    "both": ("server", "supervisor", "worker"),
}
OVERRIDES = ["train.epochs=40", "train.val_fraction=0.25", "train.n_views=3"]


class WarmServer:
    """Servers that share their imports, see ``warm_server.py``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.read()  # "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def serve(self, **wanted: str) -> state.ProcessId:
        """A new server; it starts or resumes what is wanted."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return state.identify(int(self.read()))


@pytest.fixture
def warm(data: Path, tmp_path: Path) -> Iterator[WarmServer]:
    (tmp_path / "ck").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "NEIGHBORDX_CHECKPOINTS": str(tmp_path / "ck")}
    with subprocess.Popen(
        [sys.executable, "tests/warm_server.py", str(tmp_path / "ck"), str(data)],
        cwd=ROOT,
        env=environment | {"NEIGHBORDX_DEVICE": "cpu", "NEIGHBORDX_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield WarmServer(process)
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


def read_only_job(checkpoints: Path) -> Job:
    """The one job as it stands on disk; unlike ``jobs.find`` this settles nothing."""
    (folder,) = state.list_folders(state.jobs_dir(checkpoints))
    return state.read_job(folder)


def wait_for(check: Callable[[], object], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_settled(checkpoints: Path) -> bool:
    """Whether the job has ended, or a living process has it."""
    job = read_only_job(checkpoints)
    return not job.is_open or state.is_alive(job.supervisor)


def test_sigkill_at_twenty_random_moments_of_job_server_and_both(
    warm: WarmServer, tmp_path: Path
) -> None:
    """Each moment has a job of its own, killed, found by the next server, resumed, finished."""
    checkpoints = tmp_path / "ck"
    began = time.monotonic()
    server = warm.serve(name="whole")
    wait_for(lambda: (checkpoints / "whole" / "config.json").is_file(), seconds=300)
    wait_for(lambda: read_only_job(checkpoints).status == "done", seconds=30)
    length = time.monotonic() - began  # of an undisturbed job
    rng = np.random.default_rng(4)
    hit = []
    for index in range(N_KILLS):
        target = list(TARGETS)[index % len(TARGETS)]
        jobs.delete(checkpoints, read_only_job(checkpoints).job_id)
        kill(server)
        server = warm.serve(name=f"m{index}")
        wait_for(lambda: state.list_folders(state.jobs_dir(checkpoints)), seconds=60)
        time.sleep(float(rng.uniform(0.0, length)))
        before = read_only_job(checkpoints)
        hit.append((target, before.status, round(before.progress, 2)))
        for name in TARGETS[target]:
            kill(server if name == "server" else getattr(before, name))
        check_whole(checkpoints)
        if not state.is_alive(server):
            server = warm.serve()
        wait_for(lambda: is_settled(checkpoints), seconds=60)
        found = read_only_job(checkpoints)
        if target == "server":
            assert found.is_open or found.status == "done", found
        if found.status == "failed":
            assert found.error_code in ("job.interrupted", "job.killed"), found
            assert found.can_resume
            kill(server)
            server = warm.serve(resume=found.job_id)
            wait_for(lambda: read_only_job(checkpoints).status != "failed", seconds=60)
        wait_for(lambda: not read_only_job(checkpoints).is_open, seconds=300)
        assert read_only_job(checkpoints).status == "done", read_only_job(checkpoints)
        check_whole(checkpoints)
        assert [m.model_id for m in registry.list_models(checkpoints)] == sorted(
            {f"m{index}", "whole"}
        )
        registry.delete_model(checkpoints, f"m{index}")
    kill(server)
    print(hit)  # noqa: T201 - with pytest -s: where the kills fell
    assert sum(status == "running" for _target, status, _done in hit) >= N_KILLS // 2
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
