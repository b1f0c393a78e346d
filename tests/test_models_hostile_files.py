"""Untrusted files, in one table: zips of images, model files, model folders. All are refused.

Refused means: an error with the reason, nothing left on disk, and no code from the file was run.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load, save
from test_data_uploads import LIMITS, pack
from test_models_exchange import SETTINGS, read

from core.data.datasets import read_dataset
from core.data.uploads import store, uploads_dir
from core.errors import CheckpointError, ConfigError, DataError
from core.models import exchange
from core.models.exchange import export_model, import_model
from core.models.registry import load_bundle
from core.models.seal import write_seal

Change = Callable[[dict[str, Any], dict[str, Any]], None]
MARKER = "NEIGHBORDX_TEST_MARKER"  # names a file that a pickle would create if it were loaded


class Evil:
    """Code that runs when a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (os.environ[MARKER],)


# ---- zips of images ----


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def pickled_images() -> io.BytesIO:
    images = np.array([Evil()] * 4, dtype=object)
    return pack({"set.npz": npz(train_images=images, train_labels=np.zeros((4, 1)))})


def images_of_wrong_shape() -> io.BytesIO:
    images = np.zeros((4, 3, 28, 28), np.uint8)
    return pack({"set.npz": npz(train_images=images, train_labels=np.zeros((4, 1)))})


def images_of_nan() -> io.BytesIO:
    images = np.full((4, 28, 28), np.nan)
    return pack({"set.npz": npz(train_images=images, train_labels=np.zeros((4, 1)))})


def with_mode(name: str, mode: int, data: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, data)
    buffer.seek(0)
    return buffer


def encrypted() -> io.BytesIO:
    data = bytearray(pack({"normal/a.png": b"x"}).getvalue())
    data[6] |= 1  # the flag of the local header and of the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return io.BytesIO(bytes(data))


def ten_gigabytes() -> io.BytesIO:
    """A small file whose directory claims that it unpacks to 10 GB (zip64)."""
    data = pack({"normal/a.png": b"x" * 100}).getvalue()
    at = data.index(b"PK\x01\x02")
    head = bytearray(data[at : at + 46])
    name = data[at + 46 : at + 46 + len("normal/a.png")]
    head[24:28] = b"\xff" * 4
    extra = struct.pack("<HHQ", 1, 8, 10 * 10**9)
    head[30:32] = struct.pack("<H", len(extra))
    directory = bytes(head) + name + extra
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), at, 0)
    return io.BytesIO(data[:at] + directory + end)


def lying_header() -> io.BytesIO:
    """Claims 10 bytes, contains two megabytes of zeros."""
    data = bytearray(
        pack({"normal/a.png": bytes(2_000_000)}, compression=zipfile.ZIP_DEFLATED).getvalue()
    )
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<L", 10)
    return io.BytesIO(bytes(data))


ZIPS = {
    "path traversal": (lambda: pack({"../evil.png": b"x"}), "zip.path"),
    "traversal inside": (lambda: pack({"normal/../../evil.png": b"x"}), "zip.path"),
    "traversal with backslashes": (lambda: pack({"..\\evil.png": b"x"}), "zip.path"),
    "absolute path": (lambda: pack({"/etc/evil.png": b"x"}), "zip.path"),
    "drive letter": (lambda: pack({"C:/evil.png": b"x"}), "zip.path"),
    "nested very deep": (lambda: pack({"a/" * 40 + "x.png": b"x"}), "zip.path"),
    "symbolic link": (lambda: with_mode("a", stat.S_IFLNK | 0o777, b"/etc/passwd"), "zip.link"),
    "device": (lambda: with_mode("a", stat.S_IFCHR | 0o666, b""), "zip.special"),
    "pipe": (lambda: with_mode("a", stat.S_IFIFO | 0o666, b""), "zip.special"),
    "password": (encrypted, "zip.encrypted"),
    "10 GB bomb": (ten_gigabytes, "zip.too_big"),
    "many zeros": (
        lambda: pack({"n/a.png": bytes(1_900_000)}, compression=zipfile.ZIP_DEFLATED),
        "zip.bomb",
    ),
    "lying header": (lying_header, "zip.damaged"),
    "too much in all": (
        lambda: pack({f"n/{i}": bytes(1_900_000) for i in range(2)}),
        "zip.too_big",
    ),
    "too many files": (lambda: pack({f"n/{i}.png": b"x" for i in range(21)}), "zip.too_many"),
    "no zip": (lambda: io.BytesIO(b"not a zip at all"), "zip.damaged"),
    "cut off": (lambda: io.BytesIO(pack({"n/a": bytes(999)}).getvalue()[:600]), "zip.damaged"),
    "pickle in an npz": (pickled_images, "data.npz"),
    "images of a wrong shape": (images_of_wrong_shape, "data.npz"),
    "images that are not numbers": (images_of_nan, "data.npz"),
    "empty": (lambda: pack({}), "zip.empty"),
    "only junk": (lambda: pack({"__MACOSX/a": b"x", ".DS_Store": b"x"}), "zip.empty"),
}


