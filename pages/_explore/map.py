"""Explore page: the map and its quality; a lasso selects rows."""

from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from core.config import Settings
from core.exploring import map_store
from core.exploring.gallery_table import Exploration
from core.exploring.map_store import FittedMap
from core.gallery.projection import MapSettings, turn
from core.gallery.selection import find_in_box, find_in_polygon
from core.models.ensemble import Model
from pages import _shared as shared
from pages._charts import explore as charts
from pages._charts.cases import list_rows
from pages._explore import data
from pages._explore.words import column_label, value_label
from pages._text import _, plain
from pages._thumbnails import show_on_hover

_CONFIG = {
    "displaylogo": False,
    "scrollZoom": True,
    "modeBarButtonsToRemove": ["autoScale2d", "toImage"],
}


_METHODS = ("umap", "pca")


def show_map(
    model: Model,
    wide: Model,
    tables: Any,
    table: Exploration,
    passes: NDArray[np.bool_],
    *,
    highlighted: NDArray[np.int64],
) -> None:
    """Controls, the map, how far it may be believed, and a second model beside it.

    ``model`` is what the maps belong to; ``wide``, ``tables`` and ``table`` have the guests too.
    """
    settings, other = _choose_settings(model, list(table.columns))
    colour_by = st.session_state["explore_colour"]
    fitted = data.read_map(model, settings)
    if fitted is None:
        _offer_fit(model, settings)
        return
    fitted = data.widen_map(model, wide, fitted)
    if other is None:
        _draw(wide, tables, table, fitted, passes, colour_by=colour_by, highlighted=highlighted)
        return
    left, right = st.columns(2)
    with left:
        st.caption(plain(model.model_id))
        _draw(wide, tables, table, fitted, passes, colour_by=colour_by, highlighted=highlighted)
    with right:
        st.caption(plain(other.model_id))
        _draw_other(other, table, settings, highlighted, colour_by=colour_by)


def _choose_settings(model: Model, columns: list[str]) -> tuple[MapSettings, Model | None]:
    seed = model.lead.config.run.train.seed
    with st.container(horizontal=True, vertical_alignment="bottom"):
        method = st.segmented_control(
            _("Map"), list(_METHODS), default=_METHODS[0], required=True, key="explore_method",
            format_func=str.upper,
        )  # fmt: skip
        n_dimensions = st.segmented_control(
            _("Dimensions"), [2, 3], default=2, required=True, key="explore_dimensions",
            format_func=lambda n: f"{n}-D",
        )  # fmt: skip
        st.selectbox(
            _("Colour by"), columns, key=shared.keep_choice("explore_colour"),
            format_func=column_label, width=170,
        )  # fmt: skip
        with st.popover(_("More"), icon=":material/tune:"):
            n_neighbors = st.slider(_("UMAP: neighbours"), 2, 100, 15, key="explore_neighbors")
            min_dist = st.slider(_("UMAP: minimum distance"), 0.0, 1.0, 0.1, key="explore_min_dist")
            st.caption(
                _(
                    "More neighbours preserve the global layout, fewer the local detail. Each map"
                    " is fitted once, in the background, and kept with the model."
                )
            )
            other = _choose_other(model)
    return MapSettings(method, n_dimensions, n_neighbors, min_dist, seed), other


def _offer_fit(model: Model, settings: MapSettings) -> None:
    checkpoints = Settings.from_env().checkpoints_dir
    state = map_store.read_state(checkpoints, model.lead, settings)
    if state.status == "running" or st.session_state.get("explore_fitting") == settings:
        _follow_fit(model, settings)
        return
    if state.status == "failed":
        st.warning(_("The last attempt to fit this map failed."), icon=":material/warning:")
    st.info(_("This map has not been fitted yet."), icon=":material/info:")
    if st.button(_("Fit this map"), key="explore_fit", type="primary"):
        map_store.start_fit(checkpoints, model.model_id, settings)
        st.session_state["explore_fitting"] = settings
        st.rerun()


@st.fragment(run_every=2)
def _follow_fit(model: Model, settings: MapSettings) -> None:
    state = map_store.read_state(Settings.from_env().checkpoints_dir, model.lead, settings)
    st.progress(state.share, text=_("Fitting the map in the background …"))
    if state.status in ("done", "failed"):
        st.session_state.pop("explore_fitting", None)
        st.rerun()


def _choose_other(model: Model) -> Model | None:
    others = {m.model_id: m for m in shared.list_usable_models() if m.model_id != model.model_id}
    if not others:
        return None
    chosen = st.selectbox(
        _("Compare with the map of"),
        list(others),
        index=None,
        key="explore_other",
        placeholder=_("no second model"),
        width=260,
    )
    return shared.load_current(others[chosen]) if chosen else None


