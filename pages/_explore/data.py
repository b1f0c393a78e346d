"""Explore page: tables and maps cached per model and gallery version; the selection.

Computes nothing: it remembers what core gave.
"""

import dataclasses
from pathlib import Path
from typing import Any

import streamlit as st

from core.assessment.store import Summary
from core.config import Settings
from core.exploring import gallery_table, map_store, other_splits, review_lists
from core.exploring.gallery_table import Exploration, ManifestStatus
from core.exploring.map_store import FittedMap
from core.exploring.review_lists import Finding
from core.files.names import read_path
from core.gallery.leave_one_out import NeighbourTable
from core.gallery.projection import MapSettings
from core.models.ensemble import Model
from pages import _shared as shared
from pages._text import _

MAX_AT_ONCE = 5000  # images; a larger gallery's neighbours are searched in a process of their own


def identity(model: Model) -> tuple[str, str]:
    """What a cached result belongs to: the model, its data, the gallery's version, the guests."""
    shown = f"{len(model.gallery)} {model.gallery.keys[-1]}"
    return model.model_id, f"{model.created} {model.data_id} {shown}"


@st.cache_resource(max_entries=4, show_spinner=False)
def _tables(_model: Model, model_id: str, created: str) -> tuple[NeighbourTable, ...]:  # noqa: ARG001
    return gallery_table.prepare(_model, Settings.from_env().checkpoints_dir)


@st.cache_resource(max_entries=4, show_spinner=False)
def _table_paths(_model: Model, model_id: str, created: str) -> tuple[Path, ...]:  # noqa: ARG001 - cache key
    """Their names are hashes of all embeddings: not to be computed on every run of the page."""
    checkpoints = Settings.from_env().checkpoints_dir
    return tuple(map_store.neighbours_path(checkpoints, member.bundle) for member in _model.members)


def require_tables(model: Model) -> tuple[NeighbourTable, ...]:
    """The neighbour tables; for a large gallery they are made aside while the page waits."""
    is_large = len(model.gallery) > MAX_AT_ONCE
    if is_large and not all(
        path.is_file() for path in _table_paths(model, model.model_id, model.created)
    ):
        _wait_for_tables(model)
    with st.spinner(_("Comparing the training images with each other …")):
        return _tables(model, model.model_id, model.created)


def list_guests(model: Model) -> list[Summary]:
    """Kept evaluations whose images can be shown beside the gallery."""
    return other_splits.list_guests(Settings.from_env().checkpoints_dir, model)


@st.cache_resource(max_entries=4, show_spinner=False)
def _wide(
    _model: Model,
    _tables: tuple[NeighbourTable, ...],
    key: tuple[str, str],  # noqa: ARG001 - cache key
    evaluations: tuple[tuple[str, str], ...],
) -> tuple[Model, tuple[NeighbourTable, ...]]:
    checkpoints = Settings.from_env().checkpoints_dir
    names = [name for name, _created in evaluations]
    wide = other_splits.widen(_model, other_splits.load_guests(checkpoints, _model, names))
    return wide, other_splits.widen_tables(_model, wide, _tables)


def widen(
    model: Model, tables: tuple[NeighbourTable, ...], guests: list[Summary]
) -> tuple[Model, tuple[NeighbourTable, ...]]:
    """The model and its tables with the images of some evaluations beside its gallery."""
    if not guests:
        return model, tables
    return _wide(model, tables, identity(model), tuple((g.name, g.created) for g in guests))


@st.fragment(run_every=3)
def _poll(model: Model, settings: MapSettings) -> None:
    checkpoints = Settings.from_env().checkpoints_dir
    state = map_store.read_state(checkpoints, model.lead, settings)
    st.progress(state.share, text=_("Comparing the training images with each other …"))
    if state.status in ("done", "failed"):
        st.rerun()


def _wait_for_tables(model: Model) -> None:
    settings = MapSettings("pca")
    checkpoints = Settings.from_env().checkpoints_dir
    if st.session_state.get("explore_preparing") != model.model_id:
        st.session_state["explore_preparing"] = model.model_id
        map_store.start_fit(checkpoints, model.model_id, settings)
    st.info(_("This gallery is large. It is prepared once; you can leave this page meanwhile."))
    _poll(model, settings)
    st.stop()


