"""The checkpoints folder: list, find, load, activate, delete.

The folder listing is the only index, so it cannot go stale. A model id from outside is matched
against the listing, never joined to a path.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.config import Settings
from core.errors import CheckpointError, CoreError
from core.files import abandoned
from core.files.whole import write_text
from core.models.bundle import MODEL_ID
from core.models.bundle_files import read_bundle, read_bundle_config, read_json
from core.models.ensemble import Model, is_ensemble, read_ensemble, read_record

_ACTIVE_FILE = "active"
_DEMO_ID = "demo"
_LEFTOVER = re.compile(r"\.(writing|deleted|importing|trial)(-.*)?-(?P<pid>\d+)")


@dataclass(frozen=True)
class ModelSummary:
    """One line of the model list. ``problem`` says why a folder cannot be loaded."""

    model_id: str
    preset: str = ""
    created: str = ""
    weights_sha256: str = ""
    data_id: str = ""
    class_names: tuple[str, ...] = ()
    disease_class: str = ""
    val_accuracy: float | None = None
    val_auroc: float | None = None
    n_gallery: int = 0
    k: int = 0
    members: tuple[str, ...] = ()  # ids, for an ensemble
    objective: str = ""
    recipe: str = ""
    seed: int = 0
    weight_source: str = ""  # where the frozen backbones' parameters came from, and their licence
    n_bytes: int = 0  # on disk
    problem: str | None = None


def list_models(directory: Path) -> list[ModelSummary]:
    """List every bundle folder by name, except hidden and incomplete ones."""
    if not directory.is_dir():
        return []
    folders = sorted(p for p in directory.iterdir() if p.is_dir() and MODEL_ID.fullmatch(p.name))
    return [_summarise(folder) for folder in folders]


def _summarise(folder: Path) -> ModelSummary:
    try:
        if is_ensemble(folder):
            return _summarise_ensemble(folder)
        config = read_bundle_config(folder)
        metrics = read_json(folder / "metrics.json")
    except CoreError as err:
        return ModelSummary(folder.name, problem=str(err))
    report = metrics.get("validation", {})
    return ModelSummary(
        model_id=folder.name,
        preset=config.run.preset,
        created=config.created,
        weights_sha256=config.weights_sha256,
        data_id=config.data_id,
        class_names=config.class_names,
        disease_class=config.class_names[config.disease_index],
        val_accuracy=report.get("accuracy"),
        val_auroc=report.get("auroc"),
        n_gallery=int(metrics.get("n_gallery", 0)),
        k=int(metrics.get("k", 0)),
        objective=config.run.objective.name,
        recipe=config.run.recipe,
        seed=config.run.train.seed,
        weight_source="; ".join(
            dict.fromkeys(f"{b.source_kind}, {b.licence}" for b in config.backbones)
        ),
        n_bytes=_count_bytes(folder),
    )


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _summarise_ensemble(folder: Path) -> ModelSummary:
    record = read_record(folder)
    members = tuple(member.model_id for member in record.members)
    summaries = [_summarise(folder.parent / model_id) for model_id in members]
    metrics = read_json(folder / "metrics.json")
    report = metrics.get("validation", {})
    return ModelSummary(
        model_id=folder.name,
        preset="ensemble",
        created=record.created,
        weights_sha256=record.weights_sha256,
        data_id="+".join(dict.fromkeys(summary.data_id for summary in summaries)),
        class_names=record.class_names,
        disease_class=record.disease_class,
        val_accuracy=report.get("accuracy"),
        val_auroc=report.get("auroc"),
        n_gallery=int(metrics.get("n_gallery", 0)),
        members=members,
        objective="ensemble",
        weight_source="; ".join(dict.fromkeys(summary.weight_source for summary in summaries)),
        n_bytes=_count_bytes(folder),
        problem=next((summary.problem for summary in summaries if summary.problem), None),
    )


def active_model_id(directory: Path) -> str | None:
    """The model the app opens with: the active one, else the demo, else the first that loads."""
    usable = [m.model_id for m in list_models(directory) if m.problem is None]
    marker = directory / _ACTIVE_FILE
    chosen = marker.read_text(encoding="utf-8").strip() if marker.is_file() else _DEMO_ID
    if chosen in usable:
        return chosen
    return _DEMO_ID if _DEMO_ID in usable else next(iter(usable), None)


def activate(directory: Path, model_id: str) -> None:
    """Make a model the one the app opens with.

    Raises:
        CheckpointError: there is no such model, or it cannot be loaded.
    """
    summary = find_model(directory, model_id)
    if summary.problem:
        raise CheckpointError(summary.problem)
    write_text(directory / _ACTIVE_FILE, summary.model_id)


def delete_model(directory: Path, model_id: str) -> None:
    """Delete a bundle; it leaves the listing before its files are removed.

    Raises:
        CheckpointError: see ``check_deletable``.
    """
    check_deletable(directory, model_id)
    doomed = directory / f".deleted-{model_id}-{os.getpid()}"
    (directory / model_id).rename(doomed)
    shutil.rmtree(doomed)


def check_deletable(directory: Path, model_id: str) -> None:
    """Refuse to delete a model that is in use.

    Raises:
        CheckpointError: there is no such model, it is active, or an ensemble uses it.
    """
    find_model(directory, model_id)
    users = [m.model_id for m in list_models(directory) if model_id in m.members]
    if users:
        raise CheckpointError(
            f"model {model_id!r} is a member of {', '.join(users)}; delete that first.",
            code="checkpoint.in_use",
            params={"model_id": model_id, "users": ", ".join(users)},
        )
    marker = directory / _ACTIVE_FILE
    if marker.is_file() and marker.read_text(encoding="utf-8").strip() == model_id:
        raise CheckpointError(
            f"model {model_id!r} is the active one; activate another first.",
            code="checkpoint.active",
            params={"model_id": model_id},
        )


def clean_leftovers(directory: Path) -> None:
    """Remove temporary folders left by killed processes; call it at start-up."""
    for path in directory.glob(".*-*"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and path.is_dir() and abandoned.is_left(path, int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def find_model(directory: Path, model_id: str) -> ModelSummary:
    """Match an id against the listing.

    Raises:
        CheckpointError: there is no such model; the message lists the existing ones.
    """
    models = list_models(directory)
    for summary in models:
        if summary.model_id == model_id:
            return summary
    known = ", ".join(m.model_id for m in models) or "none yet"
    raise CheckpointError(
        f"no model {model_id!r} in {directory}; there are: {known}. "
        "Train one with `python -m core train` or build the demo with `python -m core demo`.",
        code="checkpoint.unknown",
        params={"model_id": model_id, "known": known},
    )


def load_bundle(directory: Path, model_id: str, *, settings: Settings | None = None) -> Model:
    """Load a listed model or ensemble and its backbones.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        BackboneError: its backbones' pretrained parameters are not available on this machine.
    """
    folder = directory / find_model(directory, model_id).model_id
    read = read_ensemble if is_ensemble(folder) else read_bundle
    return read(folder, settings or Settings.from_env())
