"""Every kind of job for real: a separate process, its result on disk, from data to comparison."""

import time
from pathlib import Path
from typing import Any

import pytest

from core.config import Settings
from core.errors import JobError
from core.jobs import queue
from core.jobs.metrics import read_metrics
from core.models import registry
from core.models.bundle_files import read_bundle_config

pytestmark = pytest.mark.slow

TINY = {"preset": "tiny-random", "overrides": ["train.epochs=1", "train.val_fraction=0.25"]}


def finish(settings: Settings, kind: str, params: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Queue a job, wait until it ends, and return its result and folder."""
    job = queue.start(kind, params, title=kind, settings=settings)
    end = time.monotonic() + 1200
    while (now := queue.find(settings.checkpoints_dir, job.job_id)).is_open:
        if time.monotonic() > end:
            queue.cancel(settings.checkpoints_dir, job.job_id)
            pytest.fail(f"it did not end in time: {now}")
        time.sleep(0.3)
    folder = queue.folder_of(settings.checkpoints_dir, job.job_id)
    assert now.status == "done", (folder / "log.txt").read_text(encoding="utf-8")[-3000:]
    return queue.read_result(settings.checkpoints_dir, job.job_id), folder


def test_check_measure_train_and_compare_one_after_another(
    phantom_folder: Path, tmp_path: Path
) -> None:
    settings = Settings(checkpoints_dir=tmp_path, device="cpu", n_threads=1)
    data = str(phantom_folder)

    found, folder = finish(settings, "audit", {"data": data, "seeds": [0, 3], "val_fraction": 0.25})
    assert set(found["findings"]) == set(found["counts"]) == {"0", "3"}
    assert found["report"]["n_images"] == 64
    assert {f["code"] for f in found["findings"]["3"]} == {"few"}
    for keys in found["samples"].values():
        assert keys
        assert all((folder / "pictures" / found["pictures"][key]).is_file() for key in keys)

    cost, _folder = finish(settings, "trial", {**TINY, "data": data, "is_ensemble": True})
    assert min(cost[key] for key in ("start_s", "trunk_s", "fit_s", "finish_s")) > 0
    assert (cost["device"], cost["gpu_name"], cost["has_gpu_memory"]) == ("cpu", "", True)
    assert not list(tmp_path.glob(".trial-*"))

    params = {**TINY, "data": data, "name": "eyes", "is_ensemble": True, "seed": 3}
    made, folder = finish(settings, "train", params)
    assert made == {"model_id": "eyes"}
    ensemble = registry.find_model(tmp_path, "eyes")
    assert ensemble.members == ("eyes-triplet", "eyes-metric")
    assert {read_bundle_config(tmp_path / m).run.train.seed for m in ensemble.members} == {3}
    assert {r["member"] for r in read_metrics(folder)} == {"eyes-metric"}
    assert {p.name for p in (folder / "tensorboard").iterdir()} == set(ensemble.members)
    with pytest.raises(JobError, match="'eyes-metric' exists"):
        queue.start("train", {**params, "name": "eyes-metric"}, title="", settings=settings)

    pair = {"first": "eyes-metric", "second": "eyes", "data": data, "split": "test"}
    compared, folder = finish(settings, "compare", pair)
    assert compared["n"] == 16
    flips = [row for row in compared["rows"] if row["change"] != "same"]
    assert compared["mcnemar"]["n_only_first"] + compared["mcnemar"]["n_only_second"] == len(flips)
    assert all((folder / "pictures" / row["picture"]).is_file() for row in flips)
