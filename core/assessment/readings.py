"""A model's answers on one split, image by image, kept with its bundle.

Owns the folder ``<model>/evaluations/<data id>-<split>/``: ``record.json`` (what, when, the
``evaluate`` JSON), ``arrays.npz`` (answers, embeddings, small pictures) and what longer studies
add to it (robustness, explanations). The bundle's own files are never touched. Everything that a
page or a report shows is computed from here, without running the model again.
"""

import csv
import dataclasses
import json
import os
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.bundle import ModelBundle, check_model_id, read_bundle_config, read_json, write_text
from core.datasets import Dataset, load_record
from core.ensemble import Model
from core.errors import CheckpointError, CoreError
from core.external import Answers
from core.image_io import decode, encode_jpeg, thumbnail
from core.inference import Progress, SplitReading, describe_reading, read_split
from core.knn import search_k
from core.registry import find_model, list_models

SCHEMA_VERSION = 1
FOLDER = "evaluations"
_THUMBNAIL_PX = 192
_OWN_COLUMNS = {"file", "split", "label", "mask"}
_N_NEAREST = 5
_ARRAY_ERRORS = (OSError, ValueError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Summary:
    """One line of the list of a model's evaluations."""

    name: str  # of its folder
    model_id: str
    created: str
    data_id: str
    data_name: str
    split: str
    n: int
    accuracy: float
    auroc: float
    is_current: bool  # made by the parameters that the model has now


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything known of one model on one split."""

    result: Mapping[str, Any]  # the ``evaluate`` JSON of DESIGN section 4
    weights_sha256: str
    created: str  # ISO 8601, UTC
    seconds: float
    data_name: str
    data_root: str
    disease_class: str
    other_class: str
    is_synthetic: bool
    abstain_margin: float
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]  # of the manifest, beside those that we use
    k_curves: Mapping[str, tuple[Mapping[str, float], ...]]  # member -> k, accuracy, auroc here
    k_validation: Mapping[str, tuple[Mapping[str, float], ...]]  # where K was chosen
    is_disease: NDArray[np.bool_]  # (N,)
    p_disease: NDArray[np.float64]  # (N,)
    member_p: NDArray[np.float64]  # (M, N)
    is_novel: NDArray[np.bool_]  # (N,)
    percentile: NDArray[np.float64]  # (N,) of the novelty distance
    distance: NDArray[np.float64]  # (N,) mean embedding distance to the 5 nearest gallery images
    embeddings: tuple[NDArray[np.float32], ...]  # per member (N, D)
    thumbnails: tuple[bytes, ...]  # encoded pictures

    @property
    def name(self) -> str:
        """Of its folder."""
        return name_evaluation(str(self.result["data"]), str(self.result["split"]))

    @property
    def model_id(self) -> str:
        """Of the model that answered."""
        return str(self.result["model_id"])

    def to_answers(self) -> Answers:
        """The part that core.external compares."""
        return Answers(self.is_disease, self.p_disease, self.distance, self.is_novel, self.groups)

    def find_cell(self, cell: str, *, threshold: float = 0.5) -> NDArray[np.int64]:
        """Rows of a cell of the confusion matrix ("tn", "fp", "fn", "tp"), surest first."""
        called = self.p_disease > threshold
        is_called, is_diseased = cell[1] == "p", cell in ("tp", "fn")
        rows = np.flatnonzero((called == is_called) & (self.is_disease == is_diseased))
        order = np.argsort(-np.abs(self.p_disease[rows] - 0.5), kind="stable")
        return rows[order]

    def find_disputed(self) -> NDArray[np.int64]:
        """Rows on which the members do not all call the same class."""
        calls = self.member_p > 0.5
        return np.flatnonzero((calls != calls[0]).any(axis=0))

    def thumbnail(self, row: int) -> NDArray[np.uint8]:
        """Picture of a row, (h, w, 3) uint8."""
        return decode(self.thumbnails[row], name=self.keys[row]).pixels


def name_evaluation(data_id: str, split: str) -> str:
    """The folder's name of an evaluation."""
    return f"{data_id}-{split}"


def run_evaluation(
    model: Model, dataset: Dataset, *, split: str, progress: Progress | None = None
) -> Evaluation:
    """Answer on every image of a split and gather what the figures need.

    Raises:
        DataError: as ``inference.evaluate``.
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
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        data_name=dataset.root.name,
        data_root=str(dataset.root.resolve()),
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
    """Accuracy and AUROC on this split for every K: shown, never chosen by."""
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
    mean: NDArray[np.float64] = nearest.mean(axis=1).astype(np.float64)
    return mean


def _draw_thumbnails(dataset: Dataset, split: str, keys: Sequence[str]) -> tuple[bytes, ...]:
    records = {record.key: record for record in dataset.subset(split)}
    return tuple(
        encode_jpeg(thumbnail(load_record(records[key]).pixels, max_px=_THUMBNAIL_PX))
        for key in keys
    )


def read_columns(root: Path, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Columns of the data's manifest.csv that we do not use ourselves, in the order of the keys."""
    path = root / "manifest.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as handle:
        rows = {(row.get("file") or "").strip(): row for row in csv.DictReader(handle)}
    names = [n for n in next(iter(rows.values()), {}) if n and n not in _OWN_COLUMNS]
    return {
        name: tuple((rows.get(key, {}).get(name) or "").strip() for key in keys) for name in names
    }


def save_evaluation(checkpoints_dir: Path, evaluation: Evaluation) -> Path:
    """Write an evaluation into its model's folder, replacing an earlier one of the same split.

    Raises:
        CheckpointError: no such model.
    """
    find_model(checkpoints_dir, evaluation.model_id)
    final = _find_folder(checkpoints_dir, evaluation.model_id, evaluation.name)
    final.parent.mkdir(exist_ok=True)
    temporary = final.with_name(f".writing-{final.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    arrays: dict[str, Any] = {}
    record: dict[str, Any] = {}
    for field in dataclasses.fields(Evaluation):
        value = getattr(evaluation, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif field.name not in ("embeddings", "thumbnails"):
            record[field.name] = value
    for index, rows in enumerate(evaluation.embeddings):
        arrays[f"embeddings_{index}"] = rows
    pictures = evaluation.thumbnails
    arrays["thumbnails"] = np.frombuffer(b"".join(pictures), dtype=np.uint8)
    arrays["thumbnail_ends"] = np.cumsum([len(p) for p in pictures], dtype=np.int64)
    np.savez(temporary / "arrays.npz", **arrays)
    record["schema_version"] = SCHEMA_VERSION
    write_text(temporary / "record.json", json.dumps(record, indent=1))
    old = final.with_name(f".old-{final.name}-{os.getpid()}")
    if final.exists():
        _carry_studies(final, temporary, evaluation.weights_sha256)
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def _carry_studies(old: Path, new: Path, weights_sha256: str) -> None:
    """Studies of the same parameters on the same images stay true."""
    if read_json(old / "record.json").get("weights_sha256") != weights_sha256:
        return
    for path in old.glob("[a-z]*.json"):
        if path.name != "record.json":
            shutil.copy2(path, new / path.name)


def load_evaluation(checkpoints_dir: Path, model_id: str, name: str) -> Evaluation:
    """Read a listed evaluation.

    Raises:
        CheckpointError: no such model or evaluation, or it is damaged.
    """
    listed = [summary.name for summary in list_evaluations(checkpoints_dir, model_id)]
    if name not in listed:
        raise CheckpointError(
            f"model {model_id!r} has no evaluation {name!r}; there are: "
            f"{', '.join(listed) or 'none yet'}. Run `python -m core evaluate`.",
            code="evaluation.unknown",
            params={"model_id": model_id, "name": name},
        )
    folder = _find_folder(checkpoints_dir, model_id, name)
    record = read_json(folder / "record.json")
    try:
        with (folder / "arrays.npz").open("rb") as handle:
            stored = np.load(handle, allow_pickle=False)
            arrays = {key: stored[key] for key in stored.files}
        return _build(record, arrays, model_id=model_id)
    except (*_ARRAY_ERRORS, TypeError) as err:
        raise CheckpointError(
            f"evaluation {name!r} of model {model_id!r} is damaged ({err}); run it again.",
            code="evaluation.damaged",
            params={"model_id": model_id, "name": name},
        ) from err


def _build(record: dict[str, Any], arrays: dict[str, Any], *, model_id: str) -> Evaluation:
    if record.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError("another schema_version")
    data, ends = arrays.pop("thumbnails").tobytes(), arrays.pop("thumbnail_ends").tolist()
    embeddings = [arrays.pop(key) for key in sorted(arrays) if key.startswith("embeddings_")]
    for key in ("keys", "groups"):
        record[key] = tuple(record[key])
    for key in ("columns", "k_curves", "k_validation"):
        record[key] = {name: tuple(values) for name, values in record[key].items()}
    # A copied or renamed model goes by its new name.
    record["result"] = {**record["result"], "model_id": model_id}
    return Evaluation(
        **record,
        **arrays,
        embeddings=tuple(embeddings),
        thumbnails=tuple(data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)),
    )


def list_evaluations(checkpoints_dir: Path, model_id: str) -> list[Summary]:
    """A model's evaluations, newest first; unreadable ones are left out.

    Raises:
        CheckpointError: no such model.
    """
    model = find_model(checkpoints_dir, model_id)
    base = checkpoints_dir / model.model_id / FOLDER
    if not base.is_dir():
        return []
    found = []
    for folder in base.iterdir():
        if folder.name.startswith(".") or not (folder / "record.json").is_file():
            continue
        try:
            record = read_json(folder / "record.json")
            found.append(_summarise(folder.name, record, model.model_id, model.weights_sha256))
        except (CoreError, KeyError):
            continue
    return sorted(found, key=lambda summary: summary.created, reverse=True)


def _summarise(name: str, record: dict[str, Any], model_id: str, sha256: str) -> Summary:
    result = record["result"]
    return Summary(
        name=name,
        model_id=model_id,
        created=record["created"],
        data_id=result["data"],
        data_name=record["data_name"],
        split=result["split"],
        n=result["n"],
        accuracy=result["accuracy"],
        auroc=result["auroc"],
        is_current=record["weights_sha256"] == sha256,
    )


def list_rivals(checkpoints_dir: Path, evaluation: Evaluation) -> list[str]:
    """Ids of the other models that were evaluated on the same images."""
    return [
        model.model_id
        for model in list_models(checkpoints_dir)
        if model.model_id != evaluation.model_id
        and (
            _find_folder(checkpoints_dir, model.model_id, evaluation.name) / "record.json"
        ).is_file()
    ]


def find_data_root(checkpoints_dir: Path, model_id: str) -> str:
    """Where the training data of a model (an ensemble's first member) lay."""
    model = find_model(checkpoints_dir, model_id)
    member = model.members[0] if model.members else model.model_id
    return read_bundle_config(checkpoints_dir / member).data_root


def save_study(checkpoints_dir: Path, evaluation: Evaluation, kind: str, value: object) -> None:
    """Keep the outcome of a longer study (plain JSON values) beside its evaluation."""
    folder = _find_folder(checkpoints_dir, evaluation.model_id, evaluation.name)
    write_text(folder / f"{check_model_id(kind)}.json", json.dumps(value, indent=1))


def load_study(checkpoints_dir: Path, evaluation: Evaluation, kind: str) -> dict[str, Any] | None:
    """What ``save_study`` kept of this kind; None where the study was not made."""
    folder = _find_folder(checkpoints_dir, evaluation.model_id, evaluation.name)
    path = folder / f"{check_model_id(kind)}.json"
    return read_json(path) if path.is_file() else None


def _find_folder(checkpoints_dir: Path, model_id: str, name: str) -> Path:
    return checkpoints_dir / check_model_id(model_id) / FOLDER / check_model_id(name)
