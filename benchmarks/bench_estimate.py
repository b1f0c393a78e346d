"""Accuracy of the estimate of a run's time, memory and disk, for small runs on this machine.

Each run is measured as in the app: a ``trial`` job predicts, then a ``train`` job with the same
parameters is observed from outside: time from start to end, the worker's peak resident memory, and
the peak disk usage of its run folder. The images are synthetic phantoms, the backbones those of the
``offline`` preset at 96 px. On a shared machine, CPU seconds are compared: ``total_cpu_s``. The
disk estimate allows for two checkpoints, as while one replaces the other; sampling usually misses
that moment, so the ratio is above 1.

    PYTHONPATH=. python benchmarks/bench_estimate.py --json benchmarks/results/estimate.json
"""

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from core.config import Settings
from core.files.whole import write_text
from core.images.phantom import write_dataset
from core.jobs import queue
from core.jobs.state import Job
from core.models.bundle_files import read_json

SMALL = ["preprocess.input_size=96"]  # the packaged backbones at a size suitable for a shared core
RUNS: dict[str, dict[str, Any]] = {
    "24 images": {"n_train": 24},
    "96 images": {"n_train": 96},
    "96 images, recipe report": {"n_train": 96, "recipe": "report"},
    "48 images, ensemble": {"n_train": 48, "is_ensemble": True},
}


def read_peak(pid: int) -> int:
    """Peak resident memory of a process so far, bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(s.split()[1]) * 1024 for s in lines if s.startswith("VmHWM")), 0)


def count_bytes(folder: Path) -> int:
    """Disk usage of the files below a folder, bytes."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total


@dataclass
class Watched:
    """Resources used by a job, observed from outside. Seconds, bytes."""

    total_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0

    @property
    def cpu_share(self) -> float:
        """Fraction of one core that its worker received."""
        return self.cpu_s / self.total_s


def watch(settings: Settings, job: Job) -> Watched:
    """Observe a job until its end."""
    seen = Watched()
    while (now := queue.find(settings.checkpoints_dir, job.job_id)).is_open:
        if now.worker is not None:
            seen.memory_bytes = max(seen.memory_bytes, read_peak(now.worker.pid))
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(now.worker.pid).cpu_times()
                seen.cpu_s = times.user + times.system
        runs = count_bytes(settings.checkpoints_dir / ".runs")
        seen.disk_bytes = max(seen.disk_bytes, runs)
        time.sleep(0.3)
    if now.status != "done":
        raise SystemExit(f"{now.title}: {now.status}. {now.error}")
    began, ended = (datetime.fromisoformat(text) for text in (now.started, now.ended))
    seen.total_s = (ended - began).total_seconds()
    return seen


def measure(name: str, run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Estimate one run, run it, and compare."""
    data = folder / f"data-{run['n_train']}"
    if not data.is_dir():
        write_dataset(data, n_train=run["n_train"], n_test=8, size=128)
    settings = Settings(checkpoints_dir=folder / "checkpoints", device="cpu", n_threads=1)
    params = {"data": str(data), "preset": "offline", "is_synthetic": True, "overrides": SMALL}
    params |= {key: value for key, value in run.items() if key != "n_train"}
    job = queue.start("trial", params, title=name, settings=settings)
    trial = watch(settings, job)
    told = queue.read_result(settings.checkpoints_dir, job.job_id)
    model = f"m{len(list(settings.checkpoints_dir.iterdir()))}"
    job = queue.start("train", {**params, "name": model}, title=name, settings=settings)
    train = watch(settings, job)
    actual: dict[str, float] = {
        "total_s": train.total_s,
        "memory_bytes": train.memory_bytes,
        "disk_bytes": train.disk_bytes,
    }
    if not run.get("is_ensemble"):
        stages = read_json(settings.checkpoints_dir / model / "metrics.json")["seconds"]
        actual |= {"trunk_s": stages["trunk"], "fit_s": stages["fit"]}
        actual["start_and_finish_s"] = train.total_s - stages["trunk"] - stages["fit"]
    told["start_and_finish_s"] = told["start_s"] + told["finish_s"]
    # Other work shares the core, so CPU seconds are compared.
    equal = told["total_s"] * trial.cpu_share / train.cpu_s
    return {
        "run": name,
        "trial_s": round(trial.total_s, 1),
        "cpu_share": {"trial": round(trial.cpu_share, 2), "train": round(train.cpu_share, 2)},
        "predicted": {key: round(told[key], 2) for key in actual},
        "actual": {key: round(value, 2) for key, value in actual.items()},
        "predicted_over_actual": {
            "total_cpu_s": round(equal, 2),
            "memory": round(told["memory_bytes"] / train.memory_bytes, 2),
            "disk": round(told["disk_bytes"] / train.disk_bytes, 2),
        },
    }


def main() -> None:
    """Measure every run in turn; the JSON is written after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default="", help="part of a run's name")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, other work beside it",
        "versions": {name: version(name) for name in ("torch", "timm", "umap-learn")},
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as name:
        for title, run in RUNS.items():
            if arguments.only in title:
                result["runs"].append(measure(title, run, Path(name)))
                print(json.dumps(result["runs"][-1]), flush=True)
                write_text(arguments.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
