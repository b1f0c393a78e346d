"""Commands that measure a model: evaluate, external, report."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.cli.data_options import with_data_options
from core.cli.terminal import (
    Checkpoints,
    Data,
    JsonFile,
    Model,
    output_file,
    print_json,
    print_table,
    print_text,
    read_settings,
    show_progress,
    write_json,
)
from core.data.options import DataOptions
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.assessment.record import Evaluation

Split = Annotated[str, typer.Option(help="train, val or test.")]


@with_data_options
def evaluate(
    model: Model,
    data: Data,
    split: Split = "test",
    json_file: JsonFile = None,
    parts: Annotated[
        str, typer.Option(help="Longer studies, with commas: robustness,explanations.")
    ] = "",
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Evaluate a model on a split: accuracy, AUROC, calibration, with 95 % intervals.

    The results are saved with the model, for the Evaluate page and the report.
    """
    from core.assessment.assess import assess
    from core.assessment.record import to_json

    with show_progress("evaluate") as progress:
        evaluation = assess(
            model,
            data,
            split=split,
            settings=read_settings(checkpoints),
            parts=[part.strip() for part in parts.split(",") if part.strip()],
            options=options,
            progress=progress,
        )
    value = to_json(evaluation)
    write_json(json_file, value)
    if json_file is None:
        print_json(value)
    _warn_of_seen(evaluation)


def external(
    model: Model,
    home: Annotated[str, typer.Option(help="Evaluation at home; see `evaluate`.")],
    away: Annotated[str, typer.Option(help="Evaluation on the other data.")],
    sample: Annotated[int, typer.Option(help="Labelled images to recalibrate on.")] = 40,
    json_file: JsonFile = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Compare two evaluations of a model: metrics, shift, gain from recalibration.

    An evaluation is named DATA-SPLIT, as in <model>/evaluations/.
    """
    from core.assessment.store import load_evaluation
    from core.stats.shift import compare

    directory = read_settings(checkpoints).checkpoints_dir
    other = load_evaluation(directory, model, away)
    result = compare(
        load_evaluation(directory, model, home).to_answers(),
        other.to_answers(),
        n_sample=sample,
    )
    value = dataclasses.asdict(result)
    write_json(json_file, value)
    if json_file is None:
        print_json(value)
    _warn_of_seen(other)


def _warn_of_seen(evaluation: "Evaluation") -> None:
    from core.assessment.record import say_seen

    if evaluation.is_fitted_on:
        print_text(f"Warning: {say_seen(evaluation)}")


def report(
    model: Model,
    evaluation: Annotated[
        str | None, typer.Option(help="DATA-SPLIT of a kept evaluation [the newest].")
    ] = None,
    html: Annotated[Path | None, output_file("--html", help="The report as HTML.")] = None,
    pdf: Annotated[Path | None, output_file("--pdf", help="The report as PDF.")] = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Write the evaluation report with the model card, in the order of CLAIM 2024."""
    from core.assessment.store import list_evaluations
    from core.export.evaluation_report import write_report

    if html is None and pdf is None:
        raise ConfigError("name a file to write: --html FILE, --pdf FILE, or both.")
    directory = read_settings(checkpoints).checkpoints_dir
    kept = list_evaluations(directory, model)
    if not kept:
        raise ConfigError(
            f"model {model!r} has no kept evaluation; run `python -m core evaluate` first."
        )
    write_report(directory, model, evaluation or kept[0].name, html=html, pdf=pdf)
    print_table(
        ("evaluation", "data", "split", "n", "accuracy", "made"),
        [(e.name, e.data_name, e.split, e.n, f"{e.accuracy:.3f}", e.created) for e in kept],
    )
