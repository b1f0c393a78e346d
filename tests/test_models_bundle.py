"""A bundle is complete, safe and checked; the registry is its folder."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from core.config import Settings
from core.errors import CheckpointError, ConfigError
from core.files.whole import write_text
from core.gallery import novelty
from core.images import phantom
from core.images.decode import load
from core.images.ordinary_copies import KINDS, recompress
from core.models import registry
from core.models.bundle import ModelBundle
from core.models.bundle_files import read_bundle, save_bundle
from core.models.seal import write_seal
from core.network import backbone, openvino

CPU = Settings(device="cpu")
FILES = {
    "config.json",
    "weights.safetensors",
    "gallery.npz",
    "projection.npz",
    "thumbnails.npz",
    "calibration.json",
    "metrics.json",
    "card.md",
    "train.log",
    "files.json",
}


@pytest.fixture
def models(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """A copy that a test can damage."""
    shutil.copytree(tiny_checkpoints / "demo-triplet", tmp_path / "models" / "demo")
    return tmp_path / "models"


def test_the_folder_holds_what_design_names_and_no_trunk(tiny_checkpoints: Path) -> None:
    folder = tiny_checkpoints / "demo-triplet"
    assert {path.name for path in folder.iterdir()} == FILES
    keys = load_file(folder / "weights.safetensors")
    assert {key.split(".")[0] for key in keys} == {"tails", "adapters"}
    assert not list(tiny_checkpoints.glob(".runs/*/*"))
    assert "Research use" in (folder / "card.md").read_text(encoding="utf-8")


def test_a_text_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    seen: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((os.fstat(fd).st_size, path.exists())))
    write_text(path, "{}")
    assert seen == [(2, False)]
    assert path.read_text(encoding="utf-8") == "{}"
    assert list(tmp_path.iterdir()) == [path]


def test_a_loaded_bundle_answers_for_itself(tiny_bundle: ModelBundle) -> None:
    assert tiny_bundle.class_names == ("normal", "disease")
    assert tiny_bundle.disease_class == "disease"
    assert tiny_bundle.is_synthetic
    assert set(tiny_bundle.gallery.splits) == {"train"}
    assert tiny_bundle.projection.gallery_xy.shape == (len(tiny_bundle.gallery), 2)
    assert tiny_bundle.thumbnail(0).shape == (96, 96, 3)
    assert tiny_bundle.has_original(0)
    assert not any(p.requires_grad for p in tiny_bundle.embedder.net.parameters())


def test_the_gallery_is_embedded_as_a_query_would_be(
    tiny_bundle: ModelBundle, phantom_folder: Path
) -> None:
    del phantom_folder
    root = Path(tiny_bundle.config.data_root)
    image = load(root / tiny_bundle.gallery.keys[3])
    again = tiny_bundle.embedder.embed([image.pixels]).embeddings[0]
    assert again @ tiny_bundle.gallery.embeddings[3] > 0.9999


def edit_gallery(models: Path, **changes: np.ndarray | None) -> None:
    path = models / "demo" / "gallery.npz"
    with np.load(path) as arrays:
        held = {**arrays, **changes}
    np.savez(path, **{name: value for name, value in held.items() if value is not None})
    write_seal(models / "demo")


def test_the_limit_of_novelty_takes_in_ordinary_copies_of_the_gallery(
    models: Path, tiny_bundle: ModelBundle
) -> None:
    reference, gallery = tiny_bundle.contents.novelty, tiny_bundle.gallery
    assert reference.copy_distances is not None
    assert reference.copy_distances.shape == (len(KINDS), len(gallery))  # fewer than 64
    pixels = load(Path(tiny_bundle.config.data_root) / gallery.keys[5]).pixels
    copy = tiny_bundle.embedder.describe([recompress(pixels)])
    expected = novelty.measure_copies(reference.descriptors, copy, np.array([5]))
    assert reference.copy_distances[0, 5] == pytest.approx(expected[0], abs=1e-4)
    whole = tiny_bundle.embedder.embed([recompress(pixels)]).descriptors
    np.testing.assert_allclose(copy, whole, atol=1e-5)
    edit_gallery(models, copy_distances=np.full((1, 3), 1.5, np.float32))
    assert read_bundle(models / "demo", CPU).novelty_limit == pytest.approx(1.65)


def test_a_model_from_before_copies_were_measured_is_read(models: Path) -> None:
    edit_gallery(models, copy_distances=None)
    old = read_bundle(models / "demo", CPU)
    assert old.contents.novelty.copy_distances is None
    own = np.percentile(old.contents.novelty.distances, old.config.run.knn.novelty_percentile)
    assert old.novelty_limit == pytest.approx(own * old.config.run.knn.novelty_slack)
    saved = dataclasses.replace(old.config, model_id="again")
    again = read_bundle(save_bundle(models, saved, old.embedder, old.contents), CPU)
    assert again.contents.novelty.copy_distances is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 3.0])
def test_impossible_distances_of_copies_are_refused(models: Path, value: float) -> None:
    edit_gallery(models, copy_distances=np.full((1, 3), value, np.float32))
    with pytest.raises(CheckpointError, match="distances of copies"):
        read_bundle(models / "demo", CPU)


def test_listing_finding_activating_deleting(models: Path) -> None:
    shutil.copytree(models / "demo", models / "other")
    (models / ".writing-x").mkdir()
    assert [m.model_id for m in registry.list_models(models)] == ["demo", "other"]
    assert registry.active_model_id(models) == "demo"
    registry.activate(models, "other")
    assert registry.active_model_id(models) == "other"
    assert registry.load_bundle(models, "other", settings=CPU).model_id == "other"
    with pytest.raises(CheckpointError, match="is the active one"):
        registry.delete_model(models, "other")
    registry.activate(models, "demo")
    registry.delete_model(models, "other")
    assert registry.active_model_id(models) == "demo"
    assert {path.name for path in models.iterdir()} == {"demo", ".writing-x", "active"}
    assert registry.active_model_id(models / "absent") is None


@pytest.mark.parametrize("name", ["../demo", "/etc", "demo/../demo", "ghost", ""])
def test_ids_are_matched_never_joined(models: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="there are: demo"):
        registry.load_bundle(models, name, settings=CPU)


@pytest.mark.parametrize("name", sorted(FILES - {"train.log", "files.json"}))
def test_a_missing_file_is_told(models: Path, name: str) -> None:
    (models / "demo" / name).unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        registry.load_bundle(models, "demo", settings=CPU)


@pytest.mark.parametrize("name", sorted(FILES - {"train.log", "card.md"}))
def test_rubbish_in_a_file_is_told(models: Path, name: str) -> None:
    (models / "demo" / name).write_bytes(b"\x80\x04rubbish")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        registry.load_bundle(models, "demo", settings=CPU)


def edit_config(models: Path, **changes: object) -> None:
    path = models / "demo" / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, **changes}), encoding="utf-8")
    write_seal(models / "demo")


def test_other_weights_than_recorded_are_refused(models: Path) -> None:
    path = models / "demo" / "weights.safetensors"
    state = load_file(path)
    name = "adapters.0.0.bias"
    save_file({**state, name: state[name] + 1}, path)
    write_seal(models / "demo")
    with pytest.raises(CheckpointError, match="does not match its recorded hash"):
        registry.load_bundle(models, "demo", settings=CPU)


def forge_bias(models: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change parameters and update the hash in the config to match."""
    path = models / "demo" / "weights.safetensors"
    state = load_file(path)
    state["adapters.0.0.bias"] = change(state["adapters.0.0.bias"])
    save_file(state, path)
    edit_config(models, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_nan_weights_are_refused(models: Path) -> None:
    forge_bias(models, lambda bias: np.full_like(bias, np.nan))
    with pytest.raises(CheckpointError, match="not numbers"):
        registry.load_bundle(models, "demo", settings=CPU)


def test_weights_of_another_precision_are_refused(models: Path) -> None:
    forge_bias(models, lambda bias: bias.astype(np.float64))
    with pytest.raises(CheckpointError, match="another precision"):
        registry.load_bundle(models, "demo", settings=CPU)


def test_two_models_on_one_trunk_keep_their_own_parameters(models: Path) -> None:
    path = models / "demo" / "weights.safetensors"
    first = read_bundle(models / "demo", CPU)
    lent = read_bundle(models / "demo", CPU, shared=first.embedder.backbones)
    stored = load_file(path)
    for net in (first.embedder.net, lent.embedder.net):
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), stored[name])
    assert lent.embedder.backbones[0].trunk is first.embedder.backbones[0].trunk
    assert lent.embedder.backbones[0].tail is not first.embedder.backbones[0].tail


