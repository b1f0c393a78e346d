"""The Explore page without a browser: lists, opening, correcting, undo; and its figures."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from core.exploring.gallery_table import Exploration, explore, prepare
from core.exploring.review_lists import N_OUTLIERS
from core.gallery.corrections import Change
from core.gallery.corrections_db import CurationStore, default_url
from core.models.bundle import ModelBundle
from pages import _shared as shared
from pages._charts import explore as charts
from pages._explore.words import EXPLANATIONS, short_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models whose gallery a test can change."""
    for name in ("demo-triplet", "demo-metric", "demo"):
        shutil.copytree(tiny_checkpoints / name, tmp_path / name)
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    return tmp_path


def open_explore() -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "explore.py"), default_timeout=120)
    app.run()
    assert not app.exception
    return app


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error]
    return "\n".join(str(element.value) for element in shown)


@pytest.mark.slow
def test_a_label_is_corrected_with_its_effect_shown_and_taken_back(home: Path) -> None:
    app = open_explore()
    assert "Gallery version **0**" in words(app)
    assert "trustworthiness" in words(app)
    with np.load(home / "demo-triplet" / "gallery.npz", allow_pickle=False) as arrays:
        assert Path(str(arrays["keys"][0])).name in words(app).replace("\\", "")
    opens = [b for b in app.button if str(b.key).startswith("explore_open_selection")]
    assert len(opens) == 24
    opens[0].click().run()
    row = app.session_state[shared.OPENED_KEY]
    radio = app.radio(key=f"explore_label_{row}_0")
    other = next(name for name in ("normal", "disease") if name != radio.value)
    radio.set_value(other).run()
    assert "Leave-one-out accuracy" in words(app)
    app.text_input(key=f"{shared.AUTHOR_KEY}_case").set_value("Dr. B").run()
    app.button(key="explore_apply_case").click().run()
    assert not app.exception
    assert "Gallery version **1**: 1 relabelled" in words(app)
    store = CurationStore(default_url(home))
    with np.load(home / "demo-triplet" / "gallery.npz", allow_pickle=False) as arrays:
        key = str(arrays["keys"][row])
    scope = _scope(home)
    (entry,) = store.read_history(scope)
    assert (entry.author, entry.edits[0].key, entry.edits[0].new) == ("Dr. B", key, other)
    app.button(key="explore_undo").click().run()
    assert "Gallery version **2**: 0 relabelled" in words(app)
    assert store.read_state(scope).labels == {}


def _scope(home: Path) -> str:
    config = json.loads((home / "demo-triplet" / "config.json").read_text(encoding="utf-8"))
    return str(config["data_id"])


@pytest.mark.slow
def test_filters_narrow_the_list_and_are_kept_under_a_name(home: Path) -> None:
    app = open_explore()
    with np.load(home / "demo-triplet" / "gallery.npz", allow_pickle=False) as arrays:
        keys = arrays["keys"].tolist()
    n_normal = sum("/normal/" in key for key in keys)
    app.multiselect(key="explore_filter_label").set_value(["normal"]).run()
    assert f"{n_normal} of {len(keys)} images pass" in words(app)
    one = next(key for key in keys if "/normal/" in key)
    app.text_input(key="explore_search").set_value(Path(one).stem.upper()).run()
    assert f"1 of {len(keys)} images pass" in words(app)
    assert "**1 image**" in words(app)
    app.text_input(key="explore_search").set_value("").run()
    purity = app.slider(key="explore_filter_purity")
    purity.set_value((purity.min, 0.5)).run()
    narrowed = words(app)
    app.text_input(key="explore_filter_name").set_value("hard normals").run()
    app.button(key="explore_filter_save").click().run()
    assert not app.exception
    (kept,) = CurationStore(default_url(home)).read_filters(_scope(home)).values()
    assert kept.allowed == {"label": ("normal",)}
    assert kept.ranges["purity"][1] == 0.5
    app.multiselect(key="explore_filter_label").set_value([]).run()
    app.slider(key="explore_filter_purity").set_value((purity.min, purity.max)).run()
    assert "images pass" not in words(app)
    app.selectbox(key="explore_saved").set_value("hard normals").run()
    assert not app.exception
    assert [w for w in words(app).splitlines() if "images pass" in w] == [
        w for w in narrowed.splitlines() if "images pass" in w
    ]
    app.button(key="explore_saved_delete").click().run()
    assert not app.exception
    assert CurationStore(default_url(home)).read_filters(_scope(home)) == {}
    assert "images pass" in words(app)  # the current view stays


