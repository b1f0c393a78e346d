"""Explore page: which images to show: other splits, search, filters."""

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from core.assessment.store import Summary
from core.exploring.gallery_table import Exploration
from core.gallery.corrections_db import CurationStore
from core.gallery.selection import Filter, apply_filter
from core.models.ensemble import Model
from pages import _shared as shared
from pages._explore import data
from pages._explore.words import column_label, value_label
from pages._text import _, ngettext


def choose_guests(model: Model) -> list[Summary]:
    """Which kept evaluations lend their images; they are shown and never vote."""
    listed = {summary.name: summary for summary in data.list_guests(model)}

    def say(name: str) -> str:
        split, n = value_label(listed[name].split), listed[name].n
        return ngettext("{split} ({n} image)", "{split} ({n} images)", n).format(split=split, n=n)

    if not listed:
        st.caption(
            _(
                "The map shows the training images: only they vote. Evaluate this model on "
                "another split of its data (Evaluate page) to show those images here too."
            )
        )
        return []
    chosen = st.pills(
        _("Show with the training images"),
        list(listed),
        selection_mode="multi",
        key=f"{shared.GUESTS_KEY}_{model.model_id}",
        format_func=say,
        help=_(
            "Images of another split, from a saved evaluation. They never vote. When they are "
            "shown, the map can be coloured by split, and duplicates across splits can be found."
        ),
    )
    if any(listed[name].split == "test" for name in chosen):
        st.caption(
            ":material/warning: "
            + _(
                "Test images are shown. Corrections based on them would make the test figures too"
                " good."
            )
        )
    return [listed[name] for name in chosen]


def show_filters(model: Model, table: Exploration) -> NDArray[np.bool_]:
    """Draw the filters; return which rows pass."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        part = st.text_input(
            _("Search by file name"), key="explore_search", placeholder="…", width=260
        )
        with st.popover(_("Filter"), icon=":material/filter_alt:"):
            wanted = _draw_filter(model, table, part)
    passes = apply_filter(wanted, table.keys, table.columns)
    if not passes.all():
        st.caption(
            ngettext(
                "{n} of {total} images passes the filter.",
                "{n} of {total} images pass the filter.",
                int(passes.sum()),
            ).format(n=int(passes.sum()), total=len(table))
        )
    return passes


def _draw_filter(model: Model, table: Exploration, part: str) -> Filter:
    scope = model.lead.config.data_id
    store = shared.curation_store()
    saved = store.read_filters(scope)
    if saved:
        st.selectbox(
            _("Saved filters"),
            list(saved),
            index=None,
            key="explore_saved",
            placeholder=_("choose one"),
            on_change=lambda: _take_saved(saved),
        )
        st.button(
            _("Delete filter"),
            key="explore_saved_delete",
            disabled=st.session_state.get("explore_saved") not in saved,
            on_click=lambda: _forget_saved(store, scope),
        )
    allowed: dict[str, tuple[str, ...]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    for name, values in table.columns.items():
        key = f"explore_filter_{name}"
        if np.issubdtype(values.dtype, np.number):
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            if low < high:
                _follow_ends(key, (low, high))
                chosen = st.slider(column_label(name), low, high, key=key)
                if chosen != (low, high):
                    ranges[name] = chosen
            continue
        options = sorted(set(values.tolist()))
        if 1 < len(options) <= 50:
            picked = st.multiselect(
                column_label(name), options, key=shared.keep_choice(key),
                format_func=value_label, placeholder=_("all"),
            )  # fmt: skip
            if picked:
                allowed[name] = tuple(picked)
    wanted = Filter(part, allowed, ranges)
    name = st.text_input(_("Save this filter as"), key="explore_filter_name", max_chars=100)
    if st.button(_("Save filter"), key="explore_filter_save", disabled=not name.strip()):
        store.save_filter(scope, name, wanted)
        st.rerun()
    return wanted


def _forget_saved(store: CurationStore, scope: str) -> None:
    """Delete the chosen filter; the images on view stay as they are."""
    store.delete_filter(scope, st.session_state["explore_saved"])
    st.session_state["explore_saved"] = None


def _follow_ends(key: str, ends: tuple[float, float]) -> None:
    """Set a range slider: an edge at an end sets no limit, so it moves with that end."""
    before = st.session_state.get(f"{key}_ends", ends)
    kept = st.session_state.get(key, ends)  # also of a saved filter
    edges = (
        new if edge == old else edge for edge, old, new in zip(kept, before, ends, strict=True)
    )
    st.session_state[key] = tuple(min(max(edge, ends[0]), ends[1]) for edge in edges)
    st.session_state[f"{key}_ends"] = ends


def _take_saved(saved: dict[str, Filter]) -> None:
    wanted = saved.get(st.session_state.get("explore_saved") or "")
    if wanted is None:
        return
    for key in [k for k in st.session_state if str(k).startswith("explore_filter_")]:
        del st.session_state[key]
    st.session_state["explore_search"] = wanted.name_part
    for name, values in wanted.allowed.items():
        st.session_state[f"explore_filter_{name}"] = list(values)
    for name, limits in wanted.ranges.items():
        st.session_state[f"explore_filter_{name}"] = limits
