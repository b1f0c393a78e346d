"""Run a model on a split and collect what the metrics need.

Owns how an ``Evaluation`` is filled; storage is in ``store``.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from core.assessment.predict_split import SplitReading, describe_reading, read_split
from core.assessment.record import Evaluation
from core.data.datasets import Dataset, load_record
from core.data.manifest import read_columns
from core.files.names import show_name, write_path
from core.gallery.k_search import search_k
from core.images.decode import encode_jpeg, thumbnail
from core.models.bundle import ModelBundle
from core.models.ensemble import Model
from core.network.embedder import Progress

_THUMBNAIL_PX = 192
_N_NEAREST = 5


def run_evaluation(
    model: Model, dataset: Dataset, *, split: str, progress: Progress | None = None
) -> Evaluation:
    """Predict every image of a split and collect what the metrics need.

    Raises:
        DataError: as ``predict_split.evaluate``.
    """
    began = time.monotonic()
    reading = read_split(model, dataset, split=split, progress=progress)
    result = describe_reading(model, reading, data=dataset.data_id, split=split)
    curves = {
        member.bundle.model_id: _measure_k(member.bundle, reading, index)
        for index, member in enumerate(model.members)
        if member.bundle.has_vote
    }
    return Evaluation(
        result=result,
        weights_sha256=find_weights_sha256(model),
        gallery_id=model.data_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        data_name=show_name(dataset.root.name),
        data_root=write_path(dataset.root),
        disease_class=model.disease_class,
        other_class=model.other_class,
        is_synthetic=model.is_synthetic,
        abstain_margin=model.abstain_margin,
        keys=reading.keys,
        groups=reading.groups,
        columns=read_columns(dataset.root, reading.keys),
        k_curves=curves,
        k_validation={
            m.bundle.model_id: tuple(m.bundle.metrics.get("k_search", ())) for m in model.members
        },
        is_disease=reading.truth,
        p_disease=reading.p_disease,
        member_p=reading.member_p,
        is_novel=reading.is_novel,
        percentile=reading.percentile
        if reading.percentile is not None
        else np.zeros(len(reading.keys)),
        distance=_measure_distance(model, reading),
        embeddings=reading.embeddings,
        thumbnails=_draw_thumbnails(dataset, split, reading.keys),
    )


def find_weights_sha256(model: Model) -> str:
    """Hash of the parameters behind a model's answers."""
    if isinstance(model, ModelBundle):
        return model.config.weights_sha256
    return model.record.weights_sha256


def _measure_k(
    bundle: ModelBundle, reading: SplitReading, index: int
) -> tuple[Mapping[str, float], ...]:
    """Accuracy and AUROC on this split for every K; for display only, not to choose K."""
    disease = bundle.config.disease_index
    labels = np.where(reading.truth, disease, 1 - disease).astype(np.int64)
    found = search_k(
        bundle.gallery,
        reading.embeddings[index],
        labels,
        candidates=bundle.config.run.knn.k_candidates,
        disease_index=disease,
        excluded=[np.array(rows, dtype=np.int64) for rows in reading.barred[index]],
    )
    return tuple(dataclasses.asdict(score) for score in found.scores)


def _measure_distance(model: Model, reading: SplitReading) -> NDArray[np.float64]:
    index = [m.bundle for m in model.members].index(model.lead)
    gallery = model.lead.gallery
    barred = [np.array(rows, dtype=np.int64) for rows in reading.barred[index]]
    nearest = gallery.search(reading.embeddings[index], _N_NEAREST, excluded=barred)[0]
    there = np.isfinite(nearest)  # some are missing if most rows are excluded for an image
    mean: NDArray[np.float64] = np.mean(nearest, axis=1, where=there).astype(np.float64)
    return mean


def _draw_thumbnails(dataset: Dataset, split: str, keys: Sequence[str]) -> tuple[bytes, ...]:
    records = {record.key: record for record in dataset.subset(split)}
    return tuple(
        encode_jpeg(thumbnail(load_record(records[key]).pixels, max_px=_THUMBNAIL_PX))
        for key in keys
    )
