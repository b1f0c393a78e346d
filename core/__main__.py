"""The command line: arguments, progress bars and tables only; the work is in core."""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.config import OBJECTIVES, PRESETS, EnsembleConfig, Settings, build_preset
from core.diagnosis import RESEARCH_USE, Diagnosis, to_csv, to_json
from core.errors import ConfigError, CoreError

app = typer.Typer(
    help=f"NeighborDx: normal / disease answers with their evidence. {RESEARCH_USE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_console = Console(stderr=True)

Data = Annotated[Path, typer.Option("--data", help="Data folder or MedMNIST .npz file.")]
Model = Annotated[str, typer.Option("--model", help="Name of a model; see `models`.")]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of the models [checkpoints].")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")]
DiseaseClass = Annotated[
    str | None, typer.Option("--disease-class", help="Which class is disease, if names do not say.")
]


@app.command()
def demo(checkpoints: Checkpoints = None) -> None:
    """Build the embedded demo model on synthetic images; does nothing when it exists."""
    from core.demo import build_demo

    _quiet_lightning()
    with _progress("demo") as report:
        build_demo(_settings(checkpoints), progress=report)


@app.command()
def audit(data: Data, json_file: JsonFile = None, disease_class: DiseaseClass = None) -> None:
    """Check a data folder: unreadable files, duplicates, leaks between splits, counts, sizes."""
    from core.audit import audit as run_audit
    from core.datasets import read_dataset

    dataset = read_dataset(data, disease_class=disease_class)
    with _progress("audit") as report:
        result = run_audit(dataset, progress=report)
    _write_json(json_file, result.to_json())
    table = Table("split", "class", "images", title=f"{data} ({dataset.data_id})")
    for split, counts in result.counts.items():
        for class_name, n in counts.items():
            table.add_row(split, class_name, str(n))
    _console.print(table)
    for problem in result.problems:
        _console.print(f"- {problem}", highlight=False, markup=False)
    if not result.problems:
        _console.print("No problem found.")