def test_another_trunk_is_refused(models: Path) -> None:
    raw = json.loads((models / "demo" / "config.json").read_text(encoding="utf-8"))
    raw["backbones"][0]["trunk_hash"] = "0" * 16
    edit_config(models, backbones=raw["backbones"])
    with pytest.raises(CheckpointError, match="the ones found here"):
        registry.load_bundle(models, "demo", settings=CPU)


def test_a_pickled_gallery_is_never_opened(models: Path) -> None:
    np.savez(models / "demo" / "gallery.npz", embeddings=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        registry.load_bundle(models, "demo", settings=CPU)


def test_a_damaged_model_is_listed_with_its_problem_and_not_chosen(models: Path) -> None:
    (models / "demo" / "config.json").write_text("{", encoding="utf-8")
    (summary,) = registry.list_models(models)
    assert summary.problem is not None
    assert registry.active_model_id(models) is None
    with pytest.raises(CheckpointError):
        registry.activate(models, "demo")


def test_a_name_is_used_once_and_must_be_safe(models: Path, tiny_bundle: ModelBundle) -> None:
    taken = dataclasses.replace(tiny_bundle.config, model_id="demo")
    with pytest.raises(CheckpointError, match="never overwritten"):
        save_bundle(models, taken, tiny_bundle.embedder, tiny_bundle.contents)
    evil = dataclasses.replace(tiny_bundle.config, model_id="../evil")
    with pytest.raises(ConfigError, match="expected 1 to 64 letters"):
        save_bundle(models, evil, tiny_bundle.embedder, tiny_bundle.contents)


def test_a_trunk_compiled_here_before_needs_no_pretrained_weights(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbone, "_MIN_COMPILED_SIZE", 32)
    monkeypatch.setattr(
        openvino, "_time", lambda run, _: 2.0 if isinstance(run, torch.nn.Module) else 1.0
    )
    picture = phantom.draw(900_001, is_diseased=True, size=96).pixels
    first = registry.load_bundle(models, "demo", settings=CPU).members[0].bundle.embedder
    monkeypatch.setattr(backbone, "load_pretrained", lambda *_, **__: pytest.fail("read"))
    again = registry.load_bundle(models, "demo", settings=CPU).members[0].bundle.embedder
    assert [b.trunk_hash for b in again.backbones] == [b.trunk_hash for b in first.backbones]
    assert all(p.is_meta for b in again.backbones for p in b.trunk.parameters())
    np.testing.assert_allclose(
        again.embed_batch([picture]).embeddings,
        first.embed_batch([picture]).embeddings,
        atol=1e-5,
    )
