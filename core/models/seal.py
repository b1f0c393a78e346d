"""The seal of a model folder: a hash of every file, and one identity of all that answers.

Owns ``files.json``. A changed bit in any file is found when the model is loaded. The identity stays
the same wherever the model travels: of an npz it covers the arrays, not how they were packed.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.files.whole import hash_file, write_text
from core.models.marks import CONFIG_FILE, FILES, MANIFEST_FILE, WEIGHTS_FILE, build_damaged

_FORMAT = "neighbordx-files-1"
# Everything that takes part in an answer and its stated reliability, apart from the trunks (named
# by hash in config.json) and corrections of the gallery made since (counted by version).
_ANSWERING = (CONFIG_FILE, WEIGHTS_FILE, "gallery.npz", "calibration.json", "metrics.json")
_MAY_BE_MISSING = frozenset({"train.log"})


@dataclass(frozen=True)
class Seal:
    """Hashes of a model's files by name."""

    files: Mapping[str, str]  # of the bytes
    arrays: Mapping[str, str]  # of the arrays in each npz

    @property
    def identity(self) -> str:
        """Hash of everything that takes part in an answer, in hexadecimal."""
        parts = [(n, self.arrays.get(n) or self.files[n]) for n in _ANSWERING if n in self.files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def compute_seal(folder: Path) -> Seal:
    """Hash the files of a model folder that exist.

    Raises:
        CheckpointError: a file cannot be read.
    """
    paths = [folder / name for name in sorted(FILES - {MANIFEST_FILE}) if (folder / name).is_file()]
    try:
        files = {path.name: hash_file(path) for path in paths}
        arrays = {path.name: _hash_arrays(path) for path in paths if path.suffix == ".npz"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise build_damaged(folder, f"a file cannot be read ({err})") from err
    return Seal(files, arrays)


def _hash_arrays(path: Path) -> str:
    digest = hashlib.sha256()
    with np.load(path, allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            array = arrays[name]
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_seal(folder: Path) -> Seal:
    """Seal a folder as it is now."""
    seal = compute_seal(folder)
    told = {
        "format": _FORMAT,
        "identity": seal.identity,
        "files": dict(seal.files),
        "arrays": dict(seal.arrays),
    }
    write_text(folder / MANIFEST_FILE, json.dumps(told, indent=2))
    return seal


def read_seal(folder: Path) -> Seal | None:
    """Read a folder's seal; None for a model of an earlier version, which has none.

    Raises:
        CheckpointError: it cannot be read, or its identity does not follow from its hashes.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files, arrays = raw["files"], raw["arrays"]
        values = [*files.items(), *arrays.items()]
        is_good = raw["format"] == _FORMAT and all(isinstance(v, str) for _, v in values)
        if is_good and (seal := Seal(files, arrays)).identity == raw["identity"]:
            return seal
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise build_damaged(folder, f"{MANIFEST_FILE} cannot be read ({err})") from err
    raise build_damaged(folder, f"{MANIFEST_FILE} does not hold what it says")


def read_identity(folder: Path) -> str:
    """The identity that a folder's seal states; empty for a model of an earlier version.

    Raises:
        CheckpointError: the seal is damaged.
    """
    seal = read_seal(folder)
    return seal.identity if seal else ""


def check_seal(folder: Path) -> Seal | None:
    """Compare every file with the seal; None for a model of an earlier version.

    Raises:
        CheckpointError: a file has changed, is missing, or was added.
    """
    seal = read_seal(folder)
    if seal is None:
        return None
    there = {name for name in FILES - {MANIFEST_FILE} if (folder / name).is_file()}
    for name in sorted(there | seal.files.keys()):
        if name not in there and name not in _MAY_BE_MISSING:
            raise build_damaged(folder, f"{name} is missing")
        if name in there and hash_file(folder / name) != seal.files.get(name):
            raise build_damaged(folder, f"{name} does not match its recorded hash")
    return seal


def renew_seal(folder: Path) -> Seal:
    """Seal a folder whose npz files were packed anew, if it still holds what its seal says.

    Raises:
        CheckpointError: a text, the parameters or an array are not those that were sealed.
    """
    before, now = read_seal(folder), compute_seal(folder)
    if before is not None:
        _compare(folder, before, now)
    return write_seal(folder)


def _compare(folder: Path, before: Seal, now: Seal) -> None:
    for name in sorted(before.files.keys() | now.files.keys()):
        is_same = (
            before.arrays.get(name) == now.arrays.get(name)
            if name in before.arrays
            else before.files.get(name) == now.files.get(name)
        )
        if not is_same and name not in _MAY_BE_MISSING:
            raise build_damaged(folder, f"{name} does not match its recorded hash")
