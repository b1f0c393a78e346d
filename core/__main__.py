"""The entry point of the command line, ``python -m core COMMAND``; see ``core.cli``."""

import logging
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from core.answers.diagnosis import RESEARCH_USE
from core.cli import answers, evaluation, exploring, jobs, listing, models, training
from core.config import describe_software
from core.errors import CoreError
from core.files.names import printable
from core.jobs import ending

logger = logging.getLogger(__name__)

COMMANDS = (
    training.demo,
    listing.audit,
    training.train,
    training.ensemble,
    answers.predict,
    evaluation.evaluate,
    evaluation.external,
    evaluation.report,
    training.ablation,
    listing.models,
    exploring.findings,
    exploring.gallery,
    exploring.fit_map,
)
NAMED: dict[str, Callable[..., None]] = {
    "card": models.card,
    "compare": models.compare,
    "activate": models.activate,
    "roll-back": models.roll_back,
    "history": models.history,
    "export": models.export,
    "import": models.import_file,
    "delete": models.delete,
    "unpack": models.unpack,
    "delete-data": models.delete_data,
    "estimate": models.estimate,
}
GROUPS = {"jobs": jobs.COMMANDS}


def build_app() -> typer.Typer:
    """Build the Typer app with every command."""
    app = typer.Typer(
        help=f"NeighborDx: normal / disease answers with their evidence. {RESEARCH_USE}",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_set_up)
    for command in COMMANDS:
        app.command()(command)
    for name, named in NAMED.items():
        app.command(name)(named)
    for name, commands in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, help=f"Commands of {name}.")
        for verb, function in commands.items():
            group.command(verb)(function)
        app.add_typer(group, name=name)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"NeighborDx {describe_software()}")
        raise typer.Exit


def _set_up(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a known failure prints one line and exits with code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        build_app()()
    except CoreError as err:
        _fail(str(err))
    except OSError as err:
        logger.debug("the file system said no", exc_info=True)
        _fail(ending.explain_os_error(err))


def _fail(reason: str) -> NoReturn:
    print(f"Error: {printable(reason)}", file=sys.stderr)  # noqa: T201 - one plain line, unwrapped
    sys.exit(2)


if __name__ == "__main__":
    main()
