"""Shared by the commands: option types, progress bars, output files."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from core.config import Settings
from core.errors import ConfigError
from core.files import whole
from core.files.names import show_name

CONSOLE = Console(stderr=True)

Data = Annotated[Path, typer.Option("--data", help="Data folder or MedMNIST .npz file.")]
Model = Annotated[str, typer.Option("--model", help="Name of a model; see `models`.")]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of the models [checkpoints].")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")]


def quiet_lightning() -> None:
    """Quieten Lightning after its import, which sets its own log level."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def read_settings(checkpoints: Path | None) -> Settings:
    settings = Settings.from_env()
    return dataclasses.replace(settings, checkpoints_dir=checkpoints) if checkpoints else settings


def write_json(path: Path | None, value: object) -> None:
    if path is not None:
        text = json.dumps(_drop_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")


def _drop_nan(value: object) -> object:
    """Replace undefined numbers with null, because JSON has neither NaN nor Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _drop_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_drop_nan(item) for item in value]
    return value


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(path, text)
    except OSError as err:
        raise ConfigError(f"cannot write {path} ({err.strerror}).") from err


def print_text(text: str) -> None:
    """Print a line as it is: nothing in it is markup, and nothing in it wraps."""
    CONSOLE.print(Text(show_name(text)), highlight=False, soft_wrap=True)


@contextmanager
def show_progress(title: str) -> Iterator["_Report"]:
    """Show a progress bar on a terminal, or print occasional lines to a log file."""
    if not CONSOLE.is_terminal:
        yield _Report(title, None)
        return
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=CONSOLE) as bar:
        yield _Report(title, bar)


class _Report:
    """Receives (fraction done, message)."""

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
            CONSOLE.print(f"{line} {text}", highlight=False, markup=False, soft_wrap=True)
