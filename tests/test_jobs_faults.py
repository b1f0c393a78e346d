"""Kills at any moment and full disks: every job ends complete, resumable, or clearly failed."""

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
import psutil
import pytest

from core.config import Settings
from core.images.phantom import write_dataset
from core.jobs import queue, state
from core.jobs.state import Job
from core.models import registry

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
N_KILLS = 20
TARGETS = {  # what is killed
    "worker": ("worker",),
    "job": ("supervisor", "worker"),
    "server": ("server",),
    "supervisor": ("supervisor",),
    "both": ("server", "supervisor", "worker"),
}
SHORT = ["train.epochs=6", "train.val_fraction=0.25", "train.n_views=2"]
OVERRIDES = ["train.epochs=40", "train.val_fraction=0.25", "train.n_views=3"]


class WarmServer:
    """Servers that share their imports, see ``warm_server.py``; one at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.current: state.ProcessId | None = None
        self.read()  # "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def serve(self, checkpoints: Path, **wanted: object) -> None:
        """Fork a new server that starts or resumes the given job."""
        kill(self.current)
        assert self.process.stdin is not None
        line = json.dumps({"checkpoints": str(checkpoints), **wanted}, default=str)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self.current = state.identify(int(self.read()))

    def start(self, checkpoints: Path, data: Path, name: str, overrides: list[str]) -> Job:
        """Fork a new server that starts a training run."""
        checkpoints.mkdir(exist_ok=True)
        self.serve(checkpoints, data=data, name=name, overrides=overrides)
        wait_for(lambda: state.list_folders(state.jobs_dir(checkpoints)), seconds=300)
        return read_only_job(checkpoints)

    def resume(self, checkpoints: Path) -> None:
        """Fork a new server that resumes the only job."""
        self.serve(checkpoints, resume=read_only_job(checkpoints).job_id)
        wait_for(lambda: not read_only_job(checkpoints).can_resume, seconds=300)


@pytest.fixture(scope="module")
def warm_process() -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "NEIGHBORDX_DEVICE": "cpu", "NEIGHBORDX_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "tests/warm_server.py"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def warm_module(warm_process: "subprocess.Popen[str]") -> WarmServer:
    return WarmServer(warm_process)


@pytest.fixture
def warm(warm_module: WarmServer, tmp_path: Path) -> Iterator[WarmServer]:
    """Warm servers; everything they started is ended after the test."""
    yield warm_module
    kill(warm_module.current)
    for checkpoints in tmp_path.rglob(".jobs"):
        for folder in state.list_folders(checkpoints):
            job = state.read_job(folder)
            kill(job.supervisor)
            kill(job.worker)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_dataset(folder, n_train=64, n_test=4, size=64)
    return folder


def check_whole(checkpoints: Path) -> None:
    """Check that every listed model loads, state files are complete, nothing partial is listed."""
    for summary in registry.list_models(checkpoints):
        assert summary.problem is None
        registry.load_bundle(checkpoints, summary.model_id, settings=Settings(device="cpu"))
    for folder in state.list_folders(state.jobs_dir(checkpoints)):
        json.loads((folder / "state.json").read_text(encoding="utf-8"))
        assert state.read_job(folder).error_code != "job.damaged"


def kill(process: state.ProcessId | None) -> None:
    if process is not None and state.is_alive(process):
        os.kill(process.pid, signal.SIGKILL)


def wait_until_ended(checkpoints: Path) -> Job:
    wait_for(lambda: not read_only_job(checkpoints).is_open, seconds=1200)
    return read_only_job(checkpoints)


def read_only_job(checkpoints: Path) -> Job:
    """Read the only job from disk; unlike ``queue.find`` this settles nothing."""
    (folder,) = state.list_folders(state.jobs_dir(checkpoints))
    return state.read_job(folder)


def wait_for(check: Callable[[], object], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_settled(checkpoints: Path) -> bool:
    """Whether the job has ended or its processes are alive; a dead worker is noticed later."""
    job = read_only_job(checkpoints)
    works = job.worker is None or state.is_alive(job.worker)
    return not job.is_open or (state.is_alive(job.supervisor) and works)


def test_sigkill_at_twenty_random_moments_of_job_server_and_both(
    warm: WarmServer, data: Path, tmp_path: Path
) -> None:
    """One job per moment: killed, found by the next server, resumed, finished."""
    checkpoints = tmp_path / "ck"
    began = time.monotonic()
    warm.start(checkpoints, data, "whole", SHORT)
    assert wait_until_ended(checkpoints).status == "done"
    length = time.monotonic() - began  # of an undisturbed job
    rng = np.random.default_rng(4)
    hit = []
    for index in range(N_KILLS):
        target = list(TARGETS)[index % len(TARGETS)]
        queue.delete(checkpoints, read_only_job(checkpoints).job_id)
        warm.start(checkpoints, data, f"m{index}", SHORT)
        time.sleep(float(rng.uniform(0.0, length)))
        before = read_only_job(checkpoints)
        hit.append((target, before.status, round(before.progress, 2)))
        for name in TARGETS[target]:
            kill(warm.current if name == "server" else getattr(before, name))
        check_whole(checkpoints)
        if "server" in TARGETS[target]:
            warm.serve(checkpoints)
        wait_for(lambda: is_settled(checkpoints), seconds=300)
        found = read_only_job(checkpoints)
        if target == "server":
            assert found.is_open or found.status == "done", found
        if found.status == "failed":
            assert found.error_code in ("job.interrupted", "job.killed"), found
            assert found.can_resume
            warm.resume(checkpoints)
        assert wait_until_ended(checkpoints).status == "done", read_only_job(checkpoints)
        check_whole(checkpoints)
        names = [m.model_id for m in registry.list_models(checkpoints)]
        assert names == sorted({f"m{index}", "whole"})
        registry.delete_model(checkpoints, f"m{index}")
    print(hit)  # noqa: T201 - with pytest -s: where the kills fell
    assert sum(status == "running" for _target, status, _done in hit) >= N_KILLS // 2
    registry.clean_leftovers(checkpoints)
    assert not list(checkpoints.glob(".writing-*"))


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A separate file system of a few megabytes."""
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
    warm: WarmServer, data: Path, tmp_path: Path, free_mb: int
) -> None:
    with small_disk(tmp_path / "disk", megabytes=200) as disk:
        checkpoints = disk / "ck"
        warm.start(checkpoints, data, "m", OVERRIDES)
        ballast = disk / "ballast"
        leave(ballast, disk, megabytes=free_mb)
        ended = wait_until_ended(checkpoints)
        assert ended.status == "failed"
        assert ended.error_code in ("job.disk", "data.disk"), ended
        assert registry.list_models(checkpoints) == []
        assert not list(checkpoints.glob(".writing-*"))
        ballast.unlink()
        warm.resume(checkpoints)
        assert wait_until_ended(checkpoints).status == "done"
        check_whole(checkpoints)
        kill(warm.current)


