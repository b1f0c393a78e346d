"""Predict every image of a split and summarise the answers.

Owns the ``evaluate`` JSON of DESIGN section 4. Images go in batches, each under the model's lock.
"""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.answers.votes import Vote, join_novelty, mix_votes, read_batch
from core.config import describe_software
from core.data.datasets import Dataset, Record, load_ahead
from core.errors import DataError, ImageError
from core.images.decode import Image
from core.models.ensemble import Model
from core.network.embedder import Progress
from core.stats.metrics import compute_metrics

_BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class SplitReading:
    """A model's answers on one split, before they are summarised."""

    keys: tuple[str, ...]
    truth: NDArray[np.bool_]  # (N,)
    p_disease: NDArray[np.float64]  # (N,)
    member_p: NDArray[np.float64]  # (M, N)
    is_novel: NDArray[np.bool_]  # (N,)
    groups: tuple[str, ...]
    unreadable: Mapping[str, str]
    embeddings: tuple[NDArray[np.float32], ...] = ()  # per member (N, D)
    barred: tuple[tuple[tuple[int, ...], ...], ...] = ()  # per member and image: rows excluded
    # from its vote
    percentile: NDArray[np.float64] | None = None  # (N,) of the novelty score, 0..100
    sha256: tuple[str, ...] = ()  # of the files; for an altered image, the original's


