"""What makes a folder a model, and what in the checkpoints folder is somebody else's.

Owns the mark of a model folder. Whatever does not bear it is named and left alone: never listed as
a model, loaded, exported, renamed or deleted.
"""

import json
import re
from pathlib import Path

from core.errors import CheckpointError

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "files.json"
CONFIG_FILE = "config.json"
FILES = frozenset(
    {
        *(CONFIG_FILE, WEIGHTS_FILE, "gallery.npz", "projection.npz", "thumbnails.npz"),
        *("calibration.json", "metrics.json", "card.md", "train.log", MANIFEST_FILE),
    }
)
FOLDERS = frozenset({"evaluations", "maps"})  # results that are kept with a model
_BUNDLE_KEYS = frozenset({"model_id", "run", "class_names", "weights_sha256"})
_ENSEMBLE_KEYS = frozenset({"model_id", "members", "class_names"})
_N_MARKS = 3  # of its files: a model whose configuration is damaged or lost
_LISTS = re.compile(r"active|activations\.json|curation\.sqlite(-journal|-wal|-shm)?")
_CLUTTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def is_model(folder: Path) -> bool:
    """Whether a folder is a model's, however damaged.

    Its configuration has the keys of a model's or an ensemble's, or, if that cannot be read, at
    least three of its files have the names of a model's.
    """
    if not folder.is_dir():
        return False
    try:
        raw = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if isinstance(raw, dict) and (raw.keys() >= _BUNDLE_KEYS or raw.keys() >= _ENSEMBLE_KEYS):
            return True
    except (OSError, ValueError, RecursionError):
        pass
    return sum((folder / name).is_file() for name in FILES) >= _N_MARKS


def list_foreign(directory: Path) -> list[str]:
    """Names of what lies visibly in the checkpoints folder and is neither a model nor its list."""
    if not directory.is_dir():
        return []
    return sorted(
        path.name
        for path in directory.iterdir()
        if not path.name.startswith(".")
        and path.name not in _CLUTTER
        and not _LISTS.fullmatch(path.name)
        and not _may_be_listed(path)
    )


def list_folders(directory: Path) -> list[Path]:
    """The model folders by name, except hidden and incomplete ones."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _may_be_listed(path))


def _may_be_listed(path: Path) -> bool:
    return MODEL_ID.fullmatch(path.name) is not None and is_model(path)


def list_strangers(folder: Path) -> list[str]:
    """Names in a model folder that no part of this program has written there."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in _CLUTTER
        and path.name not in (FOLDERS if path.is_dir() and not path.is_symlink() else FILES)
        and not (path.is_file() and _is_unfinished(path.name))
    )


def _is_unfinished(name: str) -> bool:
    """Whether a file is one of a model's that a killed writer left under its temporary name."""
    return any(name.startswith(f".{known}-") for known in FILES)


def check_free(directory: Path, model_id: str) -> None:
    """Check that nothing is called like a new model.

    Raises:
        CheckpointError: a model has the name, or something that is not a model.
    """
    path = directory / model_id
    if not path.exists() and not path.is_symlink():
        return
    if is_model(path):
        raise CheckpointError(
            f"model {model_id!r} exists, and finished models are never overwritten. Choose another "
            "name, or delete it first.",
            code="checkpoint.exists",
            params={"model_id": model_id},
        )
    raise CheckpointError(
        f"{path} is not a model and is left alone. Choose another name for the model, or move that "
        "elsewhere.",
        code="checkpoint.foreign",
        params={"model_id": model_id},
    )


def build_damaged(folder: Path, reason: str) -> CheckpointError:
    """Build the error for a model folder whose content is not as it was written."""
    return CheckpointError(
        f"model {folder.name!r} cannot be loaded ({reason}). "
        "Restore the folder from a copy, or delete it and train again.",
        code="checkpoint.damaged",
        params={"model_id": folder.name, "reason": reason},
    )
