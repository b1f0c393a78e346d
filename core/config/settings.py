"""Machine settings, read from environment variables."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from core.config.sections import explained


@dataclass(frozen=True)
class Settings:
    """Machine settings, read from the environment; never stored in a bundle."""

    checkpoints_dir: Annotated[Path, Field(validation_alias="NEIGHBORDX_CHECKPOINTS")] = Path(
        "checkpoints"
    )
    weights_dir: Annotated[Path | None, Field(validation_alias="NEIGHBORDX_WEIGHTS_DIR")] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Field(validation_alias="NEIGHBORDX_DEVICE")
    ] = "auto"
    # 0: all cores
    n_threads: Annotated[int, Field(validation_alias="NEIGHBORDX_THREADS", ge=0)] = 0
    max_upload_mb: Annotated[int, Field(validation_alias="NEIGHBORDX_MAX_UPLOAD_MB", ge=0)] = 64
    max_files: Annotated[int, Field(validation_alias="NEIGHBORDX_MAX_FILES", ge=0)] = 50
    # URL of the database of corrections; empty: SQLite beside the models.
    database_url: Annotated[str, Field(validation_alias="NEIGHBORDX_DATABASE")] = ""
    # The app can train on folders in this one.
    data_dir: Annotated[Path, Field(validation_alias="NEIGHBORDX_DATA")] = Path("data")
    max_zip_mb: Annotated[int, Field(validation_alias="NEIGHBORDX_MAX_ZIP_MB", ge=0)] = 500

    @staticmethod
    def from_env() -> "Settings":
        """Read the variables above; an empty one counts as unset.

        Raises:
            ConfigError: a number is malformed, or the device is unknown.
        """
        given = {name: value for name, value in os.environ.items() if value}
        with explained("environment"):
            return TypeAdapter(Settings).validate_python(given)
