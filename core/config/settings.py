"""What this machine is told by its environment."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from core.config.sections import require


@dataclass(frozen=True)
class Settings:
    """Machine settings, read from the environment; never stored in a bundle."""

    checkpoints_dir: Path = Path("checkpoints")
    weights_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    n_threads: int = 0  # 0: all cores
    max_upload_mb: int = 64
    max_files: int = 50
    database_url: str = ""  # of the curation database; empty: SQLite beside the models
    data_dir: Path = Path("data")  # folders in it may be trained on from the app
    max_zip_mb: int = 500

    @staticmethod
    def from_env() -> "Settings":
        """Read NEIGHBORDX_CHECKPOINTS, _WEIGHTS_DIR, _DEVICE, _THREADS, _MAX_UPLOAD_MB, _MAX_FILES,
        _DATABASE, _DATA, _MAX_ZIP_MB.

        Raises:
            ConfigError: a number that is not one, or an unknown device.
        """
        env = os.environ
        weights = env.get("NEIGHBORDX_WEIGHTS_DIR")
        device = env.get("NEIGHBORDX_DEVICE", "auto")
        require(
            device in ("auto", "cpu", "cuda", "mps"),
            f"NEIGHBORDX_DEVICE must be auto, cpu, cuda or mps, got {device!r}.",
        )
        return Settings(
            checkpoints_dir=Path(env.get("NEIGHBORDX_CHECKPOINTS", "checkpoints")),
            weights_dir=Path(weights) if weights else None,
            device=cast(Literal["auto", "cpu", "cuda", "mps"], device),
            n_threads=_int_env("NEIGHBORDX_THREADS", 0),
            max_upload_mb=_int_env("NEIGHBORDX_MAX_UPLOAD_MB", 64),
            max_files=_int_env("NEIGHBORDX_MAX_FILES", 50),
            database_url=env.get("NEIGHBORDX_DATABASE", ""),
            data_dir=Path(env.get("NEIGHBORDX_DATA", "data")),
            max_zip_mb=_int_env("NEIGHBORDX_MAX_ZIP_MB", 500),
        )


def _int_env(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    require(text.isdigit(), f"{name} must be a whole number, got {text!r}.")
    return int(text)
