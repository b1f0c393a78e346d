"""The command that diagnoses images: predict."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.answers.diagnosis import RESEARCH_USE
from core.cli.terminal import (
    Checkpoints,
    JsonFile,
    Model,
    echo_json,
    output_file,
    output_folder,
    print_table,
    print_text,
    read_settings,
    show_progress,
)
from core.errors import ConfigError
from core.files.journal import Journal, find_journal
from core.files.names import show_name
from core.files.whole import check_writable_folder

if TYPE_CHECKING:
    from core.export.batch import Extras
    from core.export.formats import CaseFormat
    from core.models.ensemble import Model as LoadedModel

_N_SHOWN = 100  # lines of the table in the terminal


def predict(
    model: Model,
    paths: Annotated[list[Path], typer.Argument(help="Images, DICOM files or folders.")],
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, output_file("--csv", help="Write a table here.")] = None,
    explain: Annotated[
        Path | None, output_folder("--explain", help="Write heatmap pictures into this folder.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--heatmap-method", help="Of the heatmaps; a wrong one lists the right ones."),
    ] = None,
    exports: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Also write each answered case as a file; a wrong format lists the right ones.",
        ),
    ] = None,
    export_to: Annotated[Path, typer.Option("--to", help="Folder of --export.")] = Path("exports"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a batch that was interrupted.")
    ] = False,
    checkpoints: Checkpoints = None,
) -> None:
    """Diagnose images, each with its evidence; an unreadable file is reported and skipped.

    A path that does not exist is skipped too, unless none of them exists. With --json or --csv the
    answers are kept as they come, in a file ending in .part: a batch that was killed goes on with
    --resume.
    """
    from core.explanations.methods import SHOWN, find_method
    from core.export.batch import Extras, exists, list_files
    from core.models.registry import find_model, load_bundle

    target = json_file or csv_file
    if resume and target is not None and target.exists() and not find_journal(target).exists():
        print_text(f"{show_name(target)} is complete; nothing to resume.")
        return
    method = method or SHOWN
    find_method(method)
    extras = Extras(explain, method, _choose_formats(exports or ()), export_to)
    if extras.formats:
        check_writable_folder(export_to)
    settings = read_settings(checkpoints)
    find_model(settings.checkpoints_dir, model)
    listing = list_files(paths)
    if not any(exists(path) for path in paths):
        named = ", ".join(show_name(path) for path in paths[:3])
        raise ConfigError(f"there is nothing at {named}; check the paths.")
    if not listing.files:
        raise ConfigError("no file was found under the given paths; name images or folders.")
    if listing.n_system:
        print_text(f"{listing.n_system} hidden and system files are left out.")
    bundle = load_bundle(settings.checkpoints_dir, model, settings=settings)
    about = {
        "model": bundle.model_id,
        "created": bundle.created,
        "data": bundle.data_id,
        "heatmaps": str(explain) if explain else None,
        "method": method,
        "exports": [str(export_to), *(exports or ())],
    }
    if target is None:
        if resume:
            raise ConfigError("--resume needs --json or --csv: without them no answer is kept.")
        _print_answers(bundle, listing.files, extras)
        return
    with Journal(target, about, resume=resume) as journal:
        _keep_answers(bundle, listing.files, extras, journal)
        _finish(journal, bundle, json_file=json_file, csv_file=csv_file)
    print_text(RESEARCH_USE)


def _choose_formats(keys: Sequence[str]) -> "list[CaseFormat]":
    """Find the requested formats.

    Raises:
        ConfigError: a format does not exist.
    """
    from core.export.formats import CASE_FORMATS

    unknown = [key for key in keys if key not in CASE_FORMATS]
    if unknown:
        raise ConfigError(f"unknown format {unknown[0]!r}; choose among {', '.join(CASE_FORMATS)}.")
    return [CASE_FORMATS[key] for key in dict.fromkeys(keys)]


def _keep_answers(
    model: "LoadedModel", files: Sequence[Path], extras: "Extras", journal: Journal
) -> None:
    """Answer the files that have no answer in the journal yet."""
    from core.export.batch import answer_files, skip_done

    left = skip_done(files, journal.read_rows()) if journal.n_rows else list(files)
    if journal.n_rows:
        print_text(f"{len(files) - len(left)} of {len(files)} files were answered before.")
    n_done = len(files) - len(left)
    with show_progress("predict") as report:
        try:
            answers = answer_files(model, left, extras, first=journal.n_rows, warn=print_text)
            for n, row in enumerate(answers, start=n_done + 1):
                journal.append(row)
                report(n / len(files), f"{n} of {len(files)} files")
        except (OSError, ConfigError, KeyboardInterrupt) as err:
            why = "it was interrupted" if isinstance(err, KeyboardInterrupt) else str(err)
            text = f"the batch stopped after {journal.n_rows} files: {why} What was answered is"
            raise _stop(journal, text, "go on") from err


def _stop(journal: Journal, text: str, advice: str) -> ConfigError:
    """Build the error of a batch that can go on."""
    return ConfigError(
        f"{text} kept in {show_name(journal.path)}; {advice} with --resume.",
        code="output.stopped",
        params={"n": journal.n_rows},
    )


def _finish(
    journal: Journal, model: "LoadedModel", *, json_file: Path | None, csv_file: Path | None
) -> None:
    from core.export.batch import write_results

    try:
        write_results(
            journal.read_rows,
            json_file=json_file,
            csv_file=csv_file,
            class_names=(model.disease_class, model.other_class),
        )
    except OSError as err:
        text = f"the results could not be written ({err.strerror or err}). The answers are"
        raise _stop(journal, text, "make room, and go on") from err
    _print_worklist(journal.read_rows())
    journal.remove()


def _print_answers(model: "LoadedModel", files: Sequence[Path], extras: "Extras") -> None:
    """Print answers as they come, as one JSON list."""
    from core.export.batch import answer_files, format_list

    kept: list[dict[str, Any]] = []
    with show_progress("predict") as report:

        def watch() -> Iterable[dict[str, Any]]:
            for row in answer_files(model, files, extras, warn=print_text):
                kept.append({name: row[name] for name in _SHOWN})
                yield row
                report(len(kept) / len(files), f"{len(kept)} of {len(files)} files")

        for piece in format_list(watch()):
            echo_json(piece)
    _print_worklist(kept)
    print_text(RESEARCH_USE)


_SHOWN = ("file", "status", "answer", "probabilities", "error", "abstain_reason", "notices")


def _print_worklist(rows: Iterable[dict[str, Any]]) -> None:
    """Print the first answers as a table, and how many there are of each kind."""
    counts: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    for row in rows:
        counts[row["status"]] += 1
        if len(first) < _N_SHOWN:
            first.append(row)
    print_table(
        ("file", "status", "class", "probability", "reason"),
        [
            (
                Path(row["file"]).name,
                row["status"],
                row["answer"] or "",
                f"{row['probabilities'][row['answer']]:.3f}" if row["answer"] else "",
                row["error"] or row["abstain_reason"] or "",
            )
            for row in first
        ],
    )
    for row in first:
        for notice in row["notices"]:
            print_text(f"{Path(row['file']).name}: {notice['text']}")
    n_more = sum(counts.values()) - len(first)
    more = f", {n_more} of them not shown" if n_more else ""
    print_text(", ".join(f"{n} {status}" for status, n in sorted(counts.items())) + more)
