"""Which process is which, without the wall clock: a pid, and when the kernel started it.

On Linux a process is known by the boot and by the clock ticks since then at which it started; a
clock that is set forward or back changes neither. Elsewhere, and for records of earlier versions,
its start on the wall clock is compared.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")
_START_FIELD = 19  # of /proc/PID/stat, counted after the command's name: ticks since the boot
_CLOCK_SLACK_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """A process id with its start, so that a reused pid is not mistaken for it."""

    pid: int
    started: float  # seconds since the epoch; moves with the clock
    boot: str = ""  # id of the boot; empty if it is not known
    ticks: int = 0  # clock ticks from the boot to the start


def identify(pid: int) -> ProcessId:
    """Identify a running process; if it has already ended, the result is never alive."""
    try:
        started = float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return ProcessId(pid, 0.0)
    boot, ticks = _read_start(pid)
    return ProcessId(pid, started, boot, ticks)


def is_alive(process: ProcessId | None) -> bool:
    """Whether this exact process is still running (a zombie is not)."""
    if process is None:
        return False
    try:
        found = psutil.Process(process.pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return False
        boot, ticks = _read_start(process.pid)
        if process.boot and boot:
            return (process.boot, process.ticks) == (boot, ticks)
        return bool(abs(found.create_time() - process.started) < _CLOCK_SLACK_S)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # the pid now belongs to another user's process
        return False


def read_age(pid: int | None = None) -> float:
    """Seconds since a process (this one) started, on Linux by a clock that nobody sets."""
    pid = pid or os.getpid()
    _boot, ticks = _read_start(pid)
    if ticks:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.time() - float(psutil.Process(pid).create_time()))


def _read_start(pid: int) -> tuple[str, int]:
    """The boot and the tick at which a process started; empty and 0 where it is not known."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return boot, int(stat.rpartition(")")[2].split()[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return "", 0
