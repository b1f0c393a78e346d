"""Shared by the commands: option types, progress bars, output files, text for the terminal.

What people, files and tags say is printed as it is: never as markup, never control characters.
Every output is tried when the command line is read, before any work begins.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from core.config import Settings
from core.config.settings import resolve_path
from core.files import whole
from core.files.journal import drop_nan
from core.files.names import printable


class _PlainConsole(Console):
    """A console to which every string is plain text."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


CONSOLE = _PlainConsole(stderr=True, markup=False, emoji=False, highlight=False)


def check_file(path: Path | None) -> Path | None:
    """The callback of an option that names a file to write."""
    if path is not None:
        whole.check_writable(path)
    return path


def _check_folder(path: Path | None) -> Path | None:
    if path is not None:
        whole.check_writable_folder(path)
    return path


def output_file(*names: str, help: str) -> Any:  # noqa: A002 - the word of typer
    """A command-line option of a file to write, tried before the command begins."""
    return typer.Option(*names, help=help, callback=check_file)


def output_folder(*names: str, help: str) -> Any:  # noqa: A002
    """A command-line option of a folder to write into, tried before the command begins."""
    return typer.Option(*names, help=help, callback=_check_folder)


Data = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Data folder, table or MedMNIST .npz file.",
        callback=resolve_path,
    ),
]
Model = Annotated[str, typer.Option("--model", help="Name of a model; see `models`.")]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of the models [checkpoints].")
]
JsonFile = Annotated[Path | None, output_file("--json", help="Write the result here as JSON.")]


def quiet_lightning() -> None:
    """Quieten Lightning after its import, which sets its own log level."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def read_settings(checkpoints: Path | None) -> Settings:
    settings = Settings.from_env()
    if checkpoints is None:
        return settings
    return dataclasses.replace(settings, checkpoints_dir=resolve_path(checkpoints))


def write_json(path: Path | None, value: object) -> None:
    if path is not None:
        text = json.dumps(drop_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(path, text)
    except OSError as err:
        raise whole.refuse_write(path, err) from err


def print_text(text: str) -> None:
    """Print a line as it is, without wrapping."""
    CONSOLE.print(text, soft_wrap=True)


def print_output(text: str) -> None:
    """Print to standard output, for other programs and for reading."""
    typer.echo(printable(text))


def print_json(value: object) -> None:
    """Print JSON to standard output; characters that a terminal would obey are escaped."""
    echo_json(json.dumps(drop_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def echo_json(text: str) -> None:
    """Print a piece of JSON text to standard output, without a line break of its own."""
    shown = (c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    typer.echo("".join(shown), nl=False)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """Print a table of plain text."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")  # a name that is cut cannot be typed again
    for row in rows:
        table.add_row(*map(str, row))
    CONSOLE.print(table)


@contextmanager
def show_progress(title: str) -> Iterator["_Report"]:
    """Show a progress bar on a terminal, or print occasional lines to a log file."""
    if not CONSOLE.is_terminal:
        yield _Report(title, None)
        return
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=CONSOLE) as bar:
        yield _Report(title, bar)


class _Report:
    """Receives (fraction done, message)."""

    def __init__(self, title: str, bar: Progress | None) -> None:
        self.title = title
        self.bar = bar
        self.task = bar.add_task("", total=1.0) if bar else None
        self.last = -1  # twentieth that was last printed

    def __call__(self, done: float, text: str) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, description=printable(text))
        elif self.last != (part := int(20 * done)):
            self.last = part
            print_text(f"{self.title} {done:4.0%} {text}")
