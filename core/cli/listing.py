"""Read-only commands: audit, models."""

import dataclasses
from typing import Annotated

import typer

from core.cli.data_options import print_plan, with_data_options
from core.cli.gate import print_findings
from core.cli.terminal import (
    Checkpoints,
    Data,
    JsonFile,
    print_table,
    print_text,
    read_settings,
    show_progress,
    write_json,
)
from core.data.options import DataOptions


@with_data_options
def audit(
    data: Data,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Of the validation split, repeatable.")
    ] = None,
    json_file: JsonFile = None,
    *,
    options: DataOptions,
) -> None:
    """Check a data folder: unreadable files, duplicates, leaks between splits, counts, sizes."""
    from core.data.audit import audit as run_audit
    from core.data.audit import restate
    from core.data.datasets import split_plan
    from core.data.plan import make_plan
    from core.data.readiness import combine, judge

    plan = make_plan(data, options)
    print_plan(plan)
    splits = split_plan(plan, seeds=seeds or [0])
    dataset = next(iter(splits.values()))
    with show_progress("audit") as report:
        result = run_audit(dataset, progress=report)
    findings = combine(judge(restate(result, mine)) for mine in splits.values())
    told = {
        "plan": [decision.to_json() for decision in plan.decisions],
        "class_names": plan.class_names,
        "disease_class": plan.disease_class,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    write_json(json_file, {**result.to_json(), **told})
    print_table(
        ("split", "class", "images"),
        [
            (split, class_name, n)
            for split, counts in result.counts.items()
            for class_name, n in counts.items()
        ],
        title=f"{data} ({dataset.data_id})",
    )
    print_findings(findings)
    if not findings:
        print_text("Nothing suspicious was found.")


def models(json_file: JsonFile = None, checkpoints: Checkpoints = None) -> None:
    """List the models, with the active one marked."""
    from core.models.marks import list_foreign
    from core.models.registry import active_model_id, list_models

    directory = read_settings(checkpoints).checkpoints_dir
    found, active = list_models(directory), active_model_id(directory)
    write_json(
        json_file,
        [{**dataclasses.asdict(m), "is_active": m.model_id == active} for m in found],
    )
    rows: list[tuple[object, ...]] = []
    for summary in found:
        if summary.problem:
            rows.append(("!", summary.model_id, summary.problem))
            continue
        figures = [
            f"{v:.3f}" if v is not None else "" for v in (summary.val_accuracy, summary.val_auroc)
        ]
        rows.append(
            (
                "*" if summary.model_id == active else "",
                *(summary.model_id, summary.preset, summary.created, *figures),
                *(summary.k or "", summary.n_gallery),
            )
        )
    if found:
        columns = ("", "model", "preset", "made", "val accuracy", "val AUROC", "K", "gallery")
        print_table(columns, rows)
    else:
        print_text(f"No model in {directory} yet: `python -m core demo`.")
    if foreign := list_foreign(directory):
        print_text(f"Not a model: {', '.join(foreign)}; left alone.")