def evaluate(
    model: Model, dataset: Dataset, *, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a model on one split of a data set.

    Args:
        model: a model or an ensemble.
        dataset: with the same class names as the model's.
        split: "train", "val" or "test". Gallery images do not vote on themselves.

    Returns:
        The ``evaluate`` JSON of DESIGN section 4.

    Raises:
        DataError: the classes differ, or the split has no readable image or only one class.
    """
    reading = read_split(model, dataset, split=split, progress=progress)
    return describe_reading(model, reading, data=dataset.data_id, split=split)


def read_split(
    model: Model,
    dataset: Dataset,
    *,
    split: str,
    progress: Progress | None = None,
    originals: Mapping[str, str] | None = None,
) -> SplitReading:
    """Predict every image of a split; see ``evaluate`` for the other arguments and errors.

    Args:
        originals: key -> sha256 of the file that an altered image was made from, so that copies of
            that file do not vote on it.
    """
    if set(dataset.class_names) != set(model.class_names):
        raise DataError(
            f"model {model.model_id!r} knows the classes {', '.join(model.class_names)}; "
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
    read: list[Record] = []
    hashes: list[str] = []
    votes: list[tuple[Vote, ...]] = []

    def flush() -> None:
        groups = [record.group or "" for record in read[len(votes) :]]
        with model.lock:
            votes.extend(read_batch(model, pending, groups=groups)[0])
        pending.clear()

    for index, (record, image) in enumerate(load_ahead(records)):
        if isinstance(image, ImageError):
            unreadable[record.key] = str(image)
        else:
            sha256 = (originals or {}).get(record.key, image.sha256)
            pending.append(dataclasses.replace(image, sha256=sha256))
            read.append(record)
            hashes.append(sha256)
        if pending and (len(pending) == _BATCH_SIZE or index == len(records) - 1):
            flush()
        if progress:
            progress((index + 1) / len(records), f"{index + 1} of {len(records)} images")
    if not read:
        raise DataError(
            f"none of the {len(records)} images of the {split} split can be read; the first: "
            f"{next(iter(unreadable.values()))} Run audit to see them all.",
            code="data.unreadable",
            params={"n": len(records), "split": split},
        )
    return SplitReading(
        keys=tuple(record.key for record in read),
        truth=np.array([dataset.class_names[r.label] == model.disease_class for r in read], bool),
        p_disease=np.array([mix_votes(v) for v in votes], dtype=np.float64),
        member_p=np.array([[one.p_disease for one in v] for v in votes], dtype=np.float64).T,
        is_novel=np.array([join_novelty(v).is_novel for v in votes], dtype=bool),
        groups=tuple(record.group or "" for record in read),
        unreadable=unreadable,
        embeddings=tuple(
            np.array([v[m].embedding for v in votes], dtype=np.float32)
            for m in range(len(model.members))
        ),
        barred=tuple(
            tuple(tuple(sorted(v[m].related)) for v in votes) for m in range(len(model.members))
        ),
        percentile=np.array([join_novelty(v).distance_percentile for v in votes]),
        sha256=tuple(hashes),
    )


def describe_reading(
    model: Model, reading: SplitReading, *, data: str, split: str
) -> dict[str, Any]:
    """Summarise a reading as the ``evaluate`` JSON of DESIGN section 4."""
    truth, p_disease = reading.truth, reading.p_disease
    copies = find_copies(model, reading)
    report = compute_metrics(truth, p_disease, groups=reading.groups)
    unsure = np.abs(p_disease - 0.5) < model.abstain_margin
    answered = ~unsure & ~reading.is_novel
    right = (p_disease > 0.5) == truth
    members = []
    for member, probs in zip(model.members, reading.member_p, strict=True):
        own = compute_metrics(truth, probs, groups=reading.groups)
        members.append(
            {
                "model_id": member.bundle.model_id,
                "weight": member.weight,
                "accuracy": own.accuracy,
                "auroc": own.auroc,
                "k": member.bundle.contents.calibration.k,
            }
        )
    return {
        "model_id": model.model_id,
        "software_version": describe_software(),
        "data": data,
        "split": split,
        **dataclasses.asdict(report),
        "k": model.lead.contents.calibration.k,
        "tta": model.lead.config.run.embedder.tta,
        "members": members,
        "agreement": _describe_agreement(model, reading),
        "coverage_at_abstention": {
            "coverage": float(answered.mean()),
            "accuracy": float(right[answered].mean()) if answered.any() else None,
            "n_answered": int(answered.sum()),
            "n_uncertain": int((unsure & ~reading.is_novel).sum()),
            "n_novel": int(reading.is_novel.sum()),
        },
        "unreadable": dict(reading.unreadable),
        "n_in_gallery": len(copies),
        "n_in_validation": len(find_validated(model, reading) - copies),
    }


def find_copies(model: Model, reading: SplitReading) -> set[str]:
    """Keys of the images that a member was trained on: their file is in its gallery."""
    known = {sha256 for member in model.members for sha256 in member.bundle.gallery.sha256}
    return _find_files(reading, known)


def find_validated(model: Model, reading: SplitReading) -> set[str]:
    """Keys of the images that were used to choose a member's K and calibration.

    Empty for older models, which did not store the hashes of their validation images.
    """
    metrics = (member.bundle.contents.metrics for member in model.members)
    known = {
        sha256 for m in metrics for sha256 in m.get("validation_answers", {}).get("sha256", ())
    }
    return _find_files(reading, known)


def _find_files(reading: SplitReading, known: Set[str]) -> set[str]:
    pairs = zip(reading.keys, reading.sha256, strict=True)
    return {key for key, sha256 in pairs if sha256 in known}


def _describe_agreement(model: Model, reading: SplitReading) -> dict[str, Any]:
    """Count the images on which all members agree, and list the others."""
    calls = reading.member_p > 0.5
    is_disputed = (calls != calls[0]).any(axis=0)

    def name(is_disease: bool) -> str:
        return model.disease_class if is_disease else model.other_class

    return {
        "agree": int((~is_disputed).sum()),
        "disagree": int(is_disputed.sum()),
        "disputed": [
            {
                "file": reading.keys[i],
                "truth": name(bool(reading.truth[i])),
                "answer": name(bool(reading.p_disease[i] > 0.5)),
                "members": {
                    member.bundle.model_id: name(bool(calls[m, i]))
                    for m, member in enumerate(model.members)
                },
            }
            for i in np.flatnonzero(is_disputed)
        ],
    }
