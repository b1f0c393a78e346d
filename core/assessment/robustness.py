"""Robustness: accuracy under graded corruptions of one split.

Owns the study; core.images.corruptions owns the corruptions, core.stats.metrics the metrics.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.assessment.predict_split import read_split
from core.data.datasets import Dataset, Record, load_record
from core.errors import DataError, ImageError
from core.images.corruptions import N_LEVELS, STRENGTHS, corrupt
from core.models.ensemble import Model
from core.network.embedder import Progress
from core.stats.metrics import rank_auroc
from core.stats.proportions import measure_share

_N_IMAGES = 80


@dataclass(frozen=True)
class Row:
    """One corruption at one level; level 0 is the uncorrupted images."""

    kind: str  # "none" at level 0
    level: int
    strength: float
    n: int
    accuracy: float
    accuracy_ci95: tuple[float, float]  # over patients
    auroc: float
    n_unanswered: int  # uncertain or out of distribution
    n_novel: int


def measure_robustness(
    model: Model,
    dataset: Dataset,
    *,
    split: str,
    n_images: int = _N_IMAGES,
    kinds: Sequence[str] = tuple(STRENGTHS),
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the model on corrupted copies, with the same exclusions as for the originals.

    Args:
        model: a model or an ensemble.
        dataset: with the model's classes.
        split: of the images.
        n_images: number of images to sample, half from each class if there are enough.
        kinds: of corruption.
        seed: for the sample and the noise.
        progress: called with the fraction done.

    Returns:
        ``{"n", "seed", "rows": [Row as plain values]}``, as saved beside an evaluation.

    Raises:
        DataError: one class has no readable image.
    """
    originals = _draw(dataset, split, n_images=n_images, seed=seed)
    records = list(originals)
    hashes = {record.key: sha256 for record, sha256 in originals.items()}
    steps = [("none", 0), *((kind, level) for kind in kinds for level in range(1, N_LEVELS + 1))]
    rows = []
    for done, (kind, level) in enumerate(steps):
        if progress:
            progress(done / len(steps), f"{kind}, level {level}")
        damaged = [_damage(r, kind, level, seed=seed + i) for i, r in enumerate(records)]
        part = dataclasses.replace(dataset, records=tuple(damaged))
        rows.append(_measure(model, part, split, kind=kind, level=level, originals=hashes))
    if progress:
        progress(1.0, "done")
    return {"n": len(records), "seed": seed, "rows": [dataclasses.asdict(row) for row in rows]}


def _draw(dataset: Dataset, split: str, *, n_images: int, seed: int) -> dict[Record, str]:
    """Readable images of both classes, each with its file's sha256."""
    rng = np.random.default_rng(seed)
    records = dataset.subset(split)
    drawn: dict[Record, str] = {}
    for label in range(len(dataset.class_names)):
        mine = [record for record in records if record.label == label]
        order = rng.permutation(len(mine))
        kept: dict[Record, str] = {}
        for index in order:
            if len(kept) == n_images // 2:
                break
            try:
                kept[mine[index]] = load_record(mine[index]).sha256
            except ImageError:
                continue
        if not kept:
            raise DataError(
                f"class {dataset.class_names[label]!r} has no readable image in {split}; "
                "robustness needs images of both.",
                code="evaluation.one_class",
            )
        drawn |= kept
    return drawn


def _damage(record: Record, kind: str, level: int, *, seed: int) -> Record:
    pixels = load_record(record).pixels
    if level:
        pixels = corrupt(pixels, kind, level=level, seed=seed)
    return dataclasses.replace(record, path=None, array=np.ascontiguousarray(pixels))


def _measure(
    model: Model,
    dataset: Dataset,
    split: str,
    *,
    kind: str,
    level: int,
    originals: Mapping[str, str],
) -> Row:
    reading = read_split(model, dataset, split=split, originals=originals)
    right = (reading.p_disease > 0.5) == reading.truth
    share = measure_share(right, groups=reading.groups)
    assert share.share is not None
    unsure = np.abs(reading.p_disease - 0.5) < model.abstain_margin
    return Row(
        kind=kind,
        level=level,
        strength=STRENGTHS[kind][level - 1] if level else 0.0,
        n=share.n,
        accuracy=share.share,
        accuracy_ci95=(share.low, share.high),
        auroc=rank_auroc(reading.truth, reading.p_disease),
        n_unanswered=int((unsure | reading.is_novel).sum()),
        n_novel=int(reading.is_novel.sum()),
    )