@st.cache_resource(max_entries=4, show_spinner=False)
def _seen(
    _model: Model,
    _tables: tuple[NeighbourTable, ...],
    key: tuple[str, str],  # noqa: ARG001 - cache key
) -> tuple[Exploration, ManifestStatus]:
    root = read_path(_model.lead.config.data_root)
    extra, status = gallery_table.read_manifest(root, _model.gallery.keys)
    return gallery_table.explore(_model, _tables, extra=extra), status


def read_table(
    model: Model, tables: tuple[NeighbourTable, ...]
) -> tuple[Exploration, ManifestStatus]:
    """The gallery as a table, and whether the data folder's manifest could be read."""
    return _seen(model, tables, identity(model))


@st.cache_resource(max_entries=8, show_spinner=False)
def _map(_model: Model, key: tuple[str, str], settings: MapSettings) -> FittedMap | None:  # noqa: ARG001
    return map_store.load_map(Settings.from_env().checkpoints_dir, _model.lead, settings)


def read_map(model: Model, settings: MapSettings) -> FittedMap | None:
    """A fitted map; None while there is none."""
    found = _map(model, (model.model_id, model.created), settings)
    if found is None:
        _map.clear(model, (model.model_id, model.created), settings)
    return found


@st.cache_resource(max_entries=8, show_spinner=False)
def _wide_map(
    _model: Model,
    _wide: Model,
    _fitted: FittedMap,
    key: tuple[str, str],  # noqa: ARG001 - cache key
    settings: MapSettings,  # noqa: ARG001 - cache key
) -> FittedMap:
    places = other_splits.widen_map(_model, _wide, _fitted.coordinates)
    return dataclasses.replace(_fitted, coordinates=places)


def widen_map(model: Model, wide: Model, fitted: FittedMap) -> FittedMap:
    """The map with places for the guests; its figures are those of the gallery."""
    return _wide_map(model, wide, fitted, identity(wide), fitted.settings)


@st.cache_resource(max_entries=16, show_spinner=False)
def _finding(
    _model: Model,
    _tables: tuple[NeighbourTable, ...],
    _table: Exploration,
    key: tuple[str, str],  # noqa: ARG001 - cache key
    kind: str,
) -> Finding:
    if kind == "wrong":
        return review_lists.find_wrong(_table)
    if kind == "suspects":
        return review_lists.find_suspects(_model, _table)
    if kind == "duplicates":
        return review_lists.find_duplicates(_model)
    if kind == "outliers":
        return review_lists.find_outliers(_model)
    return review_lists.find_mixed(_table, _tables, _model)


def read_finding(
    model: Model, tables: tuple[NeighbourTable, ...], table: Exploration, kind: str
) -> Finding:
    """One of the lists: wrong, suspects, duplicates, outliers, mixed."""
    with st.spinner(_("Analysing the gallery …")):
        return _finding(model, tables, table, identity(model), kind)


def neighbours_of(model: Model, tables: tuple[NeighbourTable, ...], row: int) -> list[int]:
    """The lead's voters on a row, nearest first; never from the map."""
    return gallery_table.list_neighbours(model, tables, row)[0].tolist()


def forget_other_rows(model: Model) -> None:
    """Rows mean something else in another gallery: drop what was selected and opened there."""
    shown = (model.model_id, len(model.gallery), model.gallery.keys[-1])
    if st.session_state.get("explore_shown") != shown:
        st.session_state["explore_shown"] = shown
        for key in (shared.SELECTED_KEY, shared.OPENED_KEY, "explore_query"):
            st.session_state.pop(key, None)


def select(rows: Any) -> None:
    """Remember which rows are selected; None is everything that passes the filter."""
    st.session_state[shared.SELECTED_KEY] = rows


def open_image(row: int | None) -> None:
    """Put an image on view."""
    st.session_state[shared.OPENED_KEY] = row
