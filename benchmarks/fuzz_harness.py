"""Run numbered cases in a child process with limits, and count what is no deliberate error.

The script that uses it is its own child: ``--child N`` does cases from N on and prints a line of
JSON before and after each. A case that hangs is killed, one that kills the process is counted, and
the next child goes on after it.
"""

import argparse
import json
import logging
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from harness import RESULTS

from core.errors import CoreError

KEPT = 40  # defects listed in the result


class Tally:
    """What happened to the cases so far."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.defects: list[dict[str, object]] = []
        self.n_defects = 0
        self.peak_mb = 0
        self.peak_case = -1
        self.slowest = (0.0, -1)

    def add(
        self, number: int, origin: str, outcome: str, *, is_defect: bool = True, where: str = ""
    ) -> None:
        """Count an outcome."""
        self.outcomes[outcome] += 1
        if not is_defect:
            return
        self.n_defects += 1
        print(f"defect in case {number} ({origin}): {outcome}\n{where}", flush=True)
        if len(self.defects) < KEPT:
            last = where.strip().splitlines()[-3:] if where else []
            self.defects.append(
                {"case": number, "from": origin, "what": outcome, "where": " | ".join(last)}
            )


def add_options(parser: argparse.ArgumentParser, *, cases: int) -> None:
    """The options of every fuzzing script."""
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="watchdog per case")
    parser.add_argument("--memory-mb", type=int, default=2048, help="of the child")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)


def do_cases(
    options: argparse.Namespace, do: Callable[[int], tuple[str, Callable[[], str]]]
) -> None:
    """The child: ``do`` gives a case's origin, and the function that tries it.

    The limit is on data and stack, not on address space: shared libraries and memory maps of
    models count there without taking memory.
    """
    logging.disable()
    warnings.simplefilter("error")  # a warning that reaches the log could quote a patient tag
    limit = options.memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for number in range(options.child, options.cases):
        origin, attempt = do(number)
        print(json.dumps({"begins": number, "origin": origin}), flush=True)
        is_defect, where = False, ""
        try:
            outcome = attempt()
        except CoreError as err:
            outcome = err.code
        except BaseException as err:  # noqa: BLE001 - whatever it is, it is a defect
            outcome, is_defect, where = type(err).__name__, True, traceback.format_exc(limit=-3)
        peak = read_peak_mb()
        said = {"ends": number, "outcome": outcome, "is_defect": is_defect, "where": where}
        print(json.dumps({**said, "peak_mb": peak}), flush=True)


def read_peak_mb() -> int:
    """Peak resident memory since this program began; ru_maxrss would count the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def run(script: str, options: argparse.Namespace, *, more: Sequence[str] = ()) -> Tally:
    """The parent: children one after another until every case is done."""
    tally, number = Tally(), options.first
    while number < options.cases:
        number = _run_child(script, options, number, tally, more)
    return tally


def _run_child(
    script: str, options: argparse.Namespace, first: int, tally: Tally, more: Sequence[str]
) -> int:
    """Start a child at case ``first``; return the case to go on with after it has ended."""
    command = [sys.executable, script, "--child", str(first), "--cases", str(options.cases)]
    command += ["--seed", str(options.seed), "--memory-mb", str(options.memory_mb), *more]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    number, origin, began, is_busy = first, None, time.monotonic(), True
    buffered, limit_s = b"", max(60.0, options.seconds)  # the first also imports
    while True:
        ready, _, _ = select.select([child.stdout], [], [], limit_s)
        if not ready:
            child.kill()
            child.wait()
            tally.add(number, str(origin), "hang")
            return number + 1
        piece = os.read(child.stdout.fileno(), 2**16)
        if not piece:
            break
        *lines, buffered = (buffered + piece).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "begins" in report:
                number, origin, limit_s = report["begins"], report["origin"], options.seconds
                began, is_busy = time.monotonic(), True
                continue
            is_busy = False
            tally.add(
                number,
                origin,
                report["outcome"],
                is_defect=report["is_defect"],
                where=report["where"],
            )
            tally.slowest = max(tally.slowest, (time.monotonic() - began, number))
            if report["peak_mb"] > tally.peak_mb:
                tally.peak_mb, tally.peak_case = report["peak_mb"], number
            if number % 1000 == 0:
                print(f"{number} cases, {tally.n_defects} defects", flush=True)
    code = child.wait()
    if code == 0:
        return int(options.cases)
    if origin is None:
        raise SystemExit("the child process does not start; run it with --child 0")
    if is_busy:
        reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        tally.add(number, origin, f"crash: {reason}")
    return number + 1


def save(
    name: str, options: argparse.Namespace, tally: Tally, *, seconds: float, packages: Sequence[str]
) -> None:
    """Write ``results/<name>.json`` and print what it says."""
    result = {
        "cases": options.cases - options.first,
        "seed": options.seed,
        "defects": tally.n_defects,
        "outcomes": dict(tally.outcomes.most_common()),
        "listed_defects": tally.defects,
        "peak_rss_mb": tally.peak_mb,
        "peak_rss_case": tally.peak_case,
        "slowest_case": {"seconds": round(tally.slowest[0], 2), "case": tally.slowest[1]},
        "seconds": round(seconds),
        "limits": {"seconds": options.seconds, "memory_mb": options.memory_mb},
        "versions": {package: version(package) for package in packages},
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    Path(RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "listed_defects"}, indent=2))
