"""Commands for background jobs: jobs start, list, show, cancel, resume, delete."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from core.cli.data_options import print_plan, with_data_options
from core.cli.gate import Check, check_data
from core.cli.terminal import (
    CONSOLE,
    Checkpoints,
    Data,
    JsonFile,
    print_json,
    print_table,
    print_text,
    read_settings,
    show_progress,
    write_json,
)
from core.config import RECIPES
from core.data.options import DataOptions
from core.errors import JobError
from core.files.names import write_path
from core.jobs import metrics, queue

JobId = Annotated[str, typer.Argument(help="Id of a job; see `jobs list`.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay and show the progress until it ends.")]


@with_data_options
def train(
    data: Data,
    name: Annotated[str, typer.Option("--name", help="Name of the new model.")],
    preset: Annotated[str, typer.Option(help="As for `train`.")] = "offline",
    objective: Annotated[str, typer.Option(help="As for `train`.")] = "triplet",
    recipe: Annotated[str, typer.Option(help="As for `train`.")] = RECIPES[0],
    is_ensemble: Annotated[bool, typer.Option("--ensemble", help="As for `train`.")] = False,
    seed: Annotated[int, typer.Option(help="Fixes every random draw.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")
    ] = None,
    cache_trunk: Annotated[
        bool, typer.Option("--cache-trunk/--no-cache-trunk", help="Keep trunk activations on disk.")
    ] = True,
    has_look: Check = True,
    wait: Wait = False,
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Check the data and queue a fine-tuning run; it continues if this terminal is closed."""
    from core.config.presets import build_config
    from core.data.datasets import split_plan
    from core.data.plan import make_plan
    from core.models.bundle import check_model_id
    from core.training.ensemble import name_members

    params = {
        "data": write_path(data),
        "name": check_model_id(name),
        "preset": preset,
        "recipe": recipe,
        "objective": objective,
        "is_ensemble": is_ensemble,
        "seed": seed,
        "overrides": list(overrides or []),
        "cache_trunk": cache_trunk,
        "options": options.to_json(),
    }
    config = build_config(params)  # refuse an invalid recipe now, not when the job starts
    if is_ensemble:
        name_members(name)
    plan = make_plan(data, options)
    print_plan(plan)
    seed = config.train.seed
    dataset = split_plan(plan, seeds=[seed], val_fraction=config.train.val_fraction)[seed]
    check_data(dataset, has_look=has_look)
    _start("train", params, title=name, wait=wait, checkpoints=checkpoints)


@with_data_options
def evaluate(
    model: Annotated[str, typer.Option("--model", help="Name of a model; see `models`.")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    wait: Wait = False,
    checkpoints: Checkpoints = None,
    *,
    options: DataOptions,
) -> None:
    """Queue the evaluation of a model on a split."""
    params = {
        "model": model,
        "data": write_path(data),
        "split": split,
        "options": options.to_json(),
    }
    _start("evaluate", params, title=f"{model}, {split}", wait=wait, checkpoints=checkpoints)


def list_all(json_file: JsonFile = None, checkpoints: Checkpoints = None) -> None:
    """List all jobs, newest first."""
    found = queue.list_jobs(read_settings(checkpoints).checkpoints_dir)
    write_json(json_file, [_to_json(job) for job in found])
    if not found:
        print_text("No job yet.")
        return
    print_table(
        ("job", "kind", "title", "status", "progress", "message"),
        [
            (
                *(job.job_id, job.kind, job.title, job.status),
                f"{job.progress:.0%}" if job.started else "",
                job.error or job.message,
            )
            for job in found
        ],
    )


def show(job_id: JobId, checkpoints: Checkpoints = None) -> None:
    """Show one job: its state as JSON, and the last lines of its log."""
    directory = read_settings(checkpoints).checkpoints_dir
    job = queue.find(directory, job_id)
    print_json(_to_json(job))
    for line in metrics.read_log(queue.folder_of(directory, job_id)):
        print_text(line)


def cancel(job_id: JobId, checkpoints: Checkpoints = None) -> None:
    """Stop a job; training can be resumed later."""
    queue.cancel(read_settings(checkpoints).checkpoints_dir, job_id)
    CONSOLE.print(f"job {job_id} was asked to stop.")


def resume(job_id: JobId, wait: Wait = False, checkpoints: Checkpoints = None) -> None:
    """Queue a failed or cancelled job again; training continues from its last checkpoint."""
    settings = read_settings(checkpoints)
    queue.resume(settings.checkpoints_dir, job_id, settings=settings)
    CONSOLE.print(f"job {job_id} is queued.")
    if wait:
        _wait(settings.checkpoints_dir, job_id)


def delete(job_id: JobId, checkpoints: Checkpoints = None) -> None:
    """Delete an ended job and any unfinished run it left."""
    queue.delete(read_settings(checkpoints).checkpoints_dir, job_id)
    CONSOLE.print(f"job {job_id} is gone.")


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "list": list_all,
    "show": show,
    "cancel": cancel,
    "resume": resume,
    "delete": delete,
}


def _start(
    kind: str, params: Mapping[str, object], *, title: str, wait: bool, checkpoints: Path | None
) -> None:
    settings = read_settings(checkpoints)
    job = queue.start(kind, params, title=title, settings=settings)
    typer.echo(job.job_id)
    if wait:
        _wait(settings.checkpoints_dir, job.job_id)


def _wait(directory: Path, job_id: str) -> None:
    with show_progress("job") as report:
        while (job := queue.find(directory, job_id)).is_open:
            report(job.progress, job.message or job.status)
            time.sleep(1.0)
    if job.status != "done":
        raise JobError(f"job {job_id} {job.status}. {job.error}".strip())
    CONSOLE.print(f"job {job_id} is done.")


def _to_json(job: queue.Job) -> dict[str, object]:
    return {
        name: getattr(job, name)
        for name in (
            "job_id", "kind", "title", "status", "progress", "message", "created", "started",
            "ended", "error", "error_code", "params",
        )
    }  # fmt: skip
