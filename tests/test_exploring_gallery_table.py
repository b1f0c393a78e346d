"""The gallery as a table: consistent with Diagnose, corrected at once, effects previewed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from core.answers.diagnose import diagnose
from core.config import Settings
from core.errors import DataError
from core.exploring import review_lists
from core.exploring.gallery_table import Exploration, explore, prepare, preview, read_manifest
from core.gallery.corrections import Change, GalleryState
from core.gallery.corrections_db import CurationStore, default_url
from core.gallery.leave_one_out import NeighbourTable
from core.images import decode
from core.models.bundle import ModelBundle
from core.models.corrected import curate
from core.models.ensemble import Ensemble, Model
from core.models.registry import load_bundle

Tables = Sequence[NeighbourTable]


@pytest.fixture(scope="module")
def tables(tiny_ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    home = tmp_path_factory.mktemp("maps")
    for member in tiny_ensemble.members:
        (home / member.bundle.model_id).mkdir()
    return prepare(tiny_ensemble, home)


@pytest.fixture(scope="module")
def seen(tiny_ensemble: Ensemble, tables: Tables) -> Exploration:
    return explore(tiny_ensemble, tables)


def scope_of(model: Model) -> str:
    return model.lead.config.data_id


def test_the_table_says_what_diagnose_says_of_the_same_image(
    tiny_ensemble: Ensemble, seen: Exploration
) -> None:
    root = Path(tiny_ensemble.lead.config.data_root)
    for row in (0, 7, 30):
        image = decode.load(root / seen.keys[row])
        diagnosis = diagnose(tiny_ensemble, [image], explain=False)[0]
        assert diagnosis.left_out[0].key == seen.keys[row]
        p = diagnosis.probabilities[diagnosis.disease_class]
        assert seen.p_disease[row] == pytest.approx(p, abs=0.02)  # the trunks' batch differs


def test_columns_agree_with_each_other(seen: Exploration) -> None:
    assert {len(values) for values in seen.columns.values()} == {len(seen)}
    assert (seen.columns["outcome"] == "wrong").tolist() == seen.is_wrong.tolist()
    right = (seen.columns["prediction"] == seen.columns["label"]).mean()
    assert seen.accuracy == pytest.approx(right)
    assert set(seen.columns["vote"]) == {"votes"}


def test_a_correction_is_voted_with_at_once_and_shares_the_network(
    tiny_ensemble: Ensemble, tables: Tables, seen: Exploration
) -> None:
    row = 3
    key, now = seen.keys[row], seen.class_names[seen.labels[row]]
    other = next(name for name in seen.class_names if name != now)
    state = GalleryState(4, {key: other}, frozenset({seen.keys[5]}))
    curated = curate(tiny_ensemble, {scope_of(tiny_ensemble): state})
    after = explore(curated, tables)
    assert after.columns["label"][row] == other
    assert after.columns["corrected"][row] == "relabelled"
    assert after.columns["vote"][5] == "set aside"
    assert curated.lead.embedder is tiny_ensemble.lead.embedder
    assert curated.data_id.endswith("+g4")
    for member in curated.members:
        mine = member.bundle.gallery
        assert mine.labels[mine.keys.index(key)] == (member.bundle.class_names.index(other))
    image = decode.load(Path(tiny_ensemble.lead.config.data_root) / seen.keys[0])
    diagnosis = diagnose(curated, [image], explain=True)[0]
    assert seen.keys[5] not in {n.key for n in diagnosis.neighbours}
    assert {n.class_name for n in diagnosis.neighbours if n.key == key} <= {other}
    assert diagnosis.data_id.endswith("+g4")
    np.testing.assert_array_equal(explore(tiny_ensemble, tables).labels, seen.labels)


def test_a_preview_is_what_then_happens(
    tiny_ensemble: Ensemble, tables: Tables, seen: Exploration
) -> None:
    changes = [Change(key, "excluded", "yes") for key in seen.keys[:8]]
    changes.append(Change(seen.keys[9], "note", "no effect"))
    effect = preview(tiny_ensemble, tables, changes)
    state = GalleryState().change(changes)
    after = explore(curate(tiny_ensemble, {scope_of(tiny_ensemble): state}), tables)
    assert effect.accuracy_before == pytest.approx(seen.accuracy)
    assert effect.accuracy_after == pytest.approx(after.accuracy)
    others = np.arange(len(seen)) >= 8
    assert effect.n_mended == int((seen.is_wrong & ~after.is_wrong & others).sum())
    assert effect.n_broken == int((~seen.is_wrong & after.is_wrong & others).sum())
    everything = [Change(key, "excluded", "yes") for key in seen.keys]
    with pytest.raises(DataError, match="left to vote"):
        preview(tiny_ensemble, tables, everything)


def test_a_loaded_model_votes_with_the_current_version(
    tiny_checkpoints: Path, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    url = default_url(tmp_path)
    keys, scope = tiny_bundle.gallery.keys, tiny_bundle.config.data_id
    store = CurationStore(url)
    store.apply(scope, [Change(keys[0], "excluded", "yes")], given_labels={}, expected_version=0)
    settings = Settings(device="cpu", database_url=url)
    for model_id in ("demo-triplet", "demo"):
        model = load_bundle(tiny_checkpoints, model_id, settings=settings)
        assert all(0 in member.bundle.gallery.silent for member in model.members)
        assert model.data_id == f"{scope}+g1"


def test_manifest_columns_are_read_or_their_absence_is_said(tmp_path: Path) -> None:
    keys = ("a.png", "b.png", "c.png")
    assert read_manifest(tmp_path / "gone", keys) == ({}, "moved")
    assert read_manifest(tmp_path, keys) == ({}, "absent")
    ages = "\n".join(f"x{i}.png,train,normal,{i},cyst" for i in range(14))
    text = f"file,split,label,age,source_class\na.png,train,normal,61.5,drusen\n{ages}\n"
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    columns, status = read_manifest(tmp_path, (*keys, *(f"x{i}.png" for i in range(14))))
    assert (status, set(columns)) == ("read", {"age", "source_class"})
    assert columns["source_class"][:3].tolist() == ["drusen", "", ""]
    assert columns["age"][0] == 61.5
    assert np.isnan(columns["age"][1])


def test_findings_are_ordered_and_lie_in_the_gallery(
    tiny_ensemble: Ensemble, tables: Tables, seen: Exploration
) -> None:
    wrong = review_lists.find_wrong(seen)
    assert sorted(wrong.rows.tolist()) == np.flatnonzero(seen.is_wrong).tolist()
    assert (np.diff(wrong.scores) <= 0).all()
    suspects = review_lists.find_suspects(tiny_ensemble, seen)
    assert (suspects.scores > 0.5).all()
    outliers = review_lists.find_outliers(tiny_ensemble, n=5)
    assert len(outliers) == 5
    assert (np.diff(outliers.scores) <= 0).all()
    mixed = review_lists.find_mixed(seen, tables, tiny_ensemble)
    assert len(set(mixed.rows.tolist())) == len(mixed.rows)


def test_like_this_one_is_by_distance_in_the_embedding(tiny_ensemble: Ensemble) -> None:
    gallery = tiny_ensemble.gallery
    found = review_lists.find_similar(tiny_ensemble, gallery.embeddings[4], n=6, without=4)
    assert 4 not in found.rows
    distances = np.linalg.norm(gallery.embeddings - gallery.embeddings[4], axis=1)
    np.testing.assert_allclose(found.scores, np.sort(distances)[1:7], atol=1e-6)
    root = Path(tiny_ensemble.lead.config.data_root)
    query = review_lists.embed_query(tiny_ensemble, decode.load(root / gallery.keys[4]))
    assert not query.is_novel
    nearest = review_lists.find_similar(tiny_ensemble, query.embedding, n=1)
    assert nearest.rows.tolist() == [4]


def test_planted_duplicates_are_found_with_their_labels(
    tiny_bundle: ModelBundle,
) -> None:
    """Row 1 becomes a brighter version of row 0; row 3 a copy of row 2's file, relabelled."""
    contents = tiny_bundle.contents
    pixels = tiny_bundle.thumbnail(0).astype(np.float32)
    brighter = np.clip(pixels * 1.15, 0, 255).astype(np.uint8)
    thumbnails = list(contents.thumbnails)
    thumbnails[1] = decode.encode_png(brighter)
    thumbnails[3] = thumbnails[2]
    sha = list(contents.gallery.sha256)
    sha[3] = sha[2]
    labels = contents.gallery.labels.copy()
    labels[3] = 1 - labels[2]
    gallery = dataclasses.replace(contents.gallery, sha256=tuple(sha), labels=labels)
    planted = dataclasses.replace(
        tiny_bundle,
        contents=dataclasses.replace(contents, gallery=gallery, thumbnails=tuple(thumbnails)),
    )
    before = review_lists.find_duplicates(tiny_bundle)
    found = review_lists.find_duplicates(planted)
    groups = {
        frozenset(found.rows[found.groups == number].tolist()) for number in set(found.groups)
    }
    assert groups == {frozenset({0, 1}), frozenset({2, 3})}
    assert len(before) == 0
    assert found.rows[:2].tolist() == [2, 3]  # different labels first
