"""Shared by the benchmarks: alternating runs, peak memory of a child, the result file."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "openvino", "timm", "faiss-cpu", "scikit-learn", "grad-cam", "numpy")


def alternate(
    sides: dict[str, Callable[[], object]], *, rounds: int, warms_up: bool = True
) -> dict[str, list[float]]:
    """Time each side in seconds, alternating; a first warm-up round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + warms_up):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if turn >= warms_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure_ratio(slow: list[float], fast: list[float]) -> float:
    """Ratio of the medians, 2 decimals."""
    return round(median(slow) / median(fast), 2)


def measure_child(script: str, arguments: list[str]) -> dict[str, object]:
    """Run a script of this folder in a separate process; its last line of output is JSON."""
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peak_mb() -> float:
    """Peak resident memory of this process; getrusage would give a child its parent's peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024.0


def write_result(name: str, document: dict[str, object]) -> None:
    """Write results/<name>.json with a description of the machine, atomically."""
    whole = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {package: version(package) for package in PACKAGES},
        **document,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