def _flatten(fitted: FittedMap, *, suffix: str) -> NDArray[np.float32]:
    """The places as drawn: a 3-D map is looked at from a side that sliders choose."""
    if fitted.settings.n_dimensions == 2:
        return fitted.coordinates
    left, right = st.columns(2)
    angle = left.slider(_("Rotation"), -180, 180, 30, step=5, key=f"explore_turn{suffix}")
    tilt = right.slider(_("Tilt"), -90, 90, 20, step=5, key=f"explore_tilt{suffix}")
    return turn(fitted.coordinates, turn_deg=angle, tilt_deg=tilt)


def _draw(
    model: Model,
    tables: Any,
    table: Exploration,
    fitted: FittedMap,
    passes: NDArray[np.bool_],
    *,
    colour_by: str,
    highlighted: NDArray[np.int64],
) -> None:
    opened = st.session_state.get(shared.OPENED_KEY)
    near = data.neighbours_of(model, tables, opened) if opened is not None else []
    shown = charts.sample_points(
        len(table),
        among=np.flatnonzero(passes),
        always=[*near, *([] if opened is None else [opened])],
    )
    words = {
        "colour_by": colour_by,
        "words": lambda text: column_label(text) if text == colour_by else value_label(text),
        "disease_class": model.disease_class,
    }
    is_solid = fitted.settings.n_dimensions == 3
    if is_solid and st.toggle(
        _("Rotate freely with the mouse (needs WebGL, no lasso)"), key="explore_free"
    ):
        figure = charts.build_free_map(table, fitted.coordinates, rows=shown, **words)
        st.plotly_chart(figure, config=_CONFIG, key="explore_free_map")
        show_on_hover(model, key="explore_free_map")
        _show_quality(fitted)
        return
    xy = _flatten(fitted, suffix="")
    figure = charts.build_gallery_map(
        table, xy, rows=shown, opened=opened, neighbours=near, highlighted=highlighted,
        **words,
    )  # fmt: skip
    st.plotly_chart(
        figure,
        config=_CONFIG,
        key="explore_map",
        on_select=lambda: _take_selection(table, xy, passes, colour_by),
        selection_mode=("points", "box", "lasso"),
    )
    show_on_hover(model, key="explore_map")
    if len(shown) < int(passes.sum()):
        st.caption(
            _("{shown} of {n} images are drawn; a lasso selects from all {n}.").format(
                shown=len(shown), n=int(passes.sum())
            )
        )
    _show_quality(fitted)


def _take_selection(
    table: Exploration, xy: NDArray[np.float32], passes: NDArray[np.bool_], colour_by: str
) -> None:
    event = st.session_state.get("explore_map") or {}
    selection = event.get("selection", {})
    rows: list[NDArray[np.int64]] = []
    for outline in selection.get("lasso", []):
        corners = list(zip(outline["x"], outline["y"], strict=True))
        if len(corners) > 2:
            rows.append(find_in_polygon(xy, corners))
    for box in selection.get("box", []):
        (x0, x1), (y0, y1) = box["x"], box["y"]
        rows.append(find_in_box(xy, corner=(x0, y0), opposite=(x1, y1)))
    points = list_rows(selection.get("points", []))
    if rows:
        found = np.unique(np.concatenate(rows))
        found = found[passes[found]]
        values = table.columns[colour_by]
        if points and not np.issubdtype(values.dtype, np.number):
            # a group hidden in the legend has no selected point
            found = found[np.isin(values[found], values[points])]
        data.select(found)
        st.session_state[shared.LIST_KEY] = "selection"
    elif len(points) == 1:
        data.open_image(points[0])


def _show_quality(fitted: FittedMap) -> None:
    quality = fitted.quality
    st.caption(
        _(
            "How faithful this map is: trustworthiness {t}, true neighbours preserved {p} (1 is "
            "perfect; {k} neighbours, over {n} images). Lines lead to the true neighbours."
        ).format(
            t=f"**{quality.trustworthiness:.2f}**",
            p=f"**{quality.preserved:.2f}**",
            k=quality.k,
            n=quality.n_sampled,
        )
    )


def _draw_other(
    other: Model,
    table: Exploration,
    settings: MapSettings,
    highlighted: NDArray[np.int64],
    *,
    colour_by: str,
) -> None:
    fitted = data.read_map(other, settings)
    if fitted is None:
        _offer_fit(other, settings)
        return
    other_table, _status = data.read_table(other, data.require_tables(other))
    row_of = {key: row for row, key in enumerate(other_table.keys)}
    picked = [row_of[table.keys[row]] for row in highlighted.tolist() if table.keys[row] in row_of]
    rows = charts.sample_points(
        len(other_table), among=np.arange(len(other_table)), always=picked[: charts.MAX_POINTS]
    )
    figure = charts.build_gallery_map(
        other_table,
        _flatten(fitted, suffix="_other"),
        rows=rows,
        colour_by=colour_by if colour_by in other_table.columns else "label",
        words=value_label,
        disease_class=other.disease_class,
        highlighted=picked,
    )
    st.plotly_chart(figure, config=_CONFIG, key="explore_other_map")
    show_on_hover(other, key="explore_other_map")
    _show_quality(fitted)
