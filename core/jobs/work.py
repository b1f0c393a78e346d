"""The worker process: runs one job and writes its outcome.

It ends when its supervisor does. What each kind of job does is in ``core.jobs.kinds``.
"""

import logging
import os
import threading
import time
from pathlib import Path

from core.config import Settings
from core.jobs import ending, state
from core.jobs.kinds import KINDS, Work

logger = logging.getLogger(__name__)

_WATCH_EVERY_S = 0.5
_NICE = 5  # the app's answers come first


def work(folder: Path, *, parent_pid: int) -> int:
    """Do a job's work; returns the exit status and leaves ``outcome.json`` and ``result.json``.

    Args:
        folder: of the job.
        parent_pid: of the supervisor; without it this process ends.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("core").setLevel(logging.INFO)
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    os.nice(_NICE)
    try:
        job = state.read_job(folder)
        result = KINDS[job.kind].run(Work(folder, job.params, Settings.from_env()))
        state.write_json(folder / "result.json", result, durable=True)
        state.write_json(folder / "outcome.json", {"status": "done"}, durable=True)
    except Exception as err:  # whatever it is, the job ends in a state that says so
        logger.exception("the job failed")
        (folder / "reserve").unlink(missing_ok=True)  # makes room for the words
        failure = ending.describe(err, folder)
        outcome = {"status": "failed", "failure": failure}
        state.write_json(folder / "outcome.json", outcome, durable=True)
        return 1
    return 0


def _end_with_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_WATCH_EVERY_S)
    os._exit(1)