# ---- model files ----


def forge(path: Path, into: Path, change: Change) -> Path:
    """Change a file and update its hash, as somebody who knows the format can."""
    manifest, tensors = read(path)
    for folder in manifest["folders"]:
        folder["texts"].pop("files.json")  # as of a model that was never sealed
    change(manifest, tensors)
    manifest["sha256"] = exchange._compute_digest(manifest, tensors)
    save_file(tensors, into, metadata={"neighbordx": json.dumps(manifest)})
    return into


def set_weights(manifest: dict[str, Any], tensors: dict[str, Any], *, factor: float) -> None:
    """Change parameters and update the hash in the config to match."""

    state = load(tensors["0/weights.safetensors"].tobytes())
    raw = save({key: (value * factor).to(value.dtype) for key, value in state.items()})
    tensors["0/weights.safetensors"] = np.frombuffer(raw, dtype=np.uint8)
    texts = manifest["folders"][0]["texts"]
    config = json.loads(texts["config.json"])
    config["weights_sha256"] = hashlib.sha256(raw).hexdigest()
    texts["config.json"] = json.dumps(config)


def nan_weights(manifest: dict[str, Any], tensors: dict[str, Any]) -> None:
    set_weights(manifest, tensors, factor=float("nan"))


def nan_gallery(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["0/gallery.npz/embeddings"] = tensors["0/gallery.npz/embeddings"] * np.nan


def long_gallery(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["0/gallery.npz/embeddings"] = tensors["0/gallery.npz/embeddings"] * 3


def wrong_width(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["0/gallery.npz/embeddings"] = tensors["0/gallery.npz/embeddings"][:, :7].copy()


def wrong_length(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["0/gallery.npz/labels"] = tensors["0/gallery.npz/labels"][:5].copy()


def wrong_labels(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["0/gallery.npz/labels"] = tensors["0/gallery.npz/labels"] + 7


def other_weights(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    changed = tensors["0/weights.safetensors"].copy()
    changed[-1] ^= 1
    tensors["0/weights.safetensors"] = changed


def wrong_shapes(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    texts = manifest["folders"][0]["texts"]
    config = json.loads(texts["config.json"])
    config["run"]["embedder"]["hidden_dim"] = 48
    texts["config.json"] = json.dumps(config)


def name_outside(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    manifest["folders"][0]["model_id"] = "../../evil"


def text_outside(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    manifest["folders"][0]["texts"]["../evil.py"] = "import os"


def array_outside(_m: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["0/../evil.npz/x"] = np.zeros(3)


def strings_outside(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    manifest["folders"][0]["strings"]["../evil.npz"] = {"x": ["y"]}


def no_folders(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    manifest["folders"] = []


def folders_of_numbers(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    manifest["folders"] = [3]


def other_format(manifest: dict[str, Any], _t: dict[str, Any]) -> None:
    manifest["format"] = "model-from-the-future"


def make_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def make_torch(path: Path) -> None:
    torch.save({"x": Evil()}, path)


def make_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("gallery.npz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../evil", "x")


def make_other_safetensors(path: Path) -> None:
    save_file({"x": np.zeros(3)}, path)


def make_text(path: Path) -> None:
    path.write_text("not a model", encoding="utf-8")


def make_huge_header(path: Path) -> None:
    path.write_bytes((10 * 10**9).to_bytes(8, "little") + b"{}")


def make_huge_array(path: Path) -> None:
    """A small file that claims to contain an array of 10 GB."""
    n_bytes = 10 * 10**9
    told = {"x": {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}}
    header = json.dumps({"__metadata__": {"neighbordx": "{}"}, **told}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")


def make_sparse(path: Path) -> None:
    """A sparse file of 10 GB that uses almost no disk space."""
    with path.open("wb") as handle:
        handle.truncate(10 * 10**9)


FORGED = {
    "NaN weights": (nan_weights, "values that are not numbers"),
    "NaN gallery": (nan_gallery, "not numbers"),
    "gallery not of unit length": (long_gallery, "unit length"),
    "wrong width": (wrong_width, "gallery embeddings have 7 values"),
    "wrong length": (wrong_length, "cannot be loaded"),
    "labels out of range": (wrong_labels, "labels do not fit"),
    "other weights": (other_weights, "does not match its recorded hash"),
    "wrong shapes": (wrong_shapes, "size mismatch"),
    "path in the model's name": (name_outside, "expected 1 to 64 letters"),
    "path in a text's name": (text_outside, "no part of a model"),
    "path in an array's name": (array_outside, "no part of a model"),
    "path in a table's name": (strings_outside, "no part of a model"),
    "no model": (no_folders, "holds no model"),
    "nonsense": (folders_of_numbers, "not as expected"),
    "other format": (other_format, "expected neighbordx-model-1"),
}


FOREIGN = {
    "pickle": (make_pickle, "pickle"),
    "torch file": (make_torch, "pickle or a zip"),
    "zip with path traversal": (make_zip, "pickle or a zip"),
    "safetensors of another program": (make_other_safetensors, "another program"),
    "text": (make_text, "no safetensors file"),
    "header of 10 GB": (make_huge_header, "no safetensors file"),
    "array of 10 GB": (make_huge_array, "no safetensors file"),
    "file of 10 GB": (make_sparse, "larger than"),
    "tar with a symbolic link": (make_tar, "no safetensors file"),
    "missing": (lambda _path: None, "missing"),
}

# ---- model folders, added manually ----


def pickled_gallery(folder: Path) -> None:
    with np.load(folder / "gallery.npz") as arrays:
        kept = dict(arrays)
    np.savez(folder / "gallery.npz", **{**kept, "keys": np.array([Evil()], dtype=object)})


def pickled_weights(folder: Path) -> None:
    torch.save({"x": Evil()}, folder / "weights.safetensors")


def weights_elsewhere(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to("/etc/passwd")


def other_gallery(folder: Path) -> None:
    with np.load(folder / "gallery.npz") as arrays:
        kept = dict(arrays)
    np.savez(folder / "gallery.npz", **{**kept, "embeddings": kept["embeddings"][:, :7]})
    write_seal(folder)


FOLDERS = {
    "pickle in the gallery": (pickled_gallery, "cannot be loaded"),
    "pickle as parameters": (pickled_weights, "cannot be loaded|recorded hash"),
    "symbolic link as parameters": (weights_elsewhere, "cannot be loaded|recorded hash"),
    "gallery of a wrong shape": (other_gallery, "gallery embeddings have 7 values"),
}


# ---- the tests ----


@pytest.fixture(scope="module")
def exported(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(
        tiny_checkpoints, "demo-triplet", tmp_path_factory.mktemp("out") / "m.neighbordx"
    )


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty checkpoints folder; afterwards, check that no pickle ran and nothing was left."""
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    assert not (tmp_path / "marker").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"checkpoints", "file.neighbordx"}


def test_the_marker_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    pickle.loads(pickle.dumps(Evil()))  # noqa: S301 - what the product never does
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_of_images_is_refused(name: str, empty: Path) -> None:
    make, code = ZIPS[name]
    with pytest.raises(DataError) as caught:
        read_dataset(store(make(), name="x.zip", checkpoints_dir=empty, limits=LIMITS))
    assert caught.value.code == code
    if code.startswith("zip."):
        assert [p for p in empty.rglob("*") if p.is_file()] == []
        assert list(uploads_dir(empty).iterdir()) == []


@pytest.mark.parametrize("name", FORGED)
def test_a_model_file_changed_by_one_who_knows_the_format_is_refused(
    name: str, exported: Path, empty: Path
) -> None:
    change, words = FORGED[name]
    path = forge(exported, empty.parent / "file.neighbordx", change)
    with pytest.raises((CheckpointError, ConfigError), match=words):
        import_model(empty, path, settings=SETTINGS)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_model_is_refused(name: str, empty: Path) -> None:
    make, words = FOREIGN[name]
    path = empty.parent / "file.neighbordx"
    make(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_model(empty, path, settings=SETTINGS)
    assert caught.value.code == "archive.refused"
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_folder_is_not_loaded(name: str, tiny_checkpoints: Path, empty: Path) -> None:
    spoil, words = FOLDERS[name]
    shutil.copytree(tiny_checkpoints / "demo-triplet", empty / "demo-triplet")
    spoil(empty / "demo-triplet")
    with pytest.raises(CheckpointError, match=words):
        load_bundle(empty, "demo-triplet", settings=SETTINGS)
