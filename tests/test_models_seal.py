"""A model that has travelled is the same model: same identity, same answers, or it is said."""

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from core.answers.diagnose import diagnose
from core.answers.diagnosis import Diagnosis
from core.config import Settings
from core.errors import CheckpointError
from core.export.worklist import to_json
from core.gallery.corrections import Change, Version
from core.gallery.corrections_db import CurationStore, default_url
from core.images.decode import Image, decode
from core.images.phantom import draw
from core.models import registry
from core.models.exchange import describe_file, export_model, import_model
from core.models.marks import FILES
from core.models.seal import read_identity, write_seal

CPU = Settings(device="cpu")


@pytest.fixture
def home(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    for name in ("demo", "demo-triplet", "demo-metric"):
        shutil.copytree(tiny_checkpoints / name, tmp_path / "home" / name)
    return tmp_path / "home"


@pytest.fixture
def away(tmp_path: Path) -> Path:
    (tmp_path / "away").mkdir()
    return tmp_path / "away"


def draw_eyes(n: int = 3) -> list[Image]:
    images = []
    for index in range(n):
        buffer = io.BytesIO()
        pixels = draw(910_000 + index, is_diseased=index % 2 == 0, size=96).pixels
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        images.append(decode(buffer.getvalue(), name=f"{index}.png"))
    return images


def answer(directory: Path, name: str, images: list[Image] | None = None) -> list[Diagnosis]:
    model = registry.load_bundle(directory, name, settings=CPU)
    return diagnose(model, images or draw_eyes())


def list_answers(diagnoses: list[Diagnosis]) -> list[object]:
    return [
        (
            *(d.status, d.predicted_class, d.probabilities, d.vote_shares, d.k, d.novelty),
            [(n.key, n.distance, n.class_name) for n in d.neighbours],
        )
        for d in diagnoses
    ]


def correct(directory: Path, name: str = "demo-triplet") -> str:
    """Call all images of disease but one normal; return the scope."""
    bundle = registry.load_bundle(directory, name, settings=CPU).lead
    rows = np.flatnonzero(bundle.gallery.labels == 1)[:-1]
    keys = [bundle.gallery.keys[row] for row in rows]
    store = CurationStore(default_url(directory))
    given = dict.fromkeys(keys, bundle.class_names[1])
    scope = bundle.config.data_id
    relabelled = [Change(key, "label", bundle.class_names[0]) for key in keys]
    store.apply(scope, relabelled, given_labels=given, expected_version=0, author="Dr. A")
    noted = [Change(keys[0], "note", "looked twice")]
    store.apply(scope, noted, given_labels=given, expected_version=1, author="Dr. B")
    store.close()
    return scope


def read_history(directory: Path, scope: str) -> list[Version]:
    store = CurationStore(default_url(directory))
    try:
        return store.read_history(scope)
    finally:
        store.close()


@pytest.mark.parametrize("name", ["demo-triplet", "demo"])
def test_a_corrected_model_answers_elsewhere_as_at_home(
    home: Path, away: Path, tmp_path: Path, name: str
) -> None:
    as_trained = list_answers(answer(home, name))
    scope = correct(home)
    before = list_answers(answer(home, name))
    assert before != as_trained
    path = export_model(home, name, tmp_path / "m.neighbordx", settings=CPU)
    imported = import_model(away, path, settings=CPU)
    assert list_answers(answer(away, name)) == before
    assert read_history(away, scope) == read_history(home, scope)
    (told,) = imported.corrections
    assert (told.outcome, told.n_versions, told.n_here) == ("added", 2, 2)
    assert "version 2 came with the model" in str(told)
    assert import_model(away, path, settings=CPU).corrections[0].outcome == "same"
    assert read_identity(away / name) == read_identity(home / name)
    assert describe_file(path)["identity"] == read_identity(home / name)


def test_corrections_that_are_not_taken_are_said(home: Path, away: Path, tmp_path: Path) -> None:
    """An import never changes the answers of a model that was there before."""
    plain = export_model(home, "demo-triplet", tmp_path / "plain.neighbordx", settings=CPU)
    scope = correct(home)
    corrected = export_model(home, "demo-triplet", tmp_path / "c.neighbordx", settings=CPU)
    import_model(away, plain, settings=CPU)
    before = list_answers(answer(away, "demo-triplet"))
    (told,) = import_model(away, corrected, settings=CPU, name="second").corrections
    assert (told.outcome, told.n_versions, told.n_here) == ("differs", 2, 0)
    assert "were not taken" in str(told)
    assert read_history(away, scope) == []
    assert list_answers(answer(away, "demo-triplet")) == before


def test_corrections_that_go_on_here_are_kept(home: Path, away: Path, tmp_path: Path) -> None:
    scope = correct(home)
    path = export_model(home, "demo-triplet", tmp_path / "m.neighbordx", settings=CPU)
    import_model(away, path, settings=CPU)
    store = CurationStore(default_url(away))
    store.undo(scope, expected_version=2)
    (told,) = import_model(away, path, settings=CPU).corrections
    assert (told.outcome, told.n_versions, told.n_here) == ("newer", 2, 3)
    store.roll_back(scope, 0, expected_version=3)
    store.close()
    assert len(read_history(away, scope)) == 4


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_in_any_file_is_found(home: Path, name: str) -> None:
    path = home / "demo-triplet" / name
    data = path.read_bytes()
    for place in np.linspace(0, len(data) - 1, 7).astype(int):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            registry.load_bundle(home, "demo-triplet", settings=CPU)
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            export_model(home, "demo-triplet", home / "m.neighbordx", settings=CPU)
    path.write_bytes(data)
    assert registry.load_bundle(home, "demo-triplet", settings=CPU).model_id == "demo-triplet"


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "card.md"])
def test_a_flipped_bit_in_an_ensemble_is_found(home: Path, name: str) -> None:
    path = home / "demo" / name
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        registry.load_bundle(home, "demo", settings=CPU)


