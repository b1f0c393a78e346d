"""The worker process: runs one job and writes its outcome.

It exits when its supervisor does. What each kind of job does is in ``core.jobs.kinds``.
"""

import logging
import os
import threading
import time
from pathlib import Path

from core.config import Settings
from core.errors import locate
from core.jobs import ending, state
from core.jobs.kinds import KINDS, Work

logger = logging.getLogger(__name__)

_WATCH_EVERY_S = 0.5
_NICE = 5  # lower priority than the app's diagnoses


def work(folder: Path, *, parent_pid: int) -> int:
    """Run a job, write ``outcome.json`` and ``result.json``, and return the exit status.

    Args:
        folder: of the job.
        parent_pid: of the supervisor; if it dies, this process exits.
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
    except Exception as err:  # noqa: BLE001 - any failure is recorded in the job's state
        logger.error("the job failed: %s", locate(err))
        (folder / "reserve").unlink(missing_ok=True)  # frees space for the message
        failure = ending.describe(err, folder)
        outcome = {"status": "failed", "failure": failure}
        state.write_json(folder / "outcome.json", outcome, durable=True)
        return 1
    return 0


def _end_with_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_WATCH_EVERY_S)
    os._exit(1)
