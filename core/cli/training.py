"""Commands that create models: demo, train, ensemble, ablation."""

from pathlib import Path
from typing import Annotated

import typer

from core.cli.data_options import print_plan, with_data_options
from core.cli.gate import Check, check_data
from core.cli.terminal import (
    Checkpoints,
    Data,
    output_file,
    print_text,
    quiet_lightning,
    read_settings,
    show_progress,
    write_json,
    write_text,
)
from core.config import OBJECTIVES, PRESETS, RECIPES, EnsembleConfig, build_preset
from core.data.options import DataOptions

Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")
]


def demo(checkpoints: Checkpoints = None) -> None:
    """Build the built-in demo model on synthetic images; does nothing if it exists."""
    from core.training.demo import build_demo

    quiet_lightning()
    with show_progress("demo") as report:
        build_demo(read_settings(checkpoints), progress=report)


@with_data_options
def train(
    data: Data,
    name: Annotated[str, typer.Option("--name", help="Name of the new model.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "offline",
    objective: Annotated[str, typer.Option(help=f"One of {', '.join(OBJECTIVES)}.")] = "triplet",
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RECIPES)}.")] = RECIPES[0],
    is_ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Train the two models NAME-... and their vote NAME.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run.")] = False,
    cache_trunk: Annotated[
        bool, typer.Option("--cache-trunk/--no-cache-trunk", help="Keep trunk activations on disk.")
    ] = True,
    has_look: Check = True,
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Fine-tune a model on a data folder, after checking the data."""
    from core.data.datasets import split_plan
    from core.data.plan import make_plan
    from core.training.ensemble import train_ensemble
    from core.training.run import train as run_training

    config = build_preset(preset, recipe=recipe).with_overrides(
        [f"objective.name={objective}", f"train.seed={seed}", *(overrides or [])]
    )
    settings = read_settings(checkpoints)
    if resume and (settings.checkpoints_dir / name / "config.json").is_file():
        print_text(f"model {name} is finished; nothing to resume.")
        return
    plan = make_plan(data, options)
    print_plan(plan)
    seed = config.train.seed
    dataset = split_plan(plan, seeds=[seed], val_fraction=config.train.val_fraction)[seed]
    is_resumed = resume and (settings.checkpoints_dir / ".runs" / name).is_dir()
    check_data(dataset, has_look=has_look and not is_resumed)
    quiet_lightning()
    with show_progress("train") as report:
        run = train_ensemble if is_ensemble else run_training
        folder = run(
            dataset,
            config,
            name=name,
            settings=settings,
            resume=resume,
            cache_trunk=cache_trunk,
            progress=report,
        )
    print_text((folder / "card.md").read_text(encoding="utf-8"))


def ensemble(
    members: Annotated[str, typer.Option(help="Names of two or more models, with commas.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new ensemble.")],
    min_val_accuracy: Annotated[
        float, typer.Option(help="A model under this validation accuracy is refused.")
    ] = EnsembleConfig().min_val_accuracy,
    checkpoints: Checkpoints = None,
) -> None:
    """Build an ensemble: a soft vote of finished models, weighted by validation accuracy."""
    from core.models.ensemble import build_ensemble

    folder = build_ensemble(
        read_settings(checkpoints).checkpoints_dir,
        name,
        [part.strip() for part in members.split(",") if part.strip()],
        min_val_accuracy=min_val_accuracy,
    )
    print_text((folder / "card.md").read_text(encoding="utf-8"))


@with_data_options
def ablation(
    data: Data,
    json_file: Annotated[Path, output_file("--json", help="Result; a table goes beside it.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "offline",
    systems: Annotated[str, typer.Option(help="Systems of the report, with commas.")] = "1,4,5,6",
    seeds: Annotated[int, typer.Option(help="Training runs per system.")] = 3,
    overrides: Overrides = None,
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Train the report's systems on one data folder and compare them; resumes if interrupted."""
    from core.assessment.ablation import run_ablation, write_table

    quiet_lightning()
    with show_progress("ablation") as report:
        result = run_ablation(
            data,
            preset=preset,
            systems=[part.strip() for part in systems.split(",") if part.strip()],
            n_seeds=seeds,
            settings=read_settings(checkpoints),
            options=options,
            overrides=overrides or (),
            progress=report,
        )
    write_json(json_file, result)
    table = write_table(result)
    write_text(json_file.with_suffix(".md"), table)
    print_text(table)
