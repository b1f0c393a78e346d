"""Estimate a run's time, memory and disk from a short trial of the same steps.

Owns the extrapolation: seconds per image through the trunks, per step, per image embedded at the
end, and for the map; bytes per stored view. It runs in its own process, so that peak memory is
measured correctly. Accuracy of the estimate: ``benchmarks/bench_estimate.py``.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from core.config import RunConfig, Settings
from core.data.datasets import Dataset, Record
from core.errors import DataError
from core.files import abandoned
from core.gallery import projection
from core.models.bundle_files import freeze_trained
from core.network.build import build_embedder
from core.network.devices import read_gpu_memory
from core.network.embedder import Embedder, Progress
from core.training.fitting import draw_steps, fit
from core.training.trunk_cache import TrunkCache

_N_IMAGES = 16  # per class at most
_FEW_STEPS, _MORE_STEPS = 2, 8
_N_MAPPED = 1000  # maximum images in the trial's map
_FINISH_BYTES = 130_000_000  # memory for live metrics and evaluation; measured: 102 and 163 MB
_MAP_POWER = 1.6  # growth of map time with images: 1.2 s for 1000, 11.5 s for 4000 on one core


@dataclass(frozen=True)
class Estimate:
    """Cost of the whole run in seconds and bytes, with what the machine has available."""

    start_s: float
    trunk_s: float
    fit_s: float
    finish_s: float
    n_images: int
    n_steps: int
    memory_bytes: int  # peak of the trial process, plus what only the full run needs
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    device: str
    gpu_name: str = ""  # empty: no GPU is used
    gpu_bytes: int = 0  # the trial's peak GPU memory
    gpu_free_bytes: int = 0  # available to this run, including the trial's own share

    @property
    def total_s(self) -> float:
        """All stages together."""
        return self.start_s + self.trunk_s + self.fit_s + self.finish_s

    @property
    def has_disk(self) -> bool:
        """Whether the run's files fit on the disk."""
        return self.disk_bytes < self.disk_free_bytes

    @property
    def has_memory(self) -> bool:
        """Whether the peak fits into the free memory."""
        return self.memory_bytes < self.memory_free_bytes

    @property
    def has_gpu_memory(self) -> bool:
        """Whether the peak fits into the free GPU memory; true without a GPU."""
        return self.gpu_bytes < self.gpu_free_bytes or not self.gpu_name


def run_trial(
    dataset: Dataset,
    config: RunConfig,
    *,
    settings: Settings,
    cache_trunk: bool = True,
    is_ensemble: bool = False,
    process_s: float = 0.0,
    progress: Progress | None = None,
) -> Estimate:
    """Run a few images and steps of a run and extrapolate.

    Args:
        dataset: the data set to train on.
        config: the training recipe.
        settings: device and threads; the disk is that of its checkpoints folder.
        cache_trunk: as in the run.
        is_ensemble: whether the run trains two models on the same trunks and their ensemble.
        process_s: seconds this process took to start, assumed the same for the run.
        progress: called with the fraction of the trial done.

    Raises:
        BackboneError: the backbones' pretrained parameters are not available on this machine.
        DataError: a class has no readable image, or the disk has no room for the trial.
    """
    say = progress or (lambda _done, _text: None)
    say(0.05, "loading the backbones")
    began = time.monotonic()
    members = config.for_members("trial").values() if is_ensemble else [config]
    embedders = [build_embedder(member, settings) for member in members]
    load_s = time.monotonic() - began
    records = _choose(dataset)
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".trial-", suffix=f"-{os.getpid()}", dir=settings.checkpoints_dir
    ) as name:
        folder = abandoned.mark(Path(name))
        say(0.2, "running the trunks on a few images")
        cache = TrunkCache(folder / "cache", embedders[0], records, is_stored=cache_trunk)
        began = time.monotonic()
        cache.build()
        per_image = (time.monotonic() - began) / len(records)
        n_bytes = sum(path.stat().st_size for path in (folder / "cache").glob("*.bin"))
        say(0.5, "training a few steps")
        per_step = [
            _time_steps(one, cache, folder / one.config.objective.name) for one in embedders
        ]
        # A new checkpoint is written beside the one it replaces; a member's is kept as its model.
        kept = max(path.stat().st_size for path in folder.rglob("last.ckpt"))
        n_kept = 2 * kept + (len(embedders) - 1) * kept // 3
        say(0.75, "embedding a few images")
        per_embedded = [_time_embedding(one, cache) for one in embedders]
        say(0.85, "drawing a map")
        map_s = _time_map(len(dataset.subset("train")))
    n_train, n_val = len(dataset.subset("train")), len(dataset.subset("val"))
    n_clean = config.embedder.n_test_views
    # Validation images have only the clean views; n_equal is the equivalent with all views.
    n_equal = n_train + n_val * n_clean / (n_clean + config.train.n_views)
    labels = [record.label for record in dataset.subset("train")]
    n_steps = _count_steps(config, labels)
    device = embedders[0].device
    gpu = read_gpu_memory(device)
    return Estimate(
        start_s=process_s + load_s,
        trunk_s=per_image * n_equal,
        fit_s=sum(per_step) * n_steps,
        finish_s=sum(per_embedded) * (n_train + n_val) + map_s,
        n_images=n_train + n_val,
        n_steps=n_steps * len(embedders),
        memory_bytes=_peak_memory() + _FINISH_BYTES,
        memory_free_bytes=int(psutil.virtual_memory().available),
        disk_bytes=int(n_bytes / len(records) * n_equal) + n_kept,
        disk_free_bytes=shutil.disk_usage(settings.checkpoints_dir).free,
        device=str(device),
        gpu_name=gpu.name if gpu else "",
        gpu_bytes=gpu.peak_bytes if gpu else 0,
        gpu_free_bytes=gpu.free_bytes if gpu else 0,
    )


