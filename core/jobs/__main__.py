"""``python -m core.jobs JOB_DIR``: supervise one job from its turn in the queue to its end.

This process is small and independent of the worker, so that an out-of-memory kill, a full disk or a
crash in native code still ends in a recorded state. With ``--work`` it is the worker itself.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from core.jobs import ending, queue, state
from core.jobs.kinds import lane_of

_POLL_S = 0.25
_GRACE_S = 2.0  # between terminating and killing a worker


def supervise(folder: Path) -> None:
    """Run one job from its place in the queue to its end."""
    if not _wait_for_turn(folder):
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "core.jobs", "--work", str(folder), str(os.getpid())],
        stdin=subprocess.DEVNULL,
    )
    with state.hold_queue(folder.parent):
        state.transition(folder, "running", worker=state.identify(process.pid))
    is_cancelled = False
    while process.poll() is None:
        if (folder / "cancel").exists():
            is_cancelled = True
            _stop(process)
            break
        time.sleep(_POLL_S)
    with state.hold_queue(folder.parent):
        if is_cancelled:
            state.transition(folder, "cancelled")
        else:
            ending.finish(folder, returncode=process.returncode)


def _wait_for_turn(folder: Path) -> bool:
    """Wait until this job is first in its lane and nothing runs; False if it was cancelled."""
    me = state.identify(os.getpid())
    while True:
        queue.settle(folder.parents[1])
        with state.hold_queue(folder.parent):
            job = state.read_job(folder)
            is_mine = job.supervisor is not None and job.supervisor.pid == me.pid
            if job.status != "queued" or not is_mine:
                return False
            if _is_first(folder, job):
                (folder / "outcome.json").unlink(missing_ok=True)
                state.transition(folder, "running", supervisor=me)
                return True
        time.sleep(_POLL_S)


def _is_first(folder: Path, job: state.Job) -> bool:
    others = [state.read_job(f) for f in state.list_folders(folder.parent) if f != folder]
    lane = [o for o in others if lane_of(o.kind) == lane_of(job.kind)]
    if any(other.status == "running" for other in lane):
        return False
    mine = (job.turn, job.queued)  # the times order only what an earlier version queued
    return all((o.turn, o.queued) > mine for o in lane if o.status == "queued")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Run as supervisor or worker, depending on the arguments."""
    if sys.argv[1] == "--work":
        from core.jobs.work import work

        sys.exit(work(Path(sys.argv[2]), parent_pid=int(sys.argv[3])))
    supervise(Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    main()
