"""A process is known by its start since the boot; the wall clock may be set forward or back."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from core.files import abandoned, processes
from core.files.processes import ProcessId, identify, is_alive, read_age

DAY = 86_400.0


@pytest.fixture(params=[-DAY, DAY])
def clock_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The clock is set after the start: psutil then computes other start times for all processes.

    It takes the boot's time from /proc/stat, which moves with the clock.
    """
    step = float(request.param)
    if not Path("/proc/self/stat").exists():
        pytest.skip("only Linux tells a process's start without the wall clock")
    original = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: original(process) + step)
    return step


@pytest.fixture
def me() -> ProcessId:
    return identify(os.getpid())  # before the clock is set: listed before ``clock_step``


def test_a_live_process_is_alive_after_the_clock_was_set(me: ProcessId, clock_step: float) -> None:
    assert identify(os.getpid()).started == pytest.approx(me.started + clock_step)
    assert is_alive(me)


def test_another_start_another_boot_or_an_ended_process_is_not_alive(me: ProcessId) -> None:
    assert is_alive(me)
    assert not is_alive(dataclasses.replace(me, ticks=me.ticks - 1))
    assert not is_alive(dataclasses.replace(me, boot="another"))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = identify(child.pid)
    assert is_alive(known)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is a zombie
    assert not is_alive(known)
    child.wait()
    assert not is_alive(known)


def test_a_record_of_an_earlier_version_is_read_by_its_time(me: ProcessId) -> None:
    assert is_alive(ProcessId(me.pid, me.started))
    assert not is_alive(ProcessId(me.pid, me.started - 3600))


def test_the_folder_of_a_live_writer_stays_whatever_the_clock_says(
    tmp_path: Path, me: ProcessId, clock_step: float
) -> None:
    del me, clock_step
    folder = abandoned.mark(tmp_path)
    assert not abandoned.is_left(folder, os.getpid())


def test_an_age_is_measured_without_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_age()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0.0 < before <= processes.read_age() < before + 60
