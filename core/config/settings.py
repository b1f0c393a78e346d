"""Machine settings, read from environment variables."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from core.config.sections import explained

_QUOTES = ("'", '"')
_SQLITE = "sqlite:///"  # what follows is a path, absolute if it begins with another slash


def resolve_path(path: Path) -> Path:
    """Expand ``~`` and make a path absolute, so that a child in another folder means the same one.

    Raises:
        ValueError: ``~name`` names no user of this machine.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError as err:
        raise ValueError(f"{str(path)!r}: {err}") from err


def _resolve_url(url: str) -> str:
    """Do the same for the file in the URL of an SQLite database; other URLs stay as they are."""
    name = url.removeprefix(_SQLITE)
    if name == url or not name or name.startswith((":memory:", "file:")):
        return url
    return f"{_SQLITE}{resolve_path(Path(name))}"


_Folder = Annotated[Path, AfterValidator(resolve_path)]


@dataclass(frozen=True)
class Settings:
    """Machine settings, read from the environment; never stored in a bundle."""

    checkpoints_dir: Annotated[_Folder, Field(validation_alias="NEIGHBORDX_CHECKPOINTS")] = Path(
        "checkpoints"
    )
    weights_dir: Annotated[_Folder | None, Field(validation_alias="NEIGHBORDX_WEIGHTS_DIR")] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Field(validation_alias="NEIGHBORDX_DEVICE")
    ] = "auto"
    # 0: all cores
    n_threads: Annotated[int, Field(validation_alias="NEIGHBORDX_THREADS", ge=0)] = 0
    max_upload_mb: Annotated[int, Field(validation_alias="NEIGHBORDX_MAX_UPLOAD_MB", ge=0)] = 64
    max_files: Annotated[int, Field(validation_alias="NEIGHBORDX_MAX_FILES", ge=0)] = 50
    # URL of the database of corrections; empty: SQLite beside the models.
    database_url: Annotated[
        str, AfterValidator(_resolve_url), Field(validation_alias="NEIGHBORDX_DATABASE")
    ] = ""
    # The app can train on folders in this one.
    data_dir: Annotated[_Folder, Field(validation_alias="NEIGHBORDX_DATA")] = Path("data")
    max_zip_mb: Annotated[int, Field(validation_alias="NEIGHBORDX_MAX_ZIP_MB", ge=0)] = 500

    @staticmethod
    def from_env() -> "Settings":
        """Read the variables above; one that is empty or only spaces counts as unset.

        Spaces around a value are dropped, and one pair of quotes, which files of variables
        (``docker run --env-file``) keep as part of the value. Paths may begin with ``~`` and become
        absolute, seen from the folder in which this process was started.

        Raises:
            ConfigError: a number is malformed, the device is unknown, or ``~name`` is nobody.
        """
        read = {name: _clean(value) for name, value in os.environ.items()}
        given = {name: value for name, value in read.items() if value}
        with explained("environment"):
            found = TypeAdapter(Settings).validate_python(given)
        # A default is not validated, so it is made absolute here.
        return replace(
            found,
            checkpoints_dir=found.checkpoints_dir.absolute(),
            data_dir=found.data_dir.absolute(),
        )


def find_cache_dir() -> Path:
    """Find the folder of what can be computed again: NEIGHBORDX_CACHE, else the user's cache."""
    own = _clean(os.environ.get("NEIGHBORDX_CACHE", ""))
    if own:
        return resolve_path(Path(own))
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "neighbordx"


def _clean(value: str) -> str:
    text = value.strip()
    is_quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTES
    return text[1:-1].strip() if is_quoted else text
