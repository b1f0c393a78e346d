"""Image + ModelBundle -> Diagnosis: the single call behind the page, the command line, a notebook.

Owns the order of the steps and the decision to answer or abstain. Images go one at a time under
the bundle's lock: several users share one model, and Grad-CAM puts hooks on it.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core import evaluation, explain
from core.bundle import ModelBundle
from core.datasets import Dataset, load_record
from core.diagnosis import Diagnosis, LeftOut, MemberVote, Neighbour, Novelty
from core.embedder import Embedded
from core.errors import CoreError, DataError, ImageError
from core.image_io import Image, thumbnail
from core.knn import compute_shares, vote

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
_SHOWN_PX = 1024
_BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class _Vote:
    """The ledger of one image before it is put into words."""

    rows: NDArray[np.int64]  # (K,) ascending distance
    distances: NDArray[np.float32]  # (K,)
    scores: NDArray[np.float32]  # (C,) summed shares
    p_disease: float  # calibrated
    related: Mapping[int, str]  # rows that might not vote


def diagnose(
    bundle: ModelBundle,
    images: Sequence[Image],
    *,
    explain: bool = True,
    progress: Progress | None = None,
) -> list[Diagnosis]:
    """Answer with the evidence, one Diagnosis per image, in order.

    Args:
        bundle: the model.
        images: decoded images; what could not be decoded goes through ``reject``.
        explain: compute the heatmaps (they take about as long as the rest on a CPU).
        progress: told the share done after each image.

    Returns:
        Status "answered", or "abstained" when the calibrated probability is too near 0.5 or the
        image is not of the kind the model knows. An image that fails is "rejected", alone.
    """
    diagnoses = []
    for index, image in enumerate(images):
        try:
            with bundle.lock:
                diagnoses.append(_diagnose_one(bundle, image, with_heatmaps=explain))
        except CoreError as err:
            diagnoses.append(reject(image.name, err, bundle=bundle))
        if progress:
            progress((index + 1) / len(images), f"{index + 1} of {len(images)} images")
    return diagnoses


def reject(name: str, error: CoreError, *, bundle: ModelBundle) -> Diagnosis:
    """The record of a file that got no answer, with the reason."""
    return Diagnosis(
        file=name,
        status="rejected",
        model_id=bundle.model_id,
        data_id=bundle.data_id,
        created=_now(),
        disease_class=bundle.disease_class,
        error=str(error),
        error_code=error.code,
        error_params=dict(error.params),
    )


def evaluate(
    bundle: ModelBundle, dataset: Dataset, *, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a model on one split of a data set.

    Args:
        bundle: the model.
        dataset: with the same class names as the model's.
        split: "train", "val" or "test". Images that are in the gallery do not vote on themselves.

    Returns:
        The ``evaluate`` JSON of DESIGN section 4.

    Raises:
        DataError: other classes, an empty split, or one class only.
    """
    if set(dataset.class_names) != set(bundle.class_names):
        raise DataError(
            f"model {bundle.model_id!r} knows the classes {', '.join(bundle.class_names)}; "
            f"the data has {', '.join(dataset.class_names)}. Rename the class folders to match.",
            code="data.classes",
        )
    records = dataset.subset(split)
    if not records:
        raise DataError(
            f"the data has no {split} split; it has "
            f"{', '.join(sorted({r.split for r in dataset.records}))}.",
            code="data.split",
        )
    unreadable: dict[str, str] = {}
    pending: list[Image] = []
    truth: list[bool] = []
    groups: list[str] = []
    p_disease: list[float] = []
    is_novel: list[bool] = []

    def flush() -> None:
        recent = groups[len(p_disease) :]
        for voted, novel in _vote_batch(bundle, pending, groups=recent):
            p_disease.append(voted.p_disease)
            is_novel.append(novel.is_novel)
        pending.clear()

    for index, record in enumerate(records):
        try:
            pending.append(load_record(record))
        except ImageError as err:
            unreadable[record.key] = str(err)
        else:
            truth.append(dataset.class_names[record.label] == bundle.disease_class)
            groups.append(record.group or "")
        if pending and (len(pending) == _BATCH_SIZE or index == len(records) - 1):
            flush()
        if progress:
            progress((index + 1) / len(records), f"{index + 1} of {len(records)} images")
    if pending:
        flush()
    return _describe_evaluation(
        bundle,
        split=split,
        data=dataset.data_id,
        truth=np.array(truth, dtype=bool),
        p_disease=np.array(p_disease),
        is_novel=np.array(is_novel, dtype=bool),
        groups=groups,
        unreadable=unreadable,
    )


