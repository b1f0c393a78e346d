"""A model as one file: the way there and back, and a table of files that are refused."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from core import archives
from core.archives import export_model, import_model
from core.config import Settings
from core.errors import CheckpointError, ConfigError
from core.registry import list_models, load_bundle

SETTINGS = Settings(device="cpu")
Change = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture(scope="module")
def exported(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(
        tiny_checkpoints, "demo-triplet", tmp_path_factory.mktemp("out") / "m.neighbordx"
    )


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with safe_open(path, framework="numpy") as stored:
        manifest = json.loads(stored.metadata()["neighbordx"])
    return manifest, load_file(path)


def forge(path: Path, into: Path, change: Change) -> Path:
    """Change a file and give it a hash that fits: what somebody who knows the format can do."""
    manifest, tensors = read(path)
    change(manifest, tensors)
    manifest["sha256"] = archives._compute_digest(manifest, tensors)
    save_file(tensors, into, metadata={"neighbordx": json.dumps(manifest)})
    return into


def test_there_and_back_is_the_same_model(
    tiny_checkpoints: Path, exported: Path, empty: Path
) -> None:
    assert import_model(empty, exported, settings=SETTINGS) == "demo-triplet"
    for name in ("weights.safetensors", "config.json", "metrics.json", "card.md"):
        before = (tiny_checkpoints / "demo-triplet" / name).read_bytes()
        assert (empty / "demo-triplet" / name).read_bytes() == before
    one, two = (
        load_bundle(folder, "demo-triplet", settings=SETTINGS)
        for folder in (tiny_checkpoints, empty)
    )
    assert np.array_equal(one.gallery.embeddings, two.gallery.embeddings)
    assert one.gallery.keys == two.gallery.keys
    assert np.array_equal(one.thumbnail(3), two.thumbnail(3))
    assert not list(empty.glob(".*"))


def test_an_ensemble_travels_with_its_members(tiny_checkpoints: Path, empty: Path) -> None:
    path = export_model(tiny_checkpoints, "demo", empty.parent / "all.neighbordx")
    assert archives.describe_file(path)["folders"] == ["demo-triplet", "demo-metric", "demo"]
    assert import_model(empty, path, settings=SETTINGS) == "demo"
    assert [m.problem for m in list_models(empty)] == [None, None, None]
    assert import_model(empty, path, settings=SETTINGS) == "demo"  # the same again: nothing to do


def test_a_name_that_is_taken_needs_another(
    tiny_checkpoints: Path, exported: Path, empty: Path
) -> None:
    shutil.copytree(tiny_checkpoints / "demo-metric", empty / "demo-triplet")
    with pytest.raises(CheckpointError, match="another model called 'demo-triplet' exists"):
        import_model(empty, exported, settings=SETTINGS)
    assert import_model(empty, exported, settings=SETTINGS, name="mine") == "mine"
    assert len(list_models(empty)) == 2


def set_weights(manifest: dict[str, Any], tensors: dict[str, Any], *, factor: float) -> None:
    """New parameters with the hash recorded in the config made to fit."""
    import hashlib

    from safetensors.torch import load, save

    state = load(tensors["0/weights.safetensors"].tobytes())
    raw = save({key: value * factor for key, value in state.items()})
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


FORGED: dict[str, tuple[Change, str]] = {
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


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused_and_leave_nothing(name: str, exported: Path, empty: Path) -> None:
    change, words = FORGED[name]
    path = forge(exported, empty.parent / "forged.neighbordx", change)
    with pytest.raises((CheckpointError, ConfigError), match=words):
        import_model(empty, path, settings=SETTINGS)
    assert list(empty.iterdir()) == []
    assert not (empty.parent / "evil.py").exists()


def make_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def make_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, path)


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../evil", "x")


def make_other_safetensors(path: Path) -> None:
    save_file({"x": np.zeros(3)}, path)


def make_text(path: Path) -> None:
    path.write_text("not a model", encoding="utf-8")


def make_huge_header(path: Path) -> None:
    path.write_bytes((10 * 10**9).to_bytes(8, "little") + b"{}")


FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (make_pickle, "pickle"),
    "torch file": (make_torch, "pickle or a zip"),
    "zip with path traversal": (make_zip, "pickle or a zip"),
    "safetensors of another program": (make_other_safetensors, "another program"),
    "text": (make_text, "no safetensors file"),
    "header of 10 GB": (make_huge_header, "no safetensors file"),
    "missing": (lambda _path: None, "missing"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused(name: str, empty: Path) -> None:
    make, words = FOREIGN[name]
    path = empty.parent / "foreign.neighbordx"
    make(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_model(empty, path, settings=SETTINGS)
    assert caught.value.code == "archive.refused"
    assert list(empty.iterdir()) == []


def test_a_file_that_was_changed_on_the_way_is_refused(exported: Path, empty: Path) -> None:
    manifest, tensors = read(exported)
    tensors["0/gallery.npz/labels"] = 1 - tensors["0/gallery.npz/labels"]
    path = empty.parent / "changed.neighbordx"
    save_file(tensors, path, metadata={"neighbordx": json.dumps(manifest)})
    with pytest.raises(CheckpointError, match="does not match its hash"):
        import_model(empty, path, settings=SETTINGS)
    cut = empty.parent / "cut.neighbordx"
    cut.write_bytes(exported.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no safetensors file"):
        import_model(empty, cut, settings=SETTINGS)
