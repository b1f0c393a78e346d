"""Fine-tuning from the trunk cache compared with running the whole network in every step.

Both sides use the same loss, steps and learning rates, and the epochs and views of the recipe; each
runs once, one after the other. Cached: the trunks run once (compiled or in bfloat16), and the
epochs train the tails. Plain: every step reads the images, augments them and runs the frozen stages
in float32 in torch, without gradients. Both end by embedding the gallery with the recipe's
test-time views, which the vote needs. Result: results/finetune.json with seconds, `epoch_speedup`
(epochs after the cache is built) and `total_speedup` (cache, all epochs and gallery, both at the
validation accuracy that is printed with it).
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from core.config import RunConfig, Settings, build_preset
from core.data.datasets import Dataset, read_dataset
from core.images import phantom
from core.network.build import build_embedder
from core.network.embedder import Embedder
from core.training.finalise import _embed_split
from core.training.fitting import fit
from core.training.initialisation import begin_with_pca
from core.training.live_metrics import _Watcher
from core.training.trunk_cache import TrunkCache


def build(config: RunConfig, *, is_plain: bool) -> Embedder:
    """Build the network of one side."""
    if not is_plain:
        return build_embedder(config, Settings.from_env())
    exact = config.with_overrides(["embedder.precision=float32"])
    embedder = build_embedder(exact, Settings.from_env())
    trunks = tuple(dataclasses.replace(b, compiled=None) for b in embedder.backbones)
    return dataclasses.replace(embedder, backbones=trunks)


def run_side(
    config: RunConfig, dataset: Dataset, folder: Path, *, is_plain: bool
) -> dict[str, Any]:
    """Train once; return seconds of the cache and of each epoch, and validation metrics."""
    embedder = build(config, is_plain=is_plain)
    records = [*dataset.subset("train"), *dataset.subset("val")]
    folder.mkdir()
    began = time.perf_counter()
    cache = TrunkCache(folder / "cache", embedder, records, is_stored=not is_plain)
    cache.build()
    build_s = time.perf_counter() - began
    begin_with_pca(embedder, cache)
    began = time.perf_counter()
    fit(embedder, cache, folder, log=lambda _: None)
    fit_s = time.perf_counter() - began
    began = time.perf_counter()
    _embed_split(embedder, cache, np.arange(len(records)))
    gallery_s = time.perf_counter() - began
    return {
        "cache_s": round(build_s, 2),
        "epoch_s": round(fit_s / config.train.epochs, 3),
        "gallery_s": round(gallery_s, 2),
        "total_s": round(build_s + fit_s + gallery_s, 2),
        "validation": measure_validation(embedder, cache),
        "n_val": len(cache.find_rows("val")),
    }


def measure_validation(embedder: Embedder, cache: TrunkCache) -> dict[str, float]:
    """Accuracy and AUROC of the neighbour vote on validation, as the live page measures them."""
    found = _Watcher(embedder, cache).measure()
    return {name: round(float(found[name]), 4) for name in ("accuracy", "auroc")}


def compare(preset: str, recipe: str, *, n_images: int) -> dict[str, Any]:
    """Run both sides of one recipe on synthetic images and compute the ratios."""
    config = build_preset(preset, recipe=recipe).with_overrides(["train.val_fraction=0.25"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phantom.write_dataset(folder / "data", n_train=n_images, n_test=4, size=384)
        dataset = read_dataset(folder / "data", val_fraction=0.25)
        sides = {
            side: run_side(config, dataset, folder / side, is_plain=side == "plain")
            for side in ("cached", "plain")
        }
    ratios = {
        f"{part}_speedup": round(sides["plain"][f"{part}_s"] / sides["cached"][f"{part}_s"], 2)
        for part in ("epoch", "total")
    }
    return {
        "tail_depth": config.embedder.tail_depth,
        "n_epochs": config.train.epochs,
        "n_views": config.train.n_views,
        "n_test_views": config.embedder.n_test_views,
        "sides": sides,
        **ratios,
    }


def main() -> None:
    """Measure both recipes and write the result; the headline is the method's own recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="offline")
    parser.add_argument("--images", type=int, default=128)
    options = parser.parse_args()
    recipes = {
        name: compare(options.preset, name, n_images=options.images)
        for name in ("report", "robust")
    }
    harness.write_result(
        "finetune",
        {
            "n_threads": torch.get_num_threads(),
            "preset": options.preset,
            "n_images": options.images,
            "recipes": recipes,
            "recipe": "report",
            **{key: recipes["report"][key] for key in ("epoch_speedup", "total_speedup")},
        },
    )
    print(recipes)


if __name__ == "__main__":
    main()