def _describe_evaluation(
    bundle: ModelBundle,
    *,
    split: str,
    data: str,
    truth: NDArray[np.bool_],
    p_disease: NDArray[np.float64],
    is_novel: NDArray[np.bool_],
    groups: list[str],
    unreadable: dict[str, str],
) -> dict[str, Any]:
    report = evaluation.evaluate(truth, p_disease, groups=groups)
    unsure = np.abs(p_disease - 0.5) < bundle.config.run.knn.abstain_margin
    answered = ~unsure & ~is_novel
    right = (p_disease > 0.5) == truth
    return {
        "model_id": bundle.model_id,
        "data": data,
        "split": split,
        **dataclasses.asdict(report),
        "k": bundle.contents.calibration.k,
        "tta": bundle.config.run.embedder.tta,
        "members": [
            {
                "model_id": bundle.model_id,
                "weight": 1.0,
                "accuracy": report.accuracy,
                "auroc": report.auroc,
            }
        ],
        # One model agrees with itself; an ensemble fills this in.
        "agreement": {"agree": report.n, "disagree": 0, "disputed": []},
        "coverage_at_abstention": {
            "coverage": float(answered.mean()),
            "accuracy": float(right[answered].mean()) if answered.any() else None,
            "n_answered": int(answered.sum()),
            "n_uncertain": int((unsure & ~is_novel).sum()),
            "n_novel": int(is_novel.sum()),
        },
        "unreadable": unreadable,
    }


def _vote_batch(
    bundle: ModelBundle, images: Sequence[Image], *, groups: Sequence[str]
) -> list[tuple[_Vote, Novelty]]:
    with bundle.lock:
        embedded = bundle.embedder.embed_batch([image.pixels for image in images])
    novelties = _measure_novelty(bundle, embedded)
    return [
        (_vote_one(bundle, embedded.embeddings[i], image=image, group=groups[i]), novelties[i])
        for i, image in enumerate(images)
    ]


def _vote_one(
    bundle: ModelBundle, embedding: NDArray[np.float32], *, image: Image, group: str = ""
) -> _Vote:
    gallery, calibration = bundle.gallery, bundle.contents.calibration
    related = gallery.find_related(sha256=image.sha256, group=group)
    # A copy of a gallery image brings its whole patient: none of that patient may vote.
    for row in [row for row, reason in related.items() if reason == "duplicate"]:
        others = gallery.find_related(sha256=image.sha256, group=gallery.groups[row])
        related = {**others, **related}
    excluded = [np.array(sorted(related), dtype=np.int64)]
    distances, rows = gallery.search(embedding[None], calibration.k, excluded=excluded)
    scores = vote(distances, gallery.labels[rows], n_classes=len(bundle.class_names))[0]
    p_disease = float(calibration.apply(scores[[bundle.config.disease_index]])[0])
    return _Vote(rows[0], distances[0], scores, p_disease, related)


def _measure_novelty(bundle: ModelBundle, embedded: Embedded) -> list[Novelty]:
    reference = bundle.contents.novelty
    scores = reference.score(embedded.descriptors)
    percentiles = reference.compute_percentiles(scores)
    return [
        Novelty(float(percentile), bool(score > bundle.novelty_limit))
        for score, percentile in zip(scores, percentiles, strict=True)
    ]


