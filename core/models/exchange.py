"""Export a model to one safetensors file and import it; nothing in the file is executable.

Owns the file format and the checks on a file from elsewhere. The file is not compressed, so it
cannot expand on reading. It holds no paths, only file names from a fixed list, and one hash covers
all arrays and texts. The hash proves that the file is intact, not who made it.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core.config import Settings
from core.errors import BackboneError, CheckpointError, ConfigError, CoreError
from core.files import abandoned
from core.files.whole import check_writable_folder, write_whole
from core.gallery.corrections import Version, replay
from core.models.bundle import check_model_id
from core.models.bundle_files import read_bundle, read_bundle_config
from core.models.carried_corrections import (
    Corrections,
    add_corrections,
    parse_corrections,
    read_corrections,
)
from core.models.ensemble import is_ensemble, read_record
from core.models.marks import MANIFEST_FILE, WEIGHTS_FILE, check_free, is_model
from core.models.registry import find_model, list_models
from core.models.seal import check_seal, read_identity, renew_seal

_FORMAT = "neighbordx-model-1"
_MAX_BYTES = 4 << 30
_MAX_TEXT = 4096  # characters of one string in an array: a key, a group, a hash
_MAX_TEXTS_BYTES = 256 << 20  # of all string arrays, as NumPy stores them
_TEXT_BYTES = 4  # per character, as NumPy stores them
_TEXTS = ("config.json", "calibration.json", "metrics.json", "card.md", "train.log", MANIFEST_FILE)
_RAW = (WEIGHTS_FILE,)
_ARRAYS = ("gallery.npz", "projection.npz", "thumbnails.npz")
SUFFIX = ".neighbordx"


@dataclass(frozen=True)
class Imported:
    """An imported model: its name, and what became of the corrections of its gallery."""

    name: str
    corrections: tuple[Corrections, ...] = ()


def export_model(
    directory: Path, model_id: str, path: Path, *, settings: Settings | None = None
) -> Path:
    """Write a model, or an ensemble with its members and their corrections, as one file.

    Args:
        directory: the checkpoints folder.
        model_id: id of a listed model.
        path: of the new file; an existing one is replaced atomically.
        settings: name the database of corrections; by default those of the environment.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
    """
    summary = find_model(directory, model_id)
    if summary.problem:
        raise CheckpointError(summary.problem, code="checkpoint.damaged")
    tensors: dict[str, NDArray[Any]] = {}
    folders = [
        _pack(directory / name, f"{index}", tensors)
        for index, name in enumerate((*summary.members, summary.model_id))
    ]
    manifest: dict[str, Any] = {"format": _FORMAT, "model_id": model_id, "folders": folders}
    manifest["identity"] = summary.identity
    settings = settings or Settings.from_env()
    manifest["corrections"] = read_corrections(directory, summary.data_id.split("+"), settings)
    manifest["sha256"] = _compute_digest(manifest, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"neighbordx": json.dumps(manifest)})
    return path


def _pack(folder: Path, prefix: str, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Add one model folder's arrays to ``tensors`` and return its texts.

    Raises:
        CheckpointError: a file has changed since the model was made.
    """
    check_seal(folder)
    texts = {n: (folder / n).read_text(encoding="utf-8") for n in _TEXTS if (folder / n).is_file()}
    strings: dict[str, dict[str, Any]] = {}
    for name in _RAW:
        if (folder / name).is_file():
            tensors[f"{prefix}/{name}"] = np.fromfile(folder / name, dtype=np.uint8)
    for name in _ARRAYS:
        if not (folder / name).is_file():
            continue
        with np.load(folder / name, allow_pickle=False) as arrays:
            for key in arrays.files:
                if arrays[key].dtype.kind == "U":
                    strings.setdefault(name, {})[key] = arrays[key].tolist()
                else:
                    tensors[f"{prefix}/{name}/{key}"] = np.ascontiguousarray(arrays[key])
    return {"model_id": folder.name, "texts": texts, "strings": strings}