def test_a_slider_that_sets_no_limit_follows_the_ends_of_its_column() -> None:
    def page() -> None:
        import streamlit as st

        from pages._explore.filters import _follow_ends

        ends = st.session_state["ends"]
        _follow_ends("range", ends)
        st.slider("range", *ends, key="range")

    app = AppTest.from_function(page)
    app.session_state["ends"] = (0.25, 0.75)
    assert app.run().slider(key="range").value == (0.25, 0.75)
    app.session_state["ends"] = (0.0, 1.0)
    assert app.run().slider(key="range").value == (0.0, 1.0)
    app.slider(key="range").set_value((0.5, 1.0)).run()
    app.session_state["ends"] = (0.0, 0.875)
    assert app.run().slider(key="range").value == (0.5, 0.875)
    app.session_state["ends"] = (0.625, 0.875)
    assert app.run().slider(key="range").value == (0.625, 0.875)


@pytest.mark.slow
def test_marked_images_are_corrected_together_and_rolled_back(home: Path) -> None:
    app = open_explore()
    marks = [str(c.key) for c in app.checkbox if str(c.key).startswith("explore_marked_selection")]
    for key in marks[:2]:
        app.checkbox(key=key).check().run()
    assert "**2 images marked**" in words(app)
    app.segmented_control(key="explore_bulk_selection").set_value("aside").run()
    assert "Leave-one-out accuracy" in words(app)
    app.button(key="explore_apply_bulk_selection").click().run()
    assert not app.exception
    assert "0 relabelled, 2 excluded from the vote" in words(app)
    assert "marked**" not in words(app)  # done: nothing is marked any more
    store, scope = CurationStore(default_url(home)), _scope(home)
    rows = {int(key.rpartition("_")[2]) for key in marks[:2]}
    with np.load(home / "demo-triplet" / "gallery.npz", allow_pickle=False) as arrays:
        assert store.read_state(scope).excluded == {str(arrays["keys"][row]) for row in rows}
    app.checkbox(key=marks[0]).check().run()
    app.segmented_control(key="explore_bulk_selection").set_value("aside").run()
    assert "have this value already" in words(app)
    app.segmented_control(key=shared.LIST_KEY).set_value("history").run()
    app.selectbox(key="explore_version").set_value(0).run()
    app.button(key="explore_roll_back").click().run()
    assert "Gallery version **2**: 0 relabelled, 0 excluded" in words(app)
    assert store.read_history(scope)[-1].action == "rollback"


@pytest.mark.slow
def test_somebody_elses_change_is_said_and_not_overwritten(home: Path) -> None:
    app = open_explore()
    mark = next(str(c.key) for c in app.checkbox if "marked_selection" in str(c.key))
    app.checkbox(key=mark).check().run()
    app.segmented_control(key="explore_bulk_selection").set_value("aside").run()
    store, scope = CurationStore(default_url(home)), _scope(home)
    with np.load(home / "demo-triplet" / "gallery.npz", allow_pickle=False) as arrays:
        note = Change(str(arrays["keys"][-1]), "note", "theirs")
    store.apply(scope, [note], given_labels={}, expected_version=0, author="rival")
    app.button(key="explore_apply_bulk_selection").click().run()
    assert not app.exception
    assert any("changed" in error.value for error in app.error)
    assert store.read_state(scope).excluded == frozenset()


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_an_opened_image_has_its_heatmap_and_finds_its_like() -> None:
    app = open_explore()
    next(b for b in app.button if "open_selection" in str(b.key)).click().run()
    app.button(key="explore_heatmap").click().run()
    assert not app.exception
    assert not app.error
    assert "Bright areas support" in words(app)
    app.button(key="explore_like").click().run()
    assert app.session_state[shared.LIST_KEY] == "similar"
    assert "Similar to " in words(app)
    assert "distance 0." in words(app)


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_every_list_can_be_shown_and_is_explained() -> None:
    app = open_explore()
    for kind, said in (
        ("wrong", "outvote"),
        ("suspects", "Two opinions"),
        ("duplicates", "same content"),
        ("outliers", "The 100 images least like all others"),
        ("mixed", "neighbours of both classes"),
        ("similar", "Upload an image"),
        ("history", "Nothing has been changed"),
    ):
        app.segmented_control(key=shared.LIST_KEY).set_value(kind).run()
        assert not app.exception
        assert said in words(app), kind


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_maps_in_three_dimensions_and_a_second_model() -> None:
    app = open_explore()
    app.segmented_control(key="explore_method").set_value("pca").run()
    app.segmented_control(key="explore_dimensions").set_value(3).run()
    assert not app.exception
    assert app.slider(key="explore_turn").value == 30
    app.segmented_control(key="explore_method").set_value("umap").run()
    assert "has not been fitted" in words(app)
    app.segmented_control(key="explore_dimensions").set_value(2).run()
    app.selectbox(key="explore_other").set_value("demo-metric").run()
    assert not app.exception
    assert len(app.get("plotly_chart")) == 2


