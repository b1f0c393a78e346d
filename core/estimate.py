"""What a training run will cost on this machine, from a short trial of the very same steps.

Owns the extrapolation: seconds per image through the trunks, per step, per image embedded at the
end; bytes per stored view. It runs in a process of its own, so that its peak of memory is honest.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from core.config import RunConfig, Settings
from core.datasets import Dataset, Record
from core.embedder import Embedder, Progress, build_embedder
from core.errors import DataError
from core.fitting import draw_steps, fit
from core.trunk_cache import TrunkCache

_N_IMAGES = 16  # of each class at most
_FEW_STEPS, _MORE_STEPS = 2, 8
_MAP_S = 15.0  # compiling and fitting the map; grows little with the images


@dataclass(frozen=True)
class Estimate:
    """Costs of the whole run. Seconds, bytes; what the machine has beside what is needed."""

    trunk_s: float
    fit_s: float
    finish_s: float
    n_images: int
    n_steps: int
    memory_bytes: int  # peak of the trial process
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    device: str

    @property
    def total_s(self) -> float:
        """All stages together."""
        return self.trunk_s + self.fit_s + self.finish_s

    @property
    def has_disk(self) -> bool:
        """Whether the trunk cache fits on the disk."""
        return self.disk_bytes < self.disk_free_bytes

    @property
    def has_memory(self) -> bool:
        """Whether the peak fits into the memory that is free now."""
        return self.memory_bytes < self.memory_free_bytes


def run_trial(
    dataset: Dataset,
    config: RunConfig,
    *,
    settings: Settings,
    cache_trunk: bool = True,
    progress: Progress | None = None,
) -> Estimate:
    """Run a few images and steps of a run and extrapolate.

    Args:
        dataset: the one to be trained on.
        config: the recipe.
        settings: device and threads; the disk of its checkpoints folder is used.
        cache_trunk: as the run will have it.
        progress: told the share of the trial done.

    Raises:
        BackboneError: the backbones' pretrained parameters are not to be had here.
        DataError: no readable image of a class, or the disk has no room for the trial.
    """
    say = progress or (lambda _done, _text: None)
    say(0.05, "loading the backbones")
    embedder = build_embedder(config, settings)
    records = _choose(dataset)
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=settings.checkpoints_dir) as name:
        folder = Path(name)
        say(0.2, "running the trunks on a few images")
        began = time.monotonic()
        cache = TrunkCache(folder / "cache", embedder, records, is_stored=cache_trunk)
        opened = time.monotonic()
        cache.build()
        per_image = (time.monotonic() - opened) / len(records)
        n_bytes = sum(path.stat().st_size for path in (folder / "cache").glob("*.bin"))
        say(0.6, "training a few steps")
        per_step = _time_steps(embedder, cache, folder)
        say(0.9, "embedding a few images")
        per_embedded = _time_embedding(embedder, cache)
        load_s = opened - began
        return _extrapolate(
            dataset,
            embedder,
            seconds=(per_image, per_step, per_embedded, load_s),
            bytes_per_image=n_bytes / len(records),
            directory=settings.checkpoints_dir,
        )


def _choose(dataset: Dataset) -> list[Record]:
    """The first training images of each class; all as training, so that each has every view."""
    chosen = []
    for label in range(len(dataset.class_names)):
        mine = [r for r in dataset.subset("train") if r.label == label]
        chosen += mine[:_N_IMAGES]
    return chosen


def _time_steps(embedder: Embedder, cache: TrunkCache, folder: Path) -> float:
    """Seconds per optimiser step: two short fits, so that setting up cancels out."""
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
        place.mkdir()
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
    rows = cache.find_rows("train")[:8]
    began = time.monotonic()
    embedder.embed_activations(cache.read_clean(rows))
    return (time.monotonic() - began) / len(rows)


def _extrapolate(
    dataset: Dataset,
    embedder: Embedder,
    *,
    seconds: tuple[float, float, float, float],
    bytes_per_image: float,
    directory: Path,
) -> Estimate:
    """From one image and one step to all of them. Validation images have the clean views only."""
    per_image, per_step, per_embedded, load_s = seconds
    config = embedder.config
    n_train, n_val = len(dataset.subset("train")), len(dataset.subset("val"))
    n_clean = config.embedder.n_test_views
    val_share = n_clean / (n_clean + config.train.n_views)
    n_equal = n_train + n_val * val_share  # images with all views
    labels = [record.label for record in dataset.subset("train")]
    n_steps = _count_steps(config, labels)
    return Estimate(
        trunk_s=per_image * n_equal + load_s,
        fit_s=per_step * n_steps,
        finish_s=per_embedded * (n_train + n_val) + _MAP_S,
        n_images=n_train + n_val,
        n_steps=n_steps,
        memory_bytes=_peak_memory(),
        memory_free_bytes=int(psutil.virtual_memory().available),
        disk_bytes=int(bytes_per_image * n_equal),
        disk_free_bytes=shutil.disk_usage(directory).free,
        device=str(embedder.device),
    )


def _peak_memory() -> int:
    """Most memory this process ever held; where the system does not say, what it holds now."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