def _compute_digest(manifest: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> str:
    told = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def import_model(directory: Path, path: Path, *, settings: Settings, name: str = "") -> Imported:
    """Check a model file from elsewhere and add its models to the folder.

    Args:
        directory: the checkpoints folder.
        path: the file.
        settings: used to build the network once, to verify the file.
        name: a new name for the model (not for the members of an ensemble).

    Returns:
        The name under which it was imported, and what became of its corrections.

    Raises:
        CheckpointError: the file is not a model file, or is damaged or altered, or the name is
            taken.
        BackboneError: the pretrained backbones it needs are not available on this machine.
    """
    manifest, tensors = _read(path)
    check_writable_folder(directory)
    workshop = Path(tempfile.mkdtemp(prefix=".importing-", suffix=f"-{os.getpid()}", dir=directory))
    abandoned.mark(workshop)
    try:
        folders = _unpack(workshop, manifest, tensors, name=name)
        new = [f for f in folders if not _is_known(directory, f)]
        histories = _find_histories(manifest, folders)
        for folder in folders:
            _prove(folder, settings, histories)
        taken = {key for model in list_models(directory) for key in model.data_id.split("+")}
        for folder in new:
            _put(directory, folder)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    told = add_corrections(directory, histories, settings, taken=taken)
    return Imported(folders[-1].name, told)


def _find_histories(manifest: dict[str, Any], folders: Sequence[Path]) -> dict[str, list[Version]]:
    """Read the corrections in a file; only of data that its models were trained on."""
    known = {read_bundle_config(f).data_id for f in folders if not is_ensemble(f)}
    try:
        return parse_corrections(manifest.get("corrections", {}), known)
    except ConfigError as err:
        _refuse(str(err), err)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the manifest and the arrays, and verify their hash."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        _refuse("it is missing or larger than 4 GB")
    try:
        with safe_open(path, framework="numpy") as stored:
            text = (stored.metadata() or {}).get("neighbordx")
            if text is None:
                _refuse("it is a safetensors file of another program")
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        manifest = json.loads(text)
        wanted = str(manifest["sha256"])
        is_ours = manifest["format"] == _FORMAT and isinstance(manifest["folders"], list)
    except (SafetensorError, OSError) as err:
        with path.open("rb") as handle:
            head = handle.read(4)
        if head[:1] == b"\x80" or head == b"PK\x03\x04":
            _refuse("it is a pickle or a zip (a torch file?), which may run code, never read", err)
        _refuse(f"it is no safetensors file ({err})", err)
    except MemoryError as err:
        _refuse("it needs more memory than is free", err)
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        _refuse(f"its description cannot be read ({type(err).__name__}: {err})", err)
    if not is_ours:
        _refuse(f"its format is {manifest['format']!r}; expected {_FORMAT}")
    if _compute_digest(manifest, tensors) != wanted:
        _refuse("its content does not match its hash: it was changed or cut on the way")
    return manifest, tensors


def _unpack(
    workshop: Path, manifest: dict[str, Any], tensors: dict[str, NDArray[Any]], *, name: str
) -> list[Path]:
    """Write the folders listed in the manifest; only file names from the fixed list are allowed."""
    folders = []
    try:
        _check_texts(manifest)
        for index, told in enumerate(manifest["folders"]):
            is_last = index == len(manifest["folders"]) - 1
            folder = workshop / check_model_id(str(name if name and is_last else told["model_id"]))
            folder.mkdir(parents=True)
            mine = {
                key.partition("/")[2]: array
                for key, array in tensors.items()
                if key.partition("/")[0] == str(index)
            }
            _write_folder(folder, told["texts"], told["strings"], mine)
            folders.append(folder)
    except MemoryError as err:
        _refuse("it needs more memory than is free", err)
    except (KeyError, TypeError, AttributeError, ValueError, FileExistsError) as err:
        if isinstance(err, CoreError):
            _refuse(str(err), err)
        _refuse(f"its description is not as expected ({type(err).__name__}: {err})", err)
    if not folders:
        _refuse("it holds no model")
    return folders


def _check_texts(manifest: dict[str, Any]) -> None:
    """Refuse string arrays that would fill the memory: each string is padded to the longest.

    Raises:
        CheckpointError: the strings are too long or too many.
        TypeError: an array holds something other than strings.
    """
    n_bytes = 0
    arrays = [
        a for f in manifest["folders"] for fields in f["strings"].values() for a in fields.items()
    ]
    for field, value in arrays:
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{field} holds other things than texts")
        longest = max(map(len, texts), default=0)
        n_bytes += longest * len(texts) * _TEXT_BYTES
        if longest > _MAX_TEXT or n_bytes > _MAX_TEXTS_BYTES:
            _refuse("its texts are too long or too many")


def _write_folder(
    folder: Path,
    texts: dict[str, str],
    strings: dict[str, dict[str, Any]],
    arrays: dict[str, NDArray[Any]],
) -> None:
    for name, text in texts.items():
        if name not in _TEXTS:
            _refuse(f"it holds a file {name!r}, which is no part of a model")
        (folder / name).write_text(str(text), encoding="utf-8")
    grouped: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        name, _, field = key.partition("/")
        if name in _RAW and not field:
            array.astype(np.uint8, casting="no").tofile(folder / name)
        elif name in _ARRAYS and re.fullmatch(r"[a-z0-9_]+", field):
            grouped.setdefault(name, {})[field] = array
        else:
            _refuse(f"it holds an array {key!r}, which is no part of a model")
    for name, fields in strings.items():
        if name not in _ARRAYS:
            _refuse(f"it holds a file {name!r}, which is no part of a model")
        for field, value in fields.items():
            grouped.setdefault(name, {})[field] = np.array(value, dtype=np.str_)
    for name, fields_ in grouped.items():
        np.savez(folder / name, **fields_)  # type: ignore[arg-type]
    renew_seal(folder)


def _put(directory: Path, folder: Path) -> None:
    """Move an imported model into place; another session may have imported it meanwhile."""
    try:
        folder.rename(directory / folder.name)
    except OSError:
        if not _is_known(directory, folder):
            raise


def _is_known(directory: Path, folder: Path) -> bool:
    """Whether the identical model already exists; a different one of that name is an error."""
    there = directory / folder.name
    if not is_model(there):
        check_free(directory, folder.name)
        return False
    read = read_record if is_ensemble(folder) else read_bundle_config
    try:
        same = read(there).weights_sha256 == read(folder).weights_sha256
        mine, theirs = read_identity(there), read_identity(folder)
        same = same and (not mine or mine == theirs)
    except CoreError:
        same = False
    if not same:
        raise CheckpointError(
            f"another model called {folder.name!r} exists; import under another name, or delete "
            "that one first.",
            code="checkpoint.exists",
            params={"model_id": folder.name},
        )
    return True


def _prove(folder: Path, settings: Settings, histories: Mapping[str, Sequence[Version]]) -> None:
    """Verify it by loading it as the app does: hashes, shapes, lengths, finite values.

    The corrections that came with it must fit its gallery.
    """
    try:
        if is_ensemble(folder):
            read_record(folder)
            return
        bundle = read_bundle(folder, settings)
        gallery, contents = bundle.gallery, bundle.contents
        numbers = (gallery.embeddings, contents.novelty.descriptors, contents.gallery_xy)
        if not all(np.isfinite(array).all() for array in numbers):
            _refuse("its gallery holds values that are not numbers")
        lengths = np.linalg.norm(gallery.embeddings, axis=1)
        if not np.allclose(lengths, 1.0, atol=1e-3):
            _refuse("its gallery embeddings are not of unit length")
        if history := histories.get(bundle.config.data_id):
            replay(history, len(history))[0].apply(gallery, bundle.class_names)
    except BackboneError:
        raise
    except (CoreError, ValueError, TypeError, IndexError) as err:
        if isinstance(err, CoreError) and err.code == "archive.refused":
            raise
        _refuse(str(err), err)


def _refuse(reason: str, cause: BaseException | None = None) -> NoReturn:
    raise CheckpointError(
        f"the file is not taken: {reason}. Export the model again with `python -m core export`.",
        code="archive.refused",
        params={"reason": reason},
    ) from cause


def describe_file(path: Path) -> dict[str, Any]:
    """Describe a model file whose hash matches: its model_id, folders and identity.

    Raises:
        CheckpointError: the file is not a model file, or it was altered.
    """
    manifest, _ = _read(path)
    return {
        "model_id": manifest["model_id"],
        "folders": [folder["model_id"] for folder in manifest["folders"]],
        "identity": manifest.get("identity", ""),
        "bytes": path.stat().st_size,
    }