@app.command()
def train(
    data: Data,
    name: Annotated[str, typer.Option("--name", help="Name of the new model.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "offline",
    objective: Annotated[str, typer.Option(help=f"One of {', '.join(OBJECTIVES)}.")] = "triplet",
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run.")] = False,
    cache_trunk: Annotated[
        bool, typer.Option("--cache-trunk/--no-cache-trunk", help="Keep trunk activations on disk.")
    ] = True,
    disease_class: DiseaseClass = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Fine-tune a model on a data folder."""
    from core.datasets import read_dataset
    from core.training import train as run_training

    config = build_preset(preset).with_overrides(
        [f"objective.name={objective}", f"train.seed={seed}", *(overrides or [])]
    )
    settings = _settings(checkpoints)
    if resume and (settings.checkpoints_dir / name / "config.json").is_file():
        _console.print(f"model {name} is finished; nothing to resume.")
        return
    dataset = read_dataset(
        data,
        disease_class=disease_class,
        val_fraction=config.train.val_fraction,
        seed=config.train.seed,
    )
    _quiet_lightning()
    with _progress("train") as report:
        folder = run_training(
            dataset,
            config,
            name=name,
            settings=settings,
            resume=resume,
            cache_trunk=cache_trunk,
            progress=report,
        )
    _console.print((folder / "card.md").read_text(encoding="utf-8"), highlight=False, markup=False)


@app.command()
def ensemble(
    members: Annotated[str, typer.Option(help="Names of two or more models, with commas.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new ensemble.")],
    min_val_accuracy: Annotated[
        float, typer.Option(help="A model under this validation accuracy is refused.")
    ] = EnsembleConfig().min_val_accuracy,
    checkpoints: Checkpoints = None,
) -> None:
    """Put finished models to a soft vote, weighted by validation accuracy."""
    from core.ensemble import build_ensemble

    folder = build_ensemble(
        _settings(checkpoints).checkpoints_dir,
        name,
        [part.strip() for part in members.split(",") if part.strip()],
        min_val_accuracy=min_val_accuracy,
    )
    _console.print((folder / "card.md").read_text(encoding="utf-8"), highlight=False, markup=False)


@app.command()
def predict(
    model: Model,
    paths: Annotated[list[Path], typer.Argument(help="Images, DICOM files or folders.")],
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a table here.")] = None,
    explain: Annotated[
        Path | None, typer.Option("--explain", help="Write heatmap pictures into this folder.")
    ] = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Answer on images, each with its evidence; bad files get their reason and stop nothing."""
    from core.image_io import load
    from core.inference import diagnose, reject
    from core.registry import load_bundle

    settings = _settings(checkpoints)
    bundle = load_bundle(settings.checkpoints_dir, model, settings=settings)
    files = list(_find_files(paths))
    if not files:
        raise ConfigError("no file was found under the given paths; name images or folders.")
    diagnoses: list[Diagnosis] = []
    written: list[dict[str, str]] = []
    with _progress("predict") as report:
        for index, path in enumerate(files):
            try:
                image = dataclasses.replace(load(path), name=str(path))
                done = diagnose(bundle, [image], explain=explain is not None)[0]
            except CoreError as err:
                done = reject(str(path), err, model=bundle)
            written.append(_save_heatmaps(done, explain, index=index) if explain else {})
            diagnoses.append(dataclasses.replace(done, heatmaps={}, pixels=None))
            report((index + 1) / len(files), f"{index + 1} of {len(files)} files")
    rows = [to_json(d, heatmap_files=f) for d, f in zip(diagnoses, written, strict=True)]
    _write_json(json_file, rows)
    if csv_file is not None:
        _write_text(csv_file, to_csv(diagnoses))
    if json_file is None and csv_file is None:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    _print_worklist(diagnoses)


@app.command()
def evaluate(
    model: Model,
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    json_file: JsonFile = None,
    disease_class: DiseaseClass = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Measure a model on a split: accuracy, AUROC, calibration, with 95 % intervals."""
    from core.datasets import read_dataset
    from core.inference import evaluate as run_evaluation
    from core.registry import load_bundle

    settings = _settings(checkpoints)
    bundle = load_bundle(settings.checkpoints_dir, model, settings=settings)
    run = bundle.lead.config.run.train
    dataset = read_dataset(
        data, disease_class=disease_class, val_fraction=run.val_fraction, seed=run.seed
    )
    with _progress("evaluate") as report:
        result = run_evaluation(bundle, dataset, split=split, progress=report)
    _write_json(json_file, result)
    if json_file is None:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))


@app.command()
def ablation(
    data: Data,
    json_file: Annotated[Path, typer.Option("--json", help="Result; a table goes beside it.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "offline",
    systems: Annotated[str, typer.Option(help="Systems of the report, with commas.")] = "1,4,5,6",
    seeds: Annotated[int, typer.Option(help="Training runs per system.")] = 3,
    disease_class: DiseaseClass = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Train the report's systems on one data folder and compare them; a killed one goes on."""
    from core.ablation import run_ablation, write_table

    _quiet_lightning()
    with _progress("ablation") as report:
        result = run_ablation(
            data,
            preset=preset,
            systems=[part.strip() for part in systems.split(",") if part.strip()],
            n_seeds=seeds,
            settings=_settings(checkpoints),
            disease_class=disease_class,
            progress=report,
        )
    _write_json(json_file, result)
    table = write_table(result)
    _write_text(json_file.with_suffix(".md"), table)
    _console.print(table, highlight=False, markup=False)


@app.command()
def models(json_file: JsonFile = None, checkpoints: Checkpoints = None) -> None:
    """List the models, with the active one marked."""
    from core.registry import active_model_id, list_models

    directory = _settings(checkpoints).checkpoints_dir
    found, active = list_models(directory), active_model_id(directory)
    _write_json(
        json_file,
        [{**dataclasses.asdict(m), "is_active": m.model_id == active} for m in found],
    )
    table = Table("", "model", "preset", "made", "val accuracy", "val AUROC", "K", "gallery")
    for summary in found:
        if summary.problem:
            table.add_row("!", summary.model_id, summary.problem)
            continue
        figures = [
            f"{v:.3f}" if v is not None else "" for v in (summary.val_accuracy, summary.val_auroc)
        ]
        table.add_row(
            "*" if summary.model_id == active else "",
            *(summary.model_id, summary.preset, summary.created, *figures),
            *(str(summary.k or ""), str(summary.n_gallery)),
        )
    _console.print(table if found else f"No model in {directory} yet: `python -m core demo`.")


def _quiet_lightning() -> None:
    """After its import, which sets its own level: our progress says what matters."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _settings(checkpoints: Path | None) -> Settings:
    settings = Settings.from_env()
    return dataclasses.replace(settings, checkpoints_dir=checkpoints) if checkpoints else settings


def _find_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
        else:
            yield path


def _save_heatmaps(diagnosis: Diagnosis, folder: Path, *, index: int) -> dict[str, str]:
    from core.explain import overlay
    from core.image_io import encode_png

    if diagnosis.pixels is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for backbone, heatmap in diagnosis.heatmaps.items():
        path = folder / f"{index:04d}-{Path(diagnosis.file).stem}-{backbone}.png"
        path.write_bytes(encode_png(overlay(diagnosis.pixels, heatmap, opacity=0.6)))
        files[backbone] = str(path)
    return files


def _print_worklist(diagnoses: Sequence[Diagnosis]) -> None:
    table = Table("file", "status", "class", "probability", "reason")
    for d in diagnoses:
        probability = d.probabilities.get(d.predicted_class or "")
        table.add_row(
            Path(d.file).name,
            d.status,
            d.predicted_class or "",
            f"{probability:.3f}" if probability is not None else "",
            d.error or d.abstain_reason or "",
        )
    _console.print(table)
    _console.print(RESEARCH_USE)


def _write_json(path: Path | None, value: object) -> None:
    if path is not None:
        _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.writing")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as err:
        raise ConfigError(f"cannot write {path} ({err.strerror}).") from err


@contextmanager
def _progress(title: str) -> Iterator["_Report"]:
    """A progress bar on a terminal, one line now and then in a log file."""
    if not _console.is_terminal:
        yield _Report(title, None)
        return
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=_console) as bar:
        yield _Report(title, bar)


class _Report:
    """Takes (share done, sentence)."""

    def __init__(self, title: str, bar: Progress | None) -> None:
        self.title = title
        self.bar = bar
        self.task = bar.add_task("", total=1.0) if bar else None
        self.last = ""

    def __call__(self, done: float, text: str) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, description=text)
        elif self.last != (line := f"{self.title} {done:4.0%}"):
            self.last = line
            _console.print(f"{line} {text}", highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a deliberate failure is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except CoreError as err:
        print(f"Error: {err}", file=sys.stderr)  # noqa: T201 - one plain line, unwrapped
        sys.exit(2)


if __name__ == "__main__":
    main()
