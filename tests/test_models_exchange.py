"""A model as one file: the round trip, and a table of files that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from core.config import Settings
from core.errors import CheckpointError
from core.models import exchange
from core.models.exchange import export_model, import_model
from core.models.registry import list_models, load_bundle

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


def test_there_and_back_is_the_same_model(
    tiny_checkpoints: Path, exported: Path, empty: Path
) -> None:
    assert import_model(empty, exported, settings=SETTINGS).name == "demo-triplet"
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
    assert exchange.describe_file(path)["folders"] == ["demo-triplet", "demo-metric", "demo"]
    assert import_model(empty, path, settings=SETTINGS).name == "demo"
    assert [m.problem for m in list_models(empty)] == [None, None, None]
    assert (
        import_model(empty, path, settings=SETTINGS).name == "demo"
    )  # the same again: nothing to do


def test_a_name_that_is_taken_needs_another(
    tiny_checkpoints: Path, exported: Path, empty: Path
) -> None:
    shutil.copytree(tiny_checkpoints / "demo-metric", empty / "demo-triplet")
    with pytest.raises(CheckpointError, match="another model called 'demo-triplet' exists"):
        import_model(empty, exported, settings=SETTINGS)
    assert import_model(empty, exported, settings=SETTINGS, name="mine").name == "mine"
    assert len(list_models(empty)) == 2


def check_refused(manifest: dict, tensors: dict, empty: Path, words: str) -> None:
    """A file with a right hash is refused for this reason and leaves nothing."""
    manifest["sha256"] = exchange._compute_digest(manifest, tensors)
    path = empty.parent / "forged.neighbordx"
    save_file(tensors, path, metadata={"neighbordx": json.dumps(manifest)})
    with pytest.raises(CheckpointError, match=words) as caught:
        import_model(empty, path, settings=SETTINGS)
    assert caught.value.code == "archive.refused"
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["x" * 5000], "too long or too many"),
        (["x" * 4000] + [""] * 20_000, "too long or too many"),  # 320 MB of padding
        ([["x"] * 9], "other things than texts"),
        ([7], "other things than texts"),
    ],
)
def test_texts_that_would_fill_the_memory_are_refused(
    texts: list[Any], words: str, exported: Path, empty: Path
) -> None:
    manifest, tensors = read(exported)
    manifest["folders"][0]["strings"]["gallery.npz"]["more"] = texts
    check_refused(manifest, tensors, empty, words)


def test_two_sessions_may_import_the_same_file_at_once(
    exported: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove, done = exchange._prove, []

    def prove_late(folder: Path, settings: Settings, histories: Any) -> None:
        prove(folder, settings, histories)
        if not done:  # the other session runs here
            done.append(folder)
            assert import_model(empty, exported, settings=settings).name == "demo-triplet"

    monkeypatch.setattr(exchange, "_prove", prove_late)
    assert import_model(empty, exported, settings=SETTINGS).name == "demo-triplet"
    assert [model.problem for model in list_models(empty)] == [None]
    assert not list(empty.glob(".*"))


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


def relabel(name: str, number: int = 1) -> dict[str, Any]:
    edit = {"key": "x", "field": "label", "old": "normal", "new": name}
    return {
        "number": number, "action": "change", "author": "", "created": "", "parent": 0,
        "restores": None, "edits": [edit],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (lambda _: [], "no histories"),
        (lambda mine: {mine: "x"}, "no histories"),
        (lambda _: {"0123456789ab": [relabel("normal")]}, "of other data"),
        (lambda mine: {mine: [{"number": 1}]}, "Field required"),
        (lambda mine: {mine: [relabel("normal") | {"number": "1"}]}, "valid integer"),
        (lambda mine: {mine: [relabel("zebra")]}, "none of the classes"),
        (lambda mine: {mine: [relabel("normal", number=2)]}, "no whole history"),
    ],
)
def test_corrections_that_cannot_be_are_refused_and_nothing_is_written(
    told: Callable[[str], Any], words: str, exported: Path, empty: Path
) -> None:
    manifest, tensors = read(exported)
    config = json.loads(manifest["folders"][0]["texts"]["config.json"])
    manifest["corrections"] = told(config["data_id"])
    check_refused(manifest, tensors, empty, words)
