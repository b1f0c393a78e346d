"""Other splits beside the gallery: same answers as the evaluation, and they never vote."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from core.answers.diagnose import diagnose
from core.assessment.record import Evaluation
from core.assessment.run import run_evaluation
from core.assessment.store import save_evaluation
from core.config import Settings
from core.data.datasets import read_dataset
from core.exploring import review_lists
from core.exploring.gallery_table import explore, prepare, preview
from core.exploring.other_splits import list_guests, load_guests, widen, widen_map, widen_tables
from core.gallery.corrections import Change, GalleryState
from core.gallery.corrections_db import CurationStore, default_url
from core.gallery.leave_one_out import NeighbourTable, find_neighbours_of
from core.gallery.search import Gallery
from core.images.decode import decode
from core.models.corrected import curate
from core.models.ensemble import Ensemble
from core.models.registry import load_bundle

Tables = tuple[NeighbourTable, ...]


@pytest.fixture(scope="module")
def home(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("wide") / "checkpoints"
    shutil.copytree(tiny_checkpoints, copy, ignore=shutil.ignore_patterns("evaluations", "maps"))
    return copy


@pytest.fixture(scope="module")
def model(home: Path) -> Ensemble:
    model = load_bundle(home, "demo", settings=Settings(device="cpu"))
    assert isinstance(model, Ensemble)
    return model


@pytest.fixture(scope="module")
def evaluations(home: Path, model: Ensemble) -> list[Evaluation]:
    data = read_dataset(home / ".demo-data", val_fraction=0.25)
    validation, test = (run_evaluation(model, data, split=split) for split in ("val", "test"))
    elsewhere = dataclasses.replace(test, result={**test.result, "data": "elsewhere"})
    for evaluation in (validation, test, elsewhere):
        save_evaluation(home, evaluation)
    listed = {summary.split: summary.name for summary in list_guests(home, model)}
    assert set(listed) == {"val", "test"}
    return load_guests(home, model, [listed["val"], listed["test"]])


@pytest.fixture(scope="module")
def tables(home: Path, model: Ensemble) -> Tables:
    return prepare(model, home)


@pytest.fixture(scope="module")
def wide(model: Ensemble, evaluations: list[Evaluation]) -> Ensemble:
    wide = widen(model, evaluations)
    assert isinstance(wide, Ensemble)
    return wide


def test_guests_are_answered_as_evaluated_and_the_others_as_before(
    model: Ensemble, wide: Ensemble, tables: Tables, evaluations: list[Evaluation]
) -> None:
    n = len(model.gallery)
    before = explore(model, tables)
    after = explore(wide, widen_tables(model, wide, tables))
    np.testing.assert_allclose(after.p_disease[:n], before.p_disease)
    np.testing.assert_allclose(
        after.p_disease[n:], np.concatenate([e.p_disease for e in evaluations]), atol=1e-5
    )
    assert after.accuracy == before.accuracy  # guests are not counted
    assert set(after.columns["split"][:n]) == {"train"}
    assert after.columns["split"][n:].tolist() == [
        *("val" for _ in evaluations[0].keys),
        *("test" for _ in evaluations[1].keys),
    ]
    assert set(after.columns["vote"][n:]) == {"looks on"}
    assert after.keys[n:] == (*evaluations[0].keys, *evaluations[1].keys)


def test_guests_never_vote_whatever_is_corrected(
    model: Ensemble, wide: Ensemble, tables: Tables
) -> None:
    n = len(model.gallery)
    wide_tables = widen_tables(model, wide, tables)
    assert all(table.rows.max() < n for table in wide_tables)
    key = model.gallery.keys[0]
    state = GalleryState(1, {}, frozenset({key}))
    curated = curate(wide, {model.lead.config.data_id: state})
    assert curated.gallery.voters.tolist() == list(range(1, n))
    change = [Change(key, "excluded", "yes")]
    assert preview(wide, wide_tables, change) == preview(model, tables, change)


def test_a_wide_model_still_reads_an_image_the_same(model: Ensemble, wide: Ensemble) -> None:
    image = decode(wide.lead.contents.thumbnails[-1], name="guest")
    one, two = (diagnose(m, [image])[0] for m in (model, wide))
    assert one.probabilities == two.probabilities
    assert [x.index for x in one.neighbours] == [x.index for x in two.neighbours]
    assert one.map_xy == pytest.approx(two.map_xy)


def test_pictures_and_places_belong_to_the_guest(
    model: Ensemble, wide: Ensemble, evaluations: list[Evaluation]
) -> None:
    n = len(model.gallery)
    np.testing.assert_array_equal(wide.thumbnail(n), evaluations[0].thumbnail(0))
    for member in wide.members:
        rows = [member.find_row(place) for place in range(n, n + len(evaluations[0].keys))]
        keys = [member.bundle.gallery.keys[row] for row in rows if row is not None]
        assert keys == list(evaluations[0].keys)
    flat = model.projection.gallery_xy
    places = widen_map(model, wide, flat)
    np.testing.assert_array_equal(places[:n], flat)
    assert len(places) == len(wide.gallery)
    assert (places.min(0) >= flat.min(0)).all()
    assert (places.max(0) <= flat.max(0)).all()
    solid = np.column_stack([flat, np.ones(len(flat), np.float32)])
    np.testing.assert_allclose(widen_map(model, wide, solid)[:, 2], 1.0, atol=1e-6)
    assert widen(model, []) is model
    assert widen_map(model, model, flat) is flat


def test_a_planted_copy_across_splits_is_found_first(
    model: Ensemble, evaluations: list[Evaluation]
) -> None:
    """Two of the test images are copies of gallery images."""
    pictures = list(evaluations[1].thumbnails)
    pictures[2], pictures[5] = (model.lead.contents.thumbnails[row] for row in (7, 1))
    planted = dataclasses.replace(evaluations[1], thumbnails=tuple(pictures))
    wide = widen(model, [planted])
    found = review_lists.find_duplicates(wide)
    n = len(model.gallery)
    groups = {
        frozenset(found.rows[found.groups == number].tolist()) for number in set(found.groups)
    }
    assert groups == {frozenset({7, n + 2}), frozenset({1, n + 5})}


@pytest.mark.usefixtures("evaluations")
def test_a_correction_does_not_send_guests_away(home: Path, model: Ensemble) -> None:
    before = list_guests(home, model)
    store = CurationStore(default_url(home))
    change = [Change(model.gallery.keys[0], "excluded", "yes")]
    store.apply(model.lead.config.data_id, change, given_labels={}, expected_version=0)
    store.undo(model.lead.config.data_id, expected_version=1)
    store.close()
    after = list_guests(home, model)
    assert [guest.name for guest in after] == [guest.name for guest in before]
    assert len(after) == 2


def test_lists_work_with_guests(model: Ensemble, wide: Ensemble, tables: Tables) -> None:
    n = len(model.gallery)
    wide_tables = widen_tables(model, wide, tables)
    seen = explore(wide, wide_tables)
    alone = review_lists.find_suspects(model, explore(model, tables))
    among = review_lists.find_suspects(wide, seen)
    assert [row for row in among.rows if row < n] == alone.rows.tolist()
    assert review_lists.find_outliers(wide).rows.max() < n
    assert sorted(review_lists.find_wrong(seen).rows) == np.flatnonzero(seen.is_wrong).tolist()
    nearest = review_lists.find_similar(wide, wide.gallery.embeddings[n], n=3, without=n)
    assert n not in nearest.rows


def test_a_copy_and_the_patients_images_are_no_neighbours() -> None:
    rows = np.eye(6, dtype=np.float32)
    gallery = Gallery(
        embeddings=rows,
        labels=np.zeros(6, np.int64),
        keys=tuple("abcdef"),
        splits=("train",) * 6,
        groups=("", "p", "", "", "", ""),
        sha256=tuple("123456"),
    )
    queries = np.stack([rows[0], rows[2]])
    table = find_neighbours_of(gallery, queries, 4, groups=["p", ""])
    assert table.rows[0].tolist() == [[2, 3, 4, 5], [0, 1, 3, 4]]
    np.testing.assert_allclose(table.distances, np.sqrt(2), atol=1e-6)


def test_in_a_narrow_cone_near_is_not_yet_a_copy() -> None:
    rng = np.random.default_rng(0)
    cone = np.array([1.0, 0.0, 0.0]) + 1e-4 * rng.normal(size=(20, 3))
    rows = (cone / np.linalg.norm(cone, axis=1, keepdims=True)).astype(np.float32)
    gallery = Gallery(
        embeddings=rows,
        labels=np.zeros(20, np.int64),
        keys=tuple(map(str, range(20))),
        splits=("train",) * 20,
        groups=("",) * 20,
        sha256=("",) * 20,
    )
    table = find_neighbours_of(gallery, rows[:1], 5, groups=[""])
    order = np.argsort(np.linalg.norm(rows - rows[0], axis=1), kind="stable")
    assert table.rows[0, 0].tolist() == order[1:6].tolist()