def leave(ballast: Path, disk: Path, *, megabytes: int) -> None:
    free = shutil.disk_usage(disk).free - megabytes * 2**20
    with ballast.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, free)


def wait_for_log(checkpoints: Path, words: str) -> None:
    folder = queue.folder_of(checkpoints, read_only_job(checkpoints).job_id)
    wait_for(lambda: words in (folder / "log.txt").read_text(encoding="utf-8"), seconds=600)


def test_data_removed_while_it_runs_ends_clearly_and_goes_on_when_it_is_back(
    warm: WarmServer, data: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "ck"
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    warm.start(checkpoints, mine, "m", OVERRIDES)
    wait_for_log(checkpoints, "running the trunks")
    mine.rename(tmp_path / "moved")
    ended = wait_until_ended(checkpoints)
    if ended.status == "done":
        pytest.skip("all images had been read before the folder was moved")
    assert (ended.status, ended.error_code) == ("failed", "data.removed")
    assert registry.list_models(checkpoints) == []
    (tmp_path / "moved").rename(mine)
    warm.resume(checkpoints)
    assert wait_until_ended(checkpoints).status == "done"


def limit_address_space(process: psutil.Process) -> None:
    """Make every allocation that needs a new page fail."""
    process.rlimit(psutil.RLIMIT_AS, (2**20, 2**20))


def limit_by_kernel(process: psutil.Process) -> None:
    """Let the kernel kill the process as soon as it needs a few more megabytes."""
    group = Path(f"/sys/fs/cgroup/memory/neighbordx-{process.pid}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("4M", encoding="ascii")
        (group / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
    except OSError as err:
        pytest.skip(f"a limit of memory needs the right to make a control group: {err}")


@pytest.mark.parametrize(
    ("limit", "code"), [(limit_address_space, "job.memory"), (limit_by_kernel, "job.killed")]
)
def test_memory_that_runs_out_is_said_and_the_job_goes_on_later(
    warm: WarmServer,
    data: Path,
    tmp_path: Path,
    limit: Callable[[psutil.Process], None],
    code: str,
) -> None:
    checkpoints = tmp_path / "ck"
    warm.start(checkpoints, data, "m", OVERRIDES)
    wait_for_log(checkpoints, "training begins")
    worker = read_only_job(checkpoints).worker
    assert worker is not None
    limit(psutil.Process(worker.pid))
    ended = wait_until_ended(checkpoints)
    assert (ended.status, ended.error_code) == ("failed", code)
    assert registry.list_models(checkpoints) == []
    warm.resume(checkpoints)
    assert wait_until_ended(checkpoints).status == "done"
    check_whole(checkpoints)
    for group in Path("/sys/fs/cgroup/memory").glob(f"neighbordx-{worker.pid}"):
        group.rmdir()


def test_two_users_start_at_once_one_runs_one_waits_both_see_both(
    data: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "ck"
    checkpoints.mkdir()
    command = [sys.executable, "-m", "core", "jobs", "train", "--data", str(data)]
    command += ["--preset", "tiny-random", "--checkpoints", str(checkpoints)]
    for setting in SHORT:
        command += ["--set", setting]
    environment = {**os.environ, "NEIGHBORDX_DEVICE": "cpu", "NEIGHBORDX_THREADS": "1"}
    both = [
        subprocess.Popen([*command, "--name", name], cwd=ROOT, env=environment)
        for name in ("anna", "bert")
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    seen = set()
    end = time.monotonic() + 1800
    while True:
        listed = queue.list_jobs(checkpoints)
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
