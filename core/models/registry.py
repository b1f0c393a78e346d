"""The checkpoints folder: list, find, load, activate, delete.

The folder listing is the only index, so it cannot go stale. A model id from outside is matched
against the listing, never joined to a path.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.config import Settings, build_record
from core.errors import CheckpointError, CoreError
from core.files import abandoned
from core.files.whole import check_writable_folder, write_text
from core.models.bundle_files import read_bundle, read_bundle_config, read_json
from core.models.ensemble import Model, is_ensemble, read_ensemble, read_record
from core.models.marks import list_folders, list_foreign, list_strangers
from core.models.seal import read_identity

_ACTIVE_FILE = "active"
_DEMO_ID = "demo"
_N_NAMED = 5  # strange files that an error names
_LEFTOVER = re.compile(r"\.(writing|deleted|importing|trial)(-.*)?-(?P<pid>\d+)")


@dataclass(frozen=True)
class ModelSummary:
    """One line of the model list. ``problem`` says why a folder cannot be loaded."""

    model_id: str
    preset: str = ""
    created: str = ""
    weights_sha256: str = ""
    identity: str = ""  # see core.models.seal; empty for a model of an earlier version
    precision: str = ""  # of the trunks when the gallery was embedded
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
    """List every model folder by name; what is not a model's is in ``list_foreign``."""
    return [_summarise(folder) for folder in list_folders(directory)]


def _summarise(folder: Path) -> ModelSummary:
    try:
        if is_ensemble(folder):
            return _summarise_ensemble(folder)
        config = read_bundle_config(folder)
        figures = _read_figures(folder)
        identity = read_identity(folder)
    except CoreError as err:
        return ModelSummary(folder.name, problem=str(err))
    return ModelSummary(
        model_id=folder.name,
        preset=config.run.preset,
        created=config.created,
        weights_sha256=config.weights_sha256,
        identity=identity,
        precision=config.precision,
        data_id=config.data_id,
        class_names=config.class_names,
        disease_class=config.class_names[config.disease_index],
        val_accuracy=figures.accuracy,
        val_auroc=figures.auroc,
        n_gallery=figures.n_gallery,
        k=figures.k,
        objective=config.run.objective.name,
        recipe=config.run.recipe,
        seed=config.run.train.seed,
        weight_source="; ".join(
            dict.fromkeys(f"{b.source_kind}, {b.licence}" for b in config.backbones)
        ),
        n_bytes=_count_bytes(folder),
    )


@dataclass(frozen=True)
class _Figures:
    """The figures of metrics.json that are listed."""

    accuracy: float | None = None
    auroc: float | None = None
    n_gallery: int = 0
    k: int = 0


def _read_figures(folder: Path) -> _Figures:
    """Read them, whatever else the file holds.

    Raises:
        CheckpointError: the file is no object of JSON.
        ConfigError: a figure is not of its type.
    """
    metrics = read_json(folder / "metrics.json")
    report = metrics.get("validation", {})
    kept: dict[str, object] = {n: metrics[n] for n in ("n_gallery", "k") if n in metrics}
    if isinstance(report, dict):
        kept |= {n: report[n] for n in ("accuracy", "auroc") if n in report}
    else:
        kept["validation"] = report  # refused with its value
    return build_record(_Figures, kept, f"{folder.name}/metrics.json")


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _summarise_ensemble(folder: Path) -> ModelSummary:
    record = read_record(folder)
    members = tuple(member.model_id for member in record.members)
    summaries = [_summarise(folder.parent / model_id) for model_id in members]
    figures = _read_figures(folder)
    return ModelSummary(
        model_id=folder.name,
        preset="ensemble",
        created=record.created,
        weights_sha256=record.weights_sha256,
        identity=read_identity(folder),
        precision="; ".join(dict.fromkeys(summary.precision for summary in summaries)),
        data_id="+".join(dict.fromkeys(summary.data_id for summary in summaries)),
        class_names=record.class_names,
        disease_class=record.disease_class,
        val_accuracy=figures.accuracy,
        val_auroc=figures.auroc,
        n_gallery=figures.n_gallery,
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
    check_writable_folder(directory)
    write_text(directory / _ACTIVE_FILE, summary.model_id)


def delete_model(directory: Path, model_id: str) -> None:
    """Delete a model; it leaves the listing before its files are removed.

    Of a model that is linked here, only the link is removed.

    Raises:
        CheckpointError: see ``check_deletable``.
    """
    check_deletable(directory, model_id)
    check_writable_folder(directory)
    folder = directory / model_id
    if folder.is_symlink():
        folder.unlink()
        return
    doomed = directory / f".deleted-{model_id}-{os.getpid()}"
    folder.rename(doomed)
    shutil.rmtree(doomed)


def check_deletable(directory: Path, model_id: str) -> None:
    """Refuse to delete a model that is in use, or a folder that also holds other files.

    Raises:
        CheckpointError: there is no such model, it is active, an ensemble uses it, or its folder
            holds files that are not a model's.
    """
    find_model(directory, model_id)
    folder = directory / model_id
    strangers = [] if folder.is_symlink() else list_strangers(folder)
    if strangers:
        named = ", ".join(strangers[:_N_NAMED]) + (", ..." if len(strangers) > _N_NAMED else "")
        raise CheckpointError(
            f"the folder of model {model_id!r} also holds what is no part of a model: {named}. "
            "Move that elsewhere, then delete the model.",
            code="checkpoint.strangers",
            params={"model_id": model_id, "names": named},
        )
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
    """Remove temporary folders left by killed processes; call it at start-up.

    A folder goes only if it bears its writer's mark or holds nothing but a model's files.
    """
    for path in directory.glob(".*-*"):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        is_ours = abandoned.is_ours(path) or not list_strangers(path)
        if is_ours and abandoned.is_left(path, int(match["pid"])):
            abandoned.remove(path)


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
    if model_id in list_foreign(directory):
        raise CheckpointError(
            f"{directory / model_id} is not a model and is left alone; the models are: {known}.",
            code="checkpoint.foreign",
            params={"model_id": model_id},
        )
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
