"""A stand-in for the app's server that starts jobs at once; a program used by the tests.

``python tests/warm_server.py`` imports everything a job needs once, then forks one server per input
line: for ``{"checkpoints": folder}`` a plain server; with ``data``, ``name`` and ``overrides`` one
that starts a training run; with ``resume`` one that resumes a job. It prints the server's process
id. Server, supervisor and worker are separate processes that run the app's own code; only
``python -m core.jobs`` is replaced by a fork, which saves the seconds of imports that would
otherwise be spent on each of twenty kills.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from core.config import Settings
from core.gallery import projection
from core.jobs import __main__ as jobs_main
from core.jobs import metrics, queue, work
from core.models import registry
from core.training import ensemble, live_metrics, run

WARM = (ensemble, run, live_metrics, metrics)
POLL_S = 0.1


class Forked:
    """A replacement for ``subprocess.Popen`` that forks instead of starting an interpreter."""

    def __init__(
        self,
        command: list[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: Any = None,
        start_new_session: bool = False,
        **_rest: Any,
    ) -> None:
        assert command[1:3] == ["-m", "core.jobs"]

        def run() -> None:
            if start_new_session:
                os.setsid()
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
            os.closerange(3, 1024)  # as exec would, above all the queue lock
            os.environ.update(env or {})
            sys.argv = ["core.jobs", *command[3:]]
            jobs_main.main()

        self.returncode: int | None = None
        self.pid = fork(run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def poll(self) -> int | None:
        return self._collect(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise jobs_main.subprocess.TimeoutExpired("core.jobs", timeout or 0.0)
            time.sleep(0.05)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, 15)

    def kill(self) -> None:
        os.kill(self.pid, 9)

    def _collect(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def fork(task: Callable[[], None]) -> int:
    """Run a task in a child process and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        task()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - told, then the child ends
        traceback.print_exc()
    finally:
        os._exit(code)


def serve(wanted: dict[str, Any]) -> None:
    """Do what the app does: find orphaned jobs, start what is requested, poll as pages do."""
    checkpoints = Path(wanted["checkpoints"])
    settings = Settings(checkpoints_dir=checkpoints, device="cpu", n_threads=1)
    registry.clean_leftovers(checkpoints)
    queue.settle(checkpoints)
    if "name" in wanted:
        params = {key: wanted[key] for key in ("name", "data", "overrides")}
        params |= {"preset": "tiny-random"}
        queue.start("train", params, title=wanted["name"], settings=settings)
    if "resume" in wanted:
        queue.resume(checkpoints, wanted["resume"], settings=settings)
    while True:
        queue.list_jobs(checkpoints)
        time.sleep(POLL_S)


def main() -> None:
    """Warm up, then fork a server for every line."""
    points = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    projection.fit(points, seed=0)  # compiles what every job would compile
    work._NICE = 0  # a low priority would only cost time beside other tests
    queue.subprocess.Popen = Forked  # type: ignore[attr-defined,misc,assignment]
    print("ready", flush=True)  # noqa: T201 - the test reads it
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = fork(lambda wanted=wanted: serve(wanted))  # type: ignore[misc]
        print(pid, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
