"""Ablation baselines: KNN and logistic regression on the frozen trunks' features.

Owns plain KNN and logistic regression on them; core.assessment.ablation.runs decides which run they
belong to.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from core.config import RunConfig, Settings
from core.data.datasets import Dataset, Record, load_ahead
from core.data.plan import SPLITS
from core.errors import ImageError
from core.gallery.k_search import search_k
from core.gallery.search import Gallery
from core.gallery.voting import cast_votes, read_shares
from core.network.build import build_embedder
from core.network.embedder import Embedder
from core.stats import metrics

logger = logging.getLogger(__name__)

_LOGISTIC_C = 10.0  # fixed in advance, not tuned


@dataclass(frozen=True, eq=False)
class Frozen:
    """The frozen trunks' features of one image."""

    features: NDArray[np.float32]  # (D,)
    sha256: str  # of the image's file


def measure_floors(
    dataset: Dataset, config: RunConfig, *, settings: Settings, memo: dict[str, Frozen | None]
) -> list[dict[str, Any]]:
    """Measure KNN and logistic regression on frozen pooled features of four views per image.

    Args:
        dataset: with all three splits.
        config: of a plain classifier, untrained.
        settings: of this machine.
        memo: frozen features by image key; missing ones are added.

    Returns:
        One row for each: the metrics of ``metrics.compute_metrics``, system, label and predictions.

    Raises:
        DataError: too few images to choose K, or every image is excluded from the vote on one.
    """
    kept, seen = _embed_frozen(dataset, config, settings=settings, memo=memo)
    features = {s: np.array([f.features for f in found]) for s, found in seen.items()}
    disease = dataset.disease_index
    labels = {s: np.array([r.label for r in records]) for s, records in kept.items()}
    gallery = Gallery(
        embeddings=features["train"],
        labels=labels["train"],
        keys=tuple(r.key for r in kept["train"]),
        splits=tuple(r.split for r in kept["train"]),
        groups=tuple(r.group or "" for r in kept["train"]),
        sha256=tuple(f.sha256 for f in seen["train"]),
    )
    barred = {s: _list_barred(gallery, kept[s], seen[s]) for s in ("val", "test")}
    k = search_k(
        gallery,
        features["val"],
        labels["val"],
        candidates=config.knn.k_candidates,
        disease_index=disease,
        excluded=barred["val"],
    ).k
    ballots = cast_votes(gallery, features["test"], k, excluded=barred["test"])
    votes = read_shares(ballots, gallery.labels, class_index=disease)
    model = LogisticRegression(C=_LOGISTIC_C, max_iter=5000)
    model.fit(features["train"], labels["train"] == disease)
    probs = model.predict_proba(features["test"])[:, 1]
    return [
        {**_describe_floor(dataset, kept["test"], p, key=key, label=label), **extra}
        for key, label, p, extra in (
            ("knn_frozen", "KNN on frozen features", votes, {"k": k}),
            ("logreg_frozen", "logistic regression on frozen features", probs, {}),
        )
    ]


def _list_barred(
    gallery: Gallery, records: Sequence[Record], seen: Sequence[Frozen]
) -> list[NDArray[np.int64]]:
    """For each image, the gallery rows excluded from its vote, as in a model's vote."""
    related = [
        gallery.find_related(sha256=frozen.sha256, group=record.group or "")
        for record, frozen in zip(records, seen, strict=True)
    ]
    return [np.array(sorted(rows), dtype=np.int64) for rows in related]


def _embed_frozen(
    dataset: Dataset, config: RunConfig, *, settings: Settings, memo: dict[str, Frozen | None]
) -> tuple[dict[str, list[Record]], dict[str, list[Frozen]]]:
    """Every readable image by split, and its frozen features: an untrained classifier's embedding.

    The features do not depend on the seed, which only assigns images to training or validation.
    """
    missing = [record for record in dataset.records if record.key not in memo]
    if missing:
        memo.update(_embed_records(build_embedder(config, settings), missing))
    kept: dict[str, list[Record]] = {split: [] for split in SPLITS}
    seen: dict[str, list[Frozen]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for record in dataset.subset(split):
            frozen = memo[record.key]
            if frozen is not None:
                kept[split].append(record)
                seen[split].append(frozen)
    return kept, seen


def _embed_records(embedder: Embedder, records: Sequence[Record]) -> dict[str, Frozen | None]:
    """Trunk features of each image, by key; None if it cannot be read."""
    hashes: dict[str, str] = {}

    def read() -> Iterator[NDArray[np.uint8]]:
        for record, image in load_ahead(records):
            if isinstance(image, ImageError):
                logger.warning("an image was left out: %s", image.code)
            else:
                hashes[record.key] = image.sha256
                yield image.pixels

    features = embedder.embed(read()).embeddings
    found = {
        key: Frozen(row, sha256)
        for (key, sha256), row in zip(hashes.items(), features, strict=True)
    }
    return {record.key: found.get(record.key) for record in records}


def _describe_floor(
    dataset: Dataset,
    records: Sequence[Record],
    p_disease: NDArray[np.float64],
    *,
    key: str,
    label: str,
) -> dict[str, Any]:
    truth = np.array([record.label == dataset.disease_index for record in records])
    groups = [record.group or "" for record in records]
    return {
        **dataclasses.asdict(metrics.compute_metrics(truth, p_disease, groups=groups)),
        "system": key,
        "label": label,
        "predictions": {
            "keys": [record.key for record in records],
            "groups": groups,
            "is_disease": truth.tolist(),
            "p_disease": [round(float(p), 6) for p in p_disease],
        },
    }
