"""Saved evaluations: a model's answers on one split, stored with its bundle.

Owns the folder ``<model>/evaluations/<data id>-<split>/``: ``record.json`` (metadata and the
``evaluate`` JSON), ``arrays.npz`` (answers, embeddings, thumbnails) and the results of longer
studies (robustness, explanations). The bundle's own files are never touched. Everything that a page
or a report shows is computed from these files, without running the model again.
"""

import dataclasses
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from core.assessment.record import Evaluation
from core.config import Settings
from core.data.options import TrainingData
from core.errors import CheckpointError, CoreError
from core.files import abandoned
from core.files.names import read_path
from core.files.whole import write_text
from core.gallery.corrections_db import open_store
from core.models.bundle import check_model_id
from core.models.bundle_files import read_bundle_config, read_json
from core.models.registry import ModelSummary, find_model, list_models

SCHEMA_VERSION = 1
FOLDER = "evaluations"
_LEFTOVER = re.compile(r"\.(writing|old)-(?P<name>.+)-(?P<pid>\d+)")
_ARRAY_ERRORS = (OSError, ValueError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Summary:
    """One line of the list of a model's evaluations."""

    name: str  # of the evaluation's folder
    model_id: str
    created: str
    data_id: str
    data_name: str
    split: str
    n: int
    accuracy: float
    auroc: float
    is_current: bool  # made with the model's present parameters and gallery
    is_same_net: bool  # made with the present parameters, whatever the gallery
    number: int = 0  # grows with every evaluation of the model; 0 in those of earlier versions


def save_evaluation(checkpoints_dir: Path, evaluation: Evaluation) -> Path:
    """Write an evaluation into its model's folder, replacing any earlier one of the same split.

    Raises:
        CheckpointError: there is no such model.
    """
    find_model(checkpoints_dir, evaluation.model_id)
    final = _find_folder(checkpoints_dir, evaluation.model_id, evaluation.name)
    final.parent.mkdir(exist_ok=True)
    temporary = final.with_name(f".writing-{final.name}-{os.getpid()}")
    old = final.with_name(f".old-{final.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        abandoned.mark(temporary)
        _write_files(temporary, evaluation, number=_next_number(final.parent))
        if final.exists():
            _carry_studies(final, temporary, evaluation)
            abandoned.mark(final)
            final.rename(old)
        abandoned.unmark(temporary)
        temporary.rename(final)
    except BaseException:  # e.g. full disk or Ctrl-C: keep the earlier one, leave no partial files
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
            abandoned.unmark(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return final


def _next_number(base: Path) -> int:
    """The number of a new evaluation of a model: by it they are ordered, not by the clock."""
    numbers = [0]
    for path in base.glob("[!.]*/record.json"):
        with suppress(CheckpointError):
            numbers.append(_read_number(read_json(path)))
    return 1 + max(numbers)


def _read_number(record: Mapping[str, Any]) -> int:
    """An evaluation's number; 0 in records of earlier versions."""
    number = record.get("number", 0)
    return number if isinstance(number, int) else 0


def _write_files(folder: Path, evaluation: Evaluation, *, number: int) -> None:
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
    np.savez(folder / "arrays.npz", **arrays)
    record["schema_version"] = SCHEMA_VERSION
    record["number"] = number
    write_text(folder / "record.json", json.dumps(record, indent=1))


def _mend(base: Path) -> None:
    """Restore what a killed writer had moved aside, and remove its other leftovers."""
    for path in sorted(base.glob(".*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or not abandoned.is_left(path, int(match["pid"])):
            continue
        with suppress(OSError):  # read-only folder, or a race with another process
            if match[1] == "old" and not (base / match["name"]).exists():
                path.rename(base / match["name"])
                abandoned.unmark(base / match["name"])
        shutil.rmtree(path, ignore_errors=True)


def _carry_studies(old: Path, new: Path, evaluation: Evaluation) -> None:
    """Carry over studies of the same parameters, gallery and images; drop the others."""
    for path in old.glob("[a-z]*.json"):
        if path.name == "record.json":
            continue
        try:
            is_true = _is_of(evaluation, read_json(path))
        except CheckpointError:  # incomplete or damaged: dropped too
            continue
        if is_true:
            shutil.copy2(path, new / path.name)


def _is_of(evaluation: Evaluation, study: Mapping[str, Any]) -> bool:
    made = study.get("made", {})
    return (made.get("weights_sha256"), made.get("gallery_id")) == (
        evaluation.weights_sha256,
        evaluation.gallery_id,
    )


def load_evaluation(checkpoints_dir: Path, model_id: str, name: str) -> Evaluation:
    """Read a listed evaluation.

    Raises:
        CheckpointError: there is no such model or evaluation, or it is damaged.
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
    record.pop("number", None)
    data, ends = arrays.pop("thumbnails").tobytes(), arrays.pop("thumbnail_ends").tolist()
    members = [key for key in arrays if key.startswith("embeddings_")]
    members.sort(key=lambda key: int(key.removeprefix("embeddings_")))  # 10 comes after 2
    embeddings = [arrays.pop(key) for key in members]
    for key in ("keys", "groups"):
        record[key] = tuple(record[key])
    for key in ("columns", "k_curves", "k_validation"):
        record[key] = {name: tuple(values) for name, values in record[key].items()}
    record["columns"].pop("group", None)  # older records list patients as a subgroup
    record.setdefault("gallery_id", "")  # missing in records from before galleries had versions
    # A copied or renamed model takes its new name.
    record["result"] = {**record["result"], "model_id": model_id}
    return Evaluation(
        **record,
        **arrays,
        embeddings=tuple(embeddings),
        thumbnails=tuple(data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)),
    )


def list_evaluations(checkpoints_dir: Path, model_id: str) -> list[Summary]:
    """A model's evaluations, newest first; unreadable ones are skipped.

    An evaluation whose replacement was interrupted is restored first.

    Raises:
        CheckpointError: there is no such model.
    """
    model = find_model(checkpoints_dir, model_id)
    base = checkpoints_dir / model.model_id / FOLDER
    if not base.is_dir():
        return []
    _mend(base)
    gallery_id = find_gallery_id(checkpoints_dir, model)
    found = []
    for folder in base.iterdir():
        if folder.name.startswith(".") or not (folder / "record.json").is_file():
            continue
        try:
            record = read_json(folder / "record.json")
            found.append(_summarise(folder.name, record, model, gallery_id))
        except (CoreError, KeyError):
            continue
    return sorted(found, key=lambda summary: (summary.number, summary.created), reverse=True)


def find_gallery_id(checkpoints_dir: Path, model: ModelSummary) -> str:
    """Compute the loaded model's ``data_id`` without loading it."""
    settings = dataclasses.replace(Settings.from_env(), checkpoints_dir=checkpoints_dir)
    store = open_store(settings)
    try:
        return "+".join(
            f"{data_id}+g{version}" if (version := store.read_version(data_id)) else data_id
            for data_id in model.data_id.split("+")
        )
    finally:
        store.close()


def _summarise(name: str, record: dict[str, Any], model: ModelSummary, gallery_id: str) -> Summary:
    result = record["result"]
    made_with = record["weights_sha256"], record.get("gallery_id") or model.data_id
    return Summary(
        name=name,
        model_id=model.model_id,
        created=record["created"],
        data_id=result["data"],
        data_name=record["data_name"],
        split=result["split"],
        n=result["n"],
        accuracy=result["accuracy"],
        auroc=result["auroc"],
        is_current=made_with == (model.weights_sha256, gallery_id),
        is_same_net=made_with[0] == model.weights_sha256,
        number=_read_number(record),
    )


def delete_evaluations(checkpoints_dir: Path, data_root: Path) -> None:
    """Delete all models' saved answers and thumbnails of the images in a folder (resolved)."""
    for path in checkpoints_dir.glob(f"*/{FOLDER}/*/record.json"):
        try:
            is_inside = read_path(str(read_json(path).get("data_root"))).is_relative_to(data_root)
        except CheckpointError:  # its source is unknown
            continue
        if is_inside:
            shutil.rmtree(path.parent, ignore_errors=True)


def list_rivals(checkpoints_dir: Path, evaluation: Evaluation) -> list[str]:
    """List the other models that were evaluated on the same images."""
    return [
        model.model_id
        for model in list_models(checkpoints_dir)
        if model.model_id != evaluation.model_id
        and (
            _find_folder(checkpoints_dir, model.model_id, evaluation.name) / "record.json"
        ).is_file()
    ]


def find_training_data(checkpoints_dir: Path, model_id: str) -> TrainingData:
    """What a model (for an ensemble, its first member) was trained on."""
    model = find_model(checkpoints_dir, model_id)
    member = model.members[0] if model.members else model.model_id
    return read_bundle_config(checkpoints_dir / member).training_data


def save_study(
    checkpoints_dir: Path, evaluation: Evaluation, kind: str, value: Mapping[str, Any]
) -> None:
    """Save the result of a longer study (plain JSON values) beside its evaluation.

    The key ``made`` is added: the parameters, the gallery and the time.
    """
    folder = _find_folder(checkpoints_dir, evaluation.model_id, evaluation.name)
    made = {
        "weights_sha256": evaluation.weights_sha256,
        "gallery_id": evaluation.gallery_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(
        folder / f"{check_model_id(kind)}.json", json.dumps({**value, "made": made}, indent=1)
    )


def load_study(checkpoints_dir: Path, evaluation: Evaluation, kind: str) -> dict[str, Any] | None:
    """Load the study of this kind saved by ``save_study``.

    None if there is none, or if it was made with other parameters or another gallery than the
    evaluation, so that results of two models are never shown together as one.
    """
    folder = _find_folder(checkpoints_dir, evaluation.model_id, evaluation.name)
    path = folder / f"{check_model_id(kind)}.json"
    study = read_json(path) if path.is_file() else None
    return study if study is not None and _is_of(evaluation, study) else None


def _find_folder(checkpoints_dir: Path, model_id: str, name: str) -> Path:
    return checkpoints_dir / check_model_id(model_id) / FOLDER / check_model_id(name)