def _diagnose_one(bundle: ModelBundle, image: Image, *, with_heatmaps: bool) -> Diagnosis:
    embedded = bundle.embedder.embed_batch([image.pixels])
    embedding = embedded.embeddings[0]
    voted = _vote_one(bundle, embedding, image=image)
    novelty = _measure_novelty(bundle, embedded)[0]
    disease = bundle.config.disease_index
    predicted = disease if voted.p_disease > 0.5 else 1 - disease
    by_class = {disease: voted.p_disease, 1 - disease: 1.0 - voted.p_disease}
    probabilities = {name: by_class[i] for i, name in enumerate(bundle.class_names)}
    reason = _find_abstain_reason(bundle, voted, novelty)
    shown = thumbnail(image.pixels, max_px=_SHOWN_PX)
    heatmaps = {}
    if with_heatmaps:
        activations = [a[:, 0] for a in embedded.activations]
        heatmaps = _draw_heatmaps(
            bundle, activations, embedding, voted, class_index=predicted, shape=shown.shape
        )
    xy = bundle.projection.place(bundle.gallery, embedded.embeddings)[0]
    return Diagnosis(
        file=image.name,
        status="abstained" if reason else "answered",
        model_id=bundle.model_id,
        data_id=bundle.data_id,
        created=_now(),
        disease_class=bundle.disease_class,
        predicted_class=bundle.class_names[predicted],
        probabilities=probabilities,
        vote_shares={c: float(s) for c, s in zip(bundle.class_names, voted.scores, strict=True)},
        k=len(voted.rows),
        neighbours=_write_ledger(bundle, voted),
        nearest_other=_find_nearest_other(bundle, embedding, voted, predicted=predicted),
        left_out=tuple(
            LeftOut(row, bundle.gallery.keys[row], _as_reason(why))
            for row, why in sorted(voted.related.items())
        ),
        members=(MemberVote(bundle.model_id, probabilities, 1.0),),
        novelty=novelty,
        heatmaps=heatmaps,
        heatmap_class=bundle.class_names[predicted] if heatmaps else None,
        map_xy=(float(xy[0]), float(xy[1])),
        pixels=shown,
        abstain_reason=reason,
    )


def _find_abstain_reason(
    bundle: ModelBundle, voted: _Vote, novelty: Novelty
) -> Literal["uncertain", "novel"] | None:
    if novelty.is_novel:
        return "novel"
    margin = bundle.config.run.knn.abstain_margin
    return "uncertain" if abs(voted.p_disease - 0.5) < margin else None


def _as_reason(why: str) -> Literal["duplicate", "group"]:
    return "duplicate" if why == "duplicate" else "group"


def _write_ledger(bundle: ModelBundle, voted: _Vote) -> tuple[Neighbour, ...]:
    shares = compute_shares(voted.distances[None])[0]
    return tuple(
        _describe_neighbour(bundle, rank=rank, row=int(row), distance=float(d), share=float(share))
        for rank, (row, d, share) in enumerate(
            zip(voted.rows, voted.distances, shares, strict=True), start=1
        )
    )


def _describe_neighbour(
    bundle: ModelBundle, *, rank: int, row: int, distance: float, share: float
) -> Neighbour:
    label = int(bundle.gallery.labels[row])
    return Neighbour(
        rank=rank,
        index=row,
        key=bundle.gallery.keys[row],
        label=label,
        class_name=bundle.class_names[label],
        distance=distance,
        weight=1.0 / max(distance, 1e-9),
        share=share,
    )


def _find_nearest_other(
    bundle: ModelBundle, embedding: NDArray[np.float32], voted: _Vote, *, predicted: int
) -> Neighbour | None:
    """The nearest case of the class that was not predicted; its share is 0 if it did not vote."""
    gallery = bundle.gallery
    distances = np.linalg.norm(gallery.embeddings - embedding, axis=1)
    distances[gallery.labels == predicted] = np.inf
    distances[list(voted.related)] = np.inf
    row = int(distances.argmin())
    if not np.isfinite(distances[row]):
        return None
    for neighbour in _write_ledger(bundle, voted):
        if neighbour.index == row:
            return neighbour
    rank = int((np.linalg.norm(gallery.embeddings - embedding, axis=1) < distances[row]).sum()) + 1
    return _describe_neighbour(
        bundle, rank=rank, row=row, distance=float(distances[row]), share=0.0
    )


def _draw_heatmaps(
    bundle: ModelBundle,
    activations: Sequence[Tensor],
    embedding: NDArray[np.float32],
    voted: _Vote,
    *,
    class_index: int,
    shape: tuple[int, ...],
) -> dict[str, NDArray[np.float32]]:
    rows = explain.find_class_neighbours(
        bundle.gallery,
        embedding,
        k=bundle.contents.calibration.k,
        n_classes=len(bundle.class_names),
        excluded=tuple(voted.related),
    )
    heatmaps = explain.compute_heatmaps(
        bundle.embedder,
        activations,
        class_index=class_index,
        neighbours=[bundle.gallery.embeddings[r] for r in rows],
    )
    return {
        name: explain.resize_heatmap(heatmap, height=shape[0], width=shape[1])
        for name, heatmap in heatmaps.items()
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