def _choose(dataset: Dataset) -> list[Record]:
    """Choose the first images of each class, all as training, so that each has every view."""
    chosen = []
    for label in range(len(dataset.class_names)):
        mine = [r for r in dataset.subset("train") if r.label == label]
        chosen += mine[:_N_IMAGES]
    return chosen


def _time_steps(embedder: Embedder, cache: TrunkCache, folder: Path) -> float:
    """Seconds per optimiser step: from two short fits, so that set-up time cancels out."""
    rows = cache.find_rows("train")
    labels = [cache.records[row].label for row in rows]
    if len(set(labels)) < 2:
        raise DataError(
            "no readable image of a class among the first; run the audit to see which fail.",
            code="data.too_few",
        )
    per_class = min(embedder.config.train.n_images_per_class, max(2, len(rows) // 2))
    took = []
    for index, n_steps in enumerate((_FEW_STEPS, _MORE_STEPS)):
        n_epochs = max(1, round(n_steps * per_class / max(labels.count(0), labels.count(1))))
        train = replace(embedder.config.train, epochs=n_epochs, n_images_per_class=per_class)
        short = replace(embedder, config=replace(embedder.config, train=train))
        place = folder / f"fit-{index}"
        place.mkdir(parents=True)
        began = time.monotonic()
        fit(short, cache, place, log=lambda _text: None)
        took.append((time.monotonic() - began, _count_steps(short.config, labels)))
    (few_s, few), (more_s, more) = took
    each = (more_s - few_s) / (more - few) if more > few else more_s / more
    scale = embedder.config.train.n_images_per_class / per_class
    return max(each, more_s / more * 0.1) * scale


def _count_steps(config: RunConfig, labels: Sequence[int]) -> int:
    steps = draw_steps(
        np.array(labels, dtype=np.int64),
        np.arange(len(labels), dtype=np.int64),
        n_images_per_class=config.train.n_images_per_class,
        n_views=1,
        seed=0,
        epoch=0,
    )
    return len(steps) * config.train.epochs


def _time_embedding(embedder: Embedder, cache: TrunkCache) -> float:
    """Seconds per image to embed the gallery, with the finished model's fast tails."""
    rows = cache.find_rows("train")[:8]
    finished = freeze_trained(embedder)
    began = time.monotonic()
    finished.embed_activations(cache.read_clean(rows))
    return (time.monotonic() - began) / len(rows)


def _time_map(n: int) -> float:
    """Seconds for a map of n images: compiling, then fitting random directions."""
    rng = np.random.default_rng(0)
    n_tried = min(n, _N_MAPPED)
    points = rng.normal(size=(n_tried, 128)).astype(np.float32)
    took = []
    for count in (min(n_tried, 2 * _N_IMAGES), n_tried):
        began = time.monotonic()
        projection.fit(points[:count], seed=0)
        took.append(time.monotonic() - began)
    compile_s, fit_s = took
    return float(compile_s + fit_s * (n / n_tried) ** _MAP_POWER)


def _peak_memory() -> int:
    """Peak memory of this process; current memory where the system does not report a peak."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