def test_an_ensemble_knows_a_member_with_another_gallery(home: Path) -> None:
    """The parameters' hash alone does not tell them apart."""
    folder = home / "demo-metric"
    with np.load(folder / "gallery.npz") as stored:
        arrays = dict(stored)
    arrays["labels"] = 1 - arrays["labels"]
    np.savez(folder / "gallery.npz", **arrays)
    write_seal(folder)
    with pytest.raises(CheckpointError, match="'demo-metric' is gone or has been replaced"):
        registry.load_bundle(home, "demo", settings=CPU)


def test_the_identity_is_shown_and_tells_models_apart(home: Path) -> None:
    listed = {m.model_id: m for m in registry.list_models(home)}
    identities = {m.identity for m in listed.values()}
    assert len(identities) == 3
    assert all(len(identity) == 64 for identity in identities)
    for name, summary in listed.items():
        card = (home / name / "card.md").read_text(encoding="utf-8")
        assert f"Identity: {summary.identity}" in card
        model = registry.load_bundle(home, name, settings=CPU)
        assert model.identity == summary.identity
        (done,) = diagnose(model, draw_eyes(1))
        assert to_json(done)["model_identity"] == summary.identity
    shutil.copytree(home / "demo-triplet", home / "renamed")
    assert read_identity(home / "renamed") == listed["demo-triplet"].identity


def test_a_model_of_an_earlier_version_is_read_and_that_is_said(
    home: Path, away: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = list_answers(answer(home, "demo-triplet"))
    (home / "demo-triplet" / "files.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert list_answers(answer(home, "demo-triplet")) == before
    assert "would not be noticed" in caplog.text
    assert registry.find_model(home, "demo-triplet").identity == ""
    path = export_model(home, "demo-triplet", tmp_path / "old.neighbordx", settings=CPU)
    import_model(away, path, settings=CPU)
    assert len(registry.find_model(away, "demo-triplet").identity) == 64


def test_another_precision_is_said(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = home / "demo-triplet" / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    other = "bfloat16" if raw["precision"] == "float32" else "float32"
    path.write_text(json.dumps({**raw, "precision": other}), encoding="utf-8")
    write_seal(home / "demo-triplet")
    with caplog.at_level(logging.WARNING):
        answer(home, "demo-triplet")
    assert f"embedded in {other}, and this machine computes in" in caplog.text


def test_the_number_of_threads_changes_no_answer(home: Path) -> None:
    n_threads = torch.get_num_threads()
    found = []
    for n in (1, 2):
        settings = Settings(device="cpu", n_threads=n)
        model = registry.load_bundle(home, "demo", settings=settings)
        found.append(diagnose(model, draw_eyes(4)))
    torch.set_num_threads(n_threads)
    for one, two in zip(*found, strict=True):
        assert two.predicted_class == one.predicted_class
        assert two.probabilities == pytest.approx(one.probabilities, abs=1e-4)
        assert [n.key for n in two.neighbours] == [n.key for n in one.neighbours]


@pytest.mark.slow
def test_order_and_company_of_the_files_change_no_answer(home: Path) -> None:
    images = draw_eyes(9)  # more than one batch
    together = {d.file: d for d in answer(home, "demo", images)}
    turned = {d.file: d for d in answer(home, "demo", images[::-1])}
    for image in images:
        (alone,) = answer(home, "demo", [image])
        for other in (together[image.name], turned[image.name]):
            assert other.predicted_class == alone.predicted_class
            assert other.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
            assert [n.key for n in other.neighbours] == [n.key for n in alone.neighbours]
