"""Metrics computed during training, and that measuring changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.network.build import build_embedder
from core.training.fitting import compute_active, fit
from core.training.live_metrics import build_watcher
from core.training.trunk_cache import TrunkCache


def test_active_triplets_by_hand() -> None:
    points = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0]], dtype=np.float32)
    assert compute_active(points, np.array([0, 0, 1, 1]), margin=0.5) == 0.0
    assert compute_active(points, np.array([0, 1, 0, 1]), margin=0.5) == 1.0
    # each image's positive is at 0.2; its nearest negative at 0.8 (outer) or 0.6 (inner)
    line = np.array([[0.0], [0.2], [0.8], [1.0]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1])
    assert compute_active(line, labels, margin=0.3) == 0.0
    assert compute_active(line, labels, margin=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("triplet", marks=pytest.mark.slow),
        "metric-ensemble",
        pytest.param("cross-entropy", marks=pytest.mark.slow),
    ],
)
def test_a_watched_run_ends_at_the_same_weights(
    phantom_dataset: Dataset, tiny_config: RunConfig, tmp_path: Path, objective: str
) -> None:
    config = tiny_config.with_overrides([f"objective.name={objective}", "train.epochs=6"])
    records: list[dict[str, Any]] = []
    images = [*phantom_dataset.subset("train"), *phantom_dataset.subset("val")]
    ends = []
    for name in ("calm", "seen"):
        embedder = build_embedder(config, Settings(device="cpu"))
        cache = TrunkCache(tmp_path / "cache", embedder, images)
        cache.build()
        (tmp_path / name).mkdir()
        watch = build_watcher(embedder, cache, sink=records.append) if name == "seen" else None
        fit(embedder, cache, tmp_path / name, log=lambda _: None, watch=watch)
        ends.append({k: v.clone() for k, v in embedder.net.state_dict().items()})
    calm, seen = ends
    assert all(torch.equal(calm[key], seen[key]) for key in calm)
    last = records[-1]
    assert last["step"] == last["n_steps"]
    assert last["adapter_lr"] < config.train.adapter_lr
    validation = last["validation"]
    assert validation["n"] == len(validation["map"]["xy"]) == len(phantom_dataset.subset("val"))
    assert 0 <= validation["auroc"] <= 1
    assert [s["k"] for s in validation["k_scores"]] == (
        [] if objective == "cross-entropy" else [1, 3, 5]
    )
