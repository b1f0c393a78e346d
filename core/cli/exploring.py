"""Commands for the gallery: fit-map, findings, gallery."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from core.cli.terminal import (
    CONSOLE,
    Checkpoints,
    JsonFile,
    Model,
    output_file,
    print_table,
    print_text,
    read_settings,
    show_progress,
    write_json,
    write_text,
)
from core.errors import ConfigError
from core.files.names import read_path
from core.gallery.corrections import Change


def fit_map(
    model: Model,
    method: Annotated[str, typer.Option(help="umap or pca.")] = "umap",
    dimensions: Annotated[int, typer.Option(help="2 or 3.")] = 2,
    neighbours: Annotated[int, typer.Option(help="UMAP: size of a neighbourhood.")] = 15,
    min_dist: Annotated[float, typer.Option(help="UMAP: how close points may lie.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Fixes UMAP's random draws.")] = 0,
    checkpoints: Checkpoints = None,
) -> None:
    """Fit a map of a model's gallery and its neighbour table, and save both with the model."""
    from core.exploring.gallery_table import prepare
    from core.exploring.map_store import fit_and_save
    from core.gallery.projection import MapSettings
    from core.models.registry import load_bundle

    settings = MapSettings(method, dimensions, neighbours, min_dist, seed)  # type: ignore[arg-type]
    machine = read_settings(checkpoints)
    bundle = load_bundle(machine.checkpoints_dir, model, settings=machine)
    with show_progress("map") as report:
        prepare(bundle, machine.checkpoints_dir)
        fitted = fit_and_save(machine.checkpoints_dir, bundle.lead, settings, progress=report)
    quality = fitted.quality
    CONSOLE.print(
        f"trustworthiness {quality.trustworthiness:.3f}, neighbours kept {quality.preserved:.3f} "
        f"(k = {quality.k}, over {quality.n_sampled} images)"
    )


def findings(
    model: Model,
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, output_file("--csv", help="The whole table.")] = None,
    top: Annotated[int, typer.Option(help="Images listed of each kind.")] = 50,
    checkpoints: Checkpoints = None,
) -> None:
    """List gallery images to review: outvoted, suspect labels, duplicates, outliers."""
    from core.exploring import review_lists
    from core.exploring.gallery_table import explore, prepare, read_manifest
    from core.export.tables import export_csv
    from core.models.registry import load_bundle

    machine = read_settings(checkpoints)
    bundle = load_bundle(machine.checkpoints_dir, model, settings=machine)
    with show_progress("findings") as report:
        tables = prepare(bundle, machine.checkpoints_dir, progress=report)
    extra, _ = read_manifest(read_path(bundle.lead.config.data_root), bundle.gallery.keys)
    seen = explore(bundle, tables, extra=extra)
    lists = {
        "wrong_when_left_out": review_lists.find_wrong(seen),
        "suspected_label_errors": review_lists.find_suspects(bundle, seen),
        "duplicates": review_lists.find_duplicates(bundle),
        "outliers": review_lists.find_outliers(bundle),
        "mixed_regions": review_lists.find_mixed(seen, tables, bundle),
    }
    result = {
        "model_id": bundle.model_id,
        "data_id": bundle.data_id,
        "n": len(seen),
        "leave_one_out_accuracy": round(seen.accuracy, 6),
        **{
            name: [
                {
                    "file": seen.keys[row],
                    "label": seen.class_names[seen.labels[row]],
                    "score": round(float(score), 6),
                    "group": int(group),
                }
                for row, score, group in zip(
                    found.rows[:top].tolist(), found.scores, found.groups, strict=False
                )
            ]
            for name, found in lists.items()
        },
    }
    write_json(json_file, result)
    if csv_file is not None:
        write_text(csv_file, export_csv(np.arange(len(seen)), seen.keys, seen.columns))
    firsts = [seen.keys[int(found.rows[0])] if len(found) else "" for found in lists.values()]
    print_table(
        ("list", "images", "first"),
        [
            (name.replace("_", " "), len(found), first)
            for (name, found), first in zip(lists.items(), firsts, strict=True)
        ],
    )
    CONSOLE.print(f"right when left out: {seen.accuracy:.3f} of {len(seen)}")


def gallery(
    model: Model,
    relabel: Annotated[
        list[str] | None, typer.Option("--relabel", help="FILE=CLASS, repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="FILE kept out of the vote, repeatable.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last change back.")] = False,
    roll_back: Annotated[
        int | None, typer.Option("--roll-back", help="Make this version current again.")
    ] = None,
    author: Annotated[str, typer.Option(help="Written into the audit trail.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the effect only.")] = False,
    json_file: JsonFile = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Show the gallery's history; relabel or exclude images, undo, roll back."""
    from core.exploring.gallery_table import prepare, preview
    from core.gallery.corrections_db import open_store
    from core.models.registry import load_bundle

    machine = read_settings(checkpoints)
    bundle = load_bundle(machine.checkpoints_dir, model, settings=machine)
    scope, lead = bundle.lead.config.data_id, bundle.lead
    store = open_store(machine)
    now = store.read_version(scope)
    changes = [_read_relabel(text, lead.class_names) for text in relabel or []]
    changes += [Change(key, "excluded", "yes") for key in exclude or []]
    known = set(lead.gallery.keys)
    if unknown := [change.key for change in changes if change.key not in known]:
        raise ConfigError(f"no image {unknown[0]!r} in the gallery of {model!r}.")
    if changes:
        tables = prepare(bundle, machine.checkpoints_dir)
        effect = preview(bundle, tables, changes)
        CONSOLE.print(
            f"right when left out: {effect.accuracy_before:.4f} -> {effect.accuracy_after:.4f}; "
            f"other images: {effect.n_mended} mended, {effect.n_broken} broken"
        )
        if not dry_run:
            given = lead.contents.gallery
            names = [lead.class_names[label] for label in given.labels]
            given_labels = dict(zip(given.keys, names, strict=True))
            store.apply(
                scope, changes, given_labels=given_labels, expected_version=now, author=author
            )
    if undo and not dry_run:
        store.undo(scope, expected_version=store.read_version(scope), author=author)
    if roll_back is not None and not dry_run:
        store.roll_back(scope, roll_back, expected_version=store.read_version(scope), author=author)
    history = store.read_history(scope)
    write_json(json_file, [entry.to_json() for entry in history])
    for entry in history:
        print_text(json.dumps(entry.to_json(), ensure_ascii=False))
    CONSOLE.print(f"gallery of {model}: version {store.read_version(scope)}")


def _read_relabel(text: str, class_names: tuple[str, ...]) -> Change:
    key, _, name = text.rpartition("=")
    if not key or name not in class_names:
        raise ConfigError(
            f"--relabel {text!r}: expected FILE=CLASS with one of {', '.join(class_names)}."
        )
    return Change(key, "label", name)
