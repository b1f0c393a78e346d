"""Commands for finished models: compare, activate, roll-back, export, import, delete, card."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from core.assessment.activation_gate import LIMIT
from core.cli.data_options import with_data_options
from core.cli.terminal import (
    Checkpoints,
    Data,
    JsonFile,
    Model,
    check_file,
    print_json,
    print_output,
    print_table,
    print_text,
    read_settings,
    show_progress,
    write_json,
)
from core.config import RECIPES
from core.data.options import DataOptions
from core.errors import ConfigError
from core.files.processes import read_age
from core.files.read_only import is_read_only

Reason = Annotated[str, typer.Option("--reason", help="Why; it is written down.")]


def card(model: Model, checkpoints: Checkpoints = None) -> None:
    """Print a model's card."""
    from core.models.registry import find_model

    directory = read_settings(checkpoints).checkpoints_dir
    folder = directory / find_model(directory, model).model_id
    print_output((folder / "card.md").read_text(encoding="utf-8"))


@with_data_options
def compare(
    first: Annotated[str, typer.Option("--first", help="The model in use.")],
    second: Annotated[str, typer.Option("--second", help="The one that may replace it.")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    json_file: JsonFile = None,
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Compare two models image by image; the activation gate uses the result."""
    from core.assessment.model_comparison import compare_models, save_comparison
    from core.data.datasets import read_dataset
    from core.models.registry import find_model, load_bundle
    from core.stats.paired_tests import write_p

    settings = read_settings(checkpoints)
    directory = settings.checkpoints_dir
    hashes = [find_model(directory, name).weights_sha256 for name in (first, second)]
    one, two = (load_bundle(directory, name, settings=settings) for name in (first, second))
    run = one.lead.config.run.train
    dataset = read_dataset(
        data,
        options,
        model=one.lead.training_data,
        val_fraction=run.val_fraction,
        seed=run.seed,
    )
    with show_progress("compare") as report:
        found = compare_models(
            one, two, dataset, split=split, hashes=(hashes[0], hashes[1]), progress=report
        )
    if is_read_only(directory):
        print_text(f"{directory} cannot be written, so this comparison is not kept for the gate.")
    else:
        save_comparison(directory, found)
    if not found.is_evidence:
        print_output(
            "The gate of `activate` does not count this comparison: it wants test images, none of "
            f"which one of the models was trained or validated on ({found.n_known} were)."
        )
    write_json(json_file, dataclasses.asdict(found))
    test, auc = found.mcnemar, found.delong
    p_calls, p_auroc = write_p(test.p_value), write_p(auc.p_value)
    print_output(
        f"{found.n} images. Accuracy {found.accuracy_first:.3f} -> {found.accuracy_second:.3f}: "
        f"{test.n_only_second} fixed, {test.n_only_first} broken (McNemar p {p_calls}). "
        f"AUROC {auc.auroc_first:.3f} -> {auc.auroc_second:.3f} (DeLong p {p_auroc})."
    )
    for group in found.subgroups:
        mark = "HARMED" if group.is_harmed else ""
        print_output(
            f"{group.column}={group.value}: n {group.n}, {group.accuracy_first:.3f} -> "
            f"{group.accuracy_second:.3f} {mark}".rstrip()
        )


def activate(
    model: Model,
    reason: Reason = "",
    limit: Annotated[float, typer.Option(help="Accuracy and AUROC may fall by this.")] = LIMIT,
    checkpoints: Checkpoints = None,
) -> None:
    """Make a model the app's default, unless it is worse by more than the limit."""
    from core.assessment.activation_gate import activate as run_activation

    entry = run_activation(
        read_settings(checkpoints).checkpoints_dir, model, reason=reason, limit=limit
    )
    print_output(f"{entry.model_id} is active ({entry.action}). {entry.message}")


def roll_back(reason: Reason = "", checkpoints: Checkpoints = None) -> None:
    """Reactivate the previously active model."""
    from core.assessment.activation_gate import roll_back as run_roll_back

    entry = run_roll_back(read_settings(checkpoints).checkpoints_dir, reason=reason)
    print_output(f"{entry.model_id} is active again.")


def history(json_file: JsonFile = None, checkpoints: Checkpoints = None) -> None:
    """Show which models were activated, when and why."""
    from core.assessment.activation_gate import read_history

    found = read_history(read_settings(checkpoints).checkpoints_dir)
    write_json(json_file, [dataclasses.asdict(entry) for entry in found])
    if not found:
        print_text("No model was activated yet.")
        return
    print_table(
        ("time", "model", "action", "before", "reason", "gate"),
        [(e.time, e.model_id, e.action, e.previous, e.reason, e.message) for e in found],
    )


def export(
    model: Model,
    file: Annotated[
        Path, typer.Argument(help="The new file, NAME.neighbordx.", callback=check_file)
    ],
    checkpoints: Checkpoints = None,
) -> None:
    """Export a model as one file: safetensors and JSON, nothing executable."""
    from core.models.exchange import export_model

    path = export_model(read_settings(checkpoints).checkpoints_dir, model, file)
    print_output(f"{path}, {path.stat().st_size / 1e6:.1f} MB")


def import_file(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote.")],
    name: Annotated[str, typer.Option("--name", help="Another name for the model.")] = "",
    checkpoints: Checkpoints = None,
) -> None:
    """Add a model from a file, after checking the whole file."""
    from core.models.exchange import import_model

    settings = read_settings(checkpoints)
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    added = import_model(settings.checkpoints_dir, file, settings=settings, name=name)
    print_output(f"{added.name} was added; compare it, then `activate` it.")
    for told in added.corrections:
        print_text(str(told))


def delete(
    model: Model,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    checkpoints: Checkpoints = None,
) -> None:
    """Delete a model permanently."""
    from core.models.registry import delete_model, find_model

    directory = read_settings(checkpoints).checkpoints_dir
    find_model(directory, model)
    if not yes and not typer.confirm(f"Delete {model} for good?"):
        raise ConfigError("nothing was deleted.")
    delete_model(directory, model)
    print_output(f"{model} is gone.")


def unpack(
    file: Annotated[Path, typer.Argument(help="A zip of images.")],
    checkpoints: Checkpoints = None,
) -> None:
    """Unpack a zip of images safely; prints the folder for `--data`."""
    from core.data.uploads import store

    settings = read_settings(checkpoints)
    try:
        with file.open("rb") as handle:
            folder = store(handle, name=file.name, checkpoints_dir=settings.checkpoints_dir)
    except OSError as err:
        raise ConfigError(f"cannot unpack {file} ({err.strerror or err}).") from err
    print_output(str(folder))


def delete_data(
    name: Annotated[str, typer.Argument(help="Name of an uploaded data set, as the app shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    checkpoints: Checkpoints = None,
) -> None:
    """Delete an uploaded data set and all results from it; refused while a job needs it."""
    from core.data.uploads import find_upload
    from core.jobs.uploads import delete_upload

    directory = read_settings(checkpoints).checkpoints_dir
    find_upload(directory, name)
    if not yes and not typer.confirm(f"Delete the uploaded images of {name} for good?"):
        raise ConfigError("nothing was deleted.")
    delete_upload(directory, name)
    print_output(f"{name} is gone.")


@with_data_options
def estimate(
    data: Data,
    preset: Annotated[str, typer.Option(help="As for `train`.")] = "offline",
    objective: Annotated[str, typer.Option(help="As for `train`.")] = "triplet",
    recipe: Annotated[str, typer.Option(help="As for `train`.")] = RECIPES[0],
    is_ensemble: Annotated[bool, typer.Option("--ensemble", help="As for `train`.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")
    ] = None,
    json_file: JsonFile = None,
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Estimate the time, memory and disk space of a run from a few steps."""
    from core.cli.terminal import quiet_lightning
    from core.config.presets import build_config
    from core.data.datasets import read_dataset
    from core.training.cost_estimate import run_trial

    config = build_config(
        {
            "preset": preset,
            "recipe": recipe,
            "objective": objective,
            "overrides": list(overrides or []),
        }
    )
    dataset = read_dataset(
        data,
        options,
        val_fraction=config.train.val_fraction,
        seed=config.train.seed,
    )
    quiet_lightning()
    with show_progress("estimate") as report:
        found = run_trial(
            dataset,
            config,
            settings=read_settings(checkpoints),
            is_ensemble=is_ensemble,
            process_s=read_age(),
            progress=report,
        )
    value = {**dataclasses.asdict(found), "total_s": found.total_s}
    write_json(json_file, value)
    print_json(value)