@pytest.fixture(scope="module")
def table(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Exploration:
    home = tmp_path_factory.mktemp("home")
    (home / tiny_bundle.model_id).mkdir()
    return explore(tiny_bundle, prepare(tiny_bundle, home))


def draw(table: Exploration, **options: object) -> Any:
    xy = np.arange(2 * len(table), dtype=np.float32).reshape(-1, 2)
    plain = {"colour_by": "label", "words": str, "disease_class": "disease"}
    rows = np.arange(len(table))
    return charts.build_gallery_map(table, xy, rows=rows, **{**plain, **options})


def test_the_map_is_svg_with_one_group_a_value_and_lines_to_neighbours(table: Exploration) -> None:
    figure = draw(table, opened=2, neighbours=[5, 7], highlighted=[1, 2])
    assert {trace.type for trace in figure.data} == {"scatter"}
    groups = {t.name: list(t.customdata) for t in figure.data if t.customdata is not None}
    assert set(groups) == {"normal", "disease"}
    assert sorted(row for rows in groups.values() for row in rows) == list(range(len(table)))
    lines = next(t for t in figure.data if t.mode == "lines")
    assert list(lines.x) == [4.0, 10.0, None, 4.0, 14.0, None]
    splits = draw(table, colour_by="split").data[0].marker
    assert splits.color not in {t.marker.color for t in figure.data if t.customdata is not None}
    numbers = draw(table, colour_by="purity")
    assert numbers.data[0].marker.colorbar.title.text == "purity"


def test_the_free_map_knows_every_symbol_and_its_rows(table: Exploration) -> None:
    site = np.array([f"site {i % 9}" for i in range(len(table))])
    seen = dataclasses.replace(table, columns={**table.columns, "site": site})
    xyz = np.zeros((len(table), 3), np.float32)
    rows = np.arange(len(table))
    figure = charts.build_free_map(
        seen, xyz, rows=rows, colour_by="site", words=str, disease_class="disease"
    )
    assert sorted(row for t in figure.data for row in t.customdata) == rows.tolist()
    assert len({(t.marker.color, t.marker.symbol) for t in figure.data}) == 9


def test_a_large_gallery_is_sampled_with_what_must_be_there() -> None:
    rows = charts.sample_points(100_000, among=np.arange(100_000), always=[7, 99_999])
    assert len(rows) <= charts.MAX_POINTS
    assert {7, 99_999} <= set(rows.tolist())
    np.testing.assert_array_equal(
        rows, charts.sample_points(100_000, among=np.arange(100_000), always=[99_999, 7])
    )


def test_a_file_name_is_cut_in_the_middle_and_a_cap_is_said() -> None:
    assert short_name("train/normal/eye00001.png") == "eye00001.png"
    assert short_name("a/1.2.840.113619.2.5.1762583153.png") == "1.2.840.1…83153.png"
    assert str(N_OUTLIERS) in EXPLANATIONS["outliers"].format(n=N_OUTLIERS)


def test_many_values_share_the_last_group() -> None:
    values = np.array([f"v{i % 20:02d}" for i in range(200)])
    groups = charts.group_rows(values, np.arange(200))
    assert len(groups) == 12
    assert groups[-1][0] == "…"
    assert sum(len(rows) for _, rows in groups) == 200
