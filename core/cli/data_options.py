"""The options that say what a data folder is, the same for every command that reads one."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from core.cli.terminal import CONSOLE, print_text
from core.data.options import LAYOUTS, ROLES, parse_options
from core.data.plan import Plan

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "disease_class": (
        Annotated[
            str | None,
            typer.Option(
                "--disease-class", help="Which class is the disease, if names do not say."
            ),
        ],
        None,
    ),
    "layout": (
        Annotated[
            str, typer.Option("--layout", help=f"What holds the images: {', '.join(LAYOUTS)}.")
        ],
        "auto",
    ),
    "folders": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--folder",
                metavar="NAME=ROLE",
                help=f"What a folder is, repeatable: {', '.join(ROLES)}.",
            ),
        ],
        None,
    ),
    "classes": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--class",
                metavar="FOUND=NAME",
                help="Another name for a class, repeatable; equal names become one class.",
            ),
        ],
        None,
    ),
    "patients": (
        Annotated[
            str,
            typer.Option(
                "--patients",
                help="Which images are of one patient: auto, none, folder, dicom (PatientID), or a "
                "pattern with one group for file names.",
            ),
        ],
        "auto",
    ),
    "mask_files": (
        Annotated[
            bool,
            typer.Option(
                "--mask-files/--no-mask-files",
                help="Take x_mask.png beside x.png for its mask.",
            ),
        ],
        True,
    ),
}


def with_data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above in place of its parameter ``options``."""
    signature = inspect.signature(command, eval_str=True)
    kept = [p for name, p in signature.parameters.items() if name != "options"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        said = {name: arguments.pop(name) for name in _OPTIONS}
        options = parse_options(
            **{name: value for name, value in said.items() if value is not None}
        )
        command(**arguments, options=options)

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
    run.__signature__ = signature.replace(parameters=[*keyword_only, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
    return run


def print_plan(plan: Plan) -> None:
    """Print what the data are taken for, and what changes it."""
    CONSOLE.print("What these data are taken for:")
    for one in plan.decisions:
        mark = {"warning": "LOOK: ", "question": "ANSWER: "}.get(one.kind, "")
        change = f" [{one.option}]" if one.option else ""
        print_text(f"- {mark}{one.sentence}{change}")
