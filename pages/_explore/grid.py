"""Explore page: a list of images as a grid, with bulk corrections and export."""

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from core.errors import CoreError
from core.exploring.gallery_table import Exploration
from core.exploring.review_lists import N_OUTLIERS, Finding, embed_query, find_similar
from core.export.tables import export_csv, export_listing
from core.gallery.corrections import Change
from core.gallery.leave_one_out import NeighbourTable
from core.gallery.selection import count_values
from core.images import decode
from core.models.ensemble import Model
from pages import _shared as shared
from pages._explore import data
from pages._explore.case import mark, offer_changes
from pages._explore.words import EXPLANATIONS, LISTS, list_label, short_name, value_label
from pages._text import _, class_label, describe, ngettext, plain
from pages._thumbnails import show_thumbnail

Tables = tuple[NeighbourTable, ...]
_PER_PAGE = 24


def choose_list() -> str:
    """Which list the grid shows."""
    st.session_state.setdefault(shared.LIST_KEY, "selection")
    st.segmented_control(
        _("List"),
        list(LISTS),
        required=True,
        key=shared.LIST_KEY,
        format_func=list_label,
        label_visibility="collapsed",
    )
    return str(st.session_state[shared.LIST_KEY])


def collect_rows(
    model: Model, tables: Tables, table: Exploration, passes: NDArray[np.bool_], kind: str
) -> Finding:
    """The rows of a list that pass the filter, in order."""
    if kind == "selection":
        chosen = st.session_state.get(shared.SELECTED_KEY)
        rows = np.flatnonzero(passes) if chosen is None else chosen[chosen < len(table)]
        found = Finding(rows, np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64))
    elif kind == "similar":
        found = _collect_similar(model)
    else:
        found = data.read_finding(model, tables, table, kind)
    kept = passes[found.rows]
    return Finding(found.rows[kept], found.scores[kept], found.groups[kept])


def _collect_similar(model: Model) -> Finding:
    upload = st.file_uploader(
        _("Search with an image of your own"), key="explore_upload", accept_multiple_files=False
    )
    row = st.session_state.get("explore_query")
    if upload is not None:
        try:
            query = embed_query(model, decode.decode(upload.getvalue(), name=upload.name))
        except CoreError as error:
            st.error(describe(error), icon=":material/error:")
            return _nothing()
        if query.is_novel:
            st.warning(
                _("No training image is of the same kind as your image. These are the nearest."),
                icon=":material/search_off:",
            )
        return find_similar(model, query.embedding)
    if row is None or row >= len(model.gallery):
        st.caption(_("Upload an image, or open one and click “Find similar images”."))
        return _nothing()
    st.caption(_("Similar to {name}").format(name=plain(model.gallery.keys[row])))
    return find_similar(model, model.gallery.embeddings[row], without=row)


def _nothing() -> Finding:
    return Finding(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


def show_grid(
    model: Model, tables: Tables, table: Exploration, found: Finding, *, kind: str
) -> None:
    """Counts by class, one page of images, what can be done with them."""
    st.caption(_(EXPLANATIONS[kind]).format(n=N_OUTLIERS))
    _show_counts(model, table, found.rows, kind=kind)
    if not len(found):
        st.markdown(_("No images in this list."))
        return
    n_pages = -(-len(found) // _PER_PAGE)
    page = st.pagination(n_pages, key=f"explore_page_{kind}") if n_pages > 1 else 1
    start = (min(page, n_pages) - 1) * _PER_PAGE
    with st.grid("auto", min_column_width=128, gap=("small", "xsmall")):
        for place in range(start, min(start + _PER_PAGE, len(found))):
            _show_card(model, table, found, place, kind=kind)
    marked = [
        row
        for row in found.rows[start : start + _PER_PAGE].tolist()
        if st.session_state.get(f"{shared.MARKED_KEY}_{kind}_{row}")
    ]
    _show_bulk(model, tables, table, marked, kind=kind)
    _show_export(model, table, found.rows)


def _show_counts(model: Model, table: Exploration, rows: NDArray[np.int64], *, kind: str) -> None:
    counts = count_values(table.columns["label"][rows])
    parts = [f"{mark(n, model)} {plain(class_label(n))} **{c}**" for n, c in counts.items()]
    total = ngettext("{n} image", "{n} images", len(rows)).format(n=len(rows))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(" · ".join([f"**{total}**", *parts]))
        if kind == "selection" and st.session_state.get(shared.SELECTED_KEY) is not None:
            st.button(
                _("Clear the selection"), key="explore_clear", on_click=data.select, args=(None,)
            )


def _show_card(model: Model, table: Exploration, found: Finding, place: int, *, kind: str) -> None:
    row = int(found.rows[place])
    label = table.class_names[table.labels[row]]
    side = "disease" if label == model.disease_class else "other"
    with st.container(key=f"card-{side}-g{kind}-{row}-{place}"):
        show_thumbnail(model, row, alt=_("Training image {name}").format(name=table.keys[row]))
        lines = [
            f"{mark(label, model)} **{plain(class_label(label))}**",
            plain(short_name(table.keys[row])),
        ]
        if found.groups[place]:
            lines.append(_("group {n}").format(n=int(found.groups[place])))
        if kind in ("suspects", "wrong"):
            lines.append(_("suspicion {s}").format(s=f"{found.scores[place]:.2f}"))
        elif kind in ("outliers", "similar"):
            lines.append(_("distance {d}").format(d=f"{found.scores[place]:.3f}"))
        if (split := str(table.columns["split"][row])) != "train":
            lines.append(f":violet-badge[{value_label(split)}]")
        elif not table.may_vote[row]:
            lines.append(value_label("set aside"))
        st.markdown("  \n".join(f":small[{line}]" for line in lines))
        st.checkbox(_("Mark"), key=f"{shared.MARKED_KEY}_{kind}_{row}")
        st.button(
            _("Open"), key=f"explore_open_{kind}_{row}_{place}", on_click=data.open_image,
            args=(row,), width="stretch",
        )  # fmt: skip


def _show_bulk(
    model: Model,
    tables: Tables,
    table: Exploration,
    marked: list[int],
    *,
    kind: str,
) -> None:
    if not marked:
        return
    with st.container(border=True):
        st.markdown(
            ngettext("**{n} image marked**", "**{n} images marked**", len(marked)).format(
                n=len(marked)
            )
        )
        trained = [row for row in marked if table.columns["split"][row] == "train"]
        if len(trained) < len(marked):
            st.caption(
                _(
                    "Only training images can be corrected here; labels of other splits must be "
                    "corrected in the data itself."
                )
            )
        if not trained:
            return
        actions = [*(f"label:{name}" for name in table.class_names), "aside", "back"]
        chosen = st.segmented_control(
            _("Action"), actions, key=f"explore_bulk_{kind}", format_func=_action
        )
        if chosen is None:
            return
        state = model.lead.curation
        wanted = []
        for row in trained:
            key, given = table.keys[row], table.class_names[table.given_labels[row]]
            change = _plan(key, chosen)
            if state.read(key, change.field, given_label=given) != change.new:
                wanted.append(change)
        if not wanted:
            st.caption(_("The images have this value already."))
        offer_changes(model, tables, table, wanted, place=f"bulk_{kind}")


def _action(action: str) -> str:
    if action.startswith("label:"):
        return _("relabel as {name}").format(name=class_label(action.removeprefix("label:")))
    return _("exclude from the vote") if action == "aside" else _("include in the vote again")


def _plan(key: str, action: str) -> Change:
    if action.startswith("label:"):
        return Change(key, "label", action.removeprefix("label:"))
    return Change(key, "excluded", "yes" if action == "aside" else "")


def _show_export(model: Model, table: Exploration, rows: NDArray[np.int64]) -> None:
    with st.container(horizontal=True):
        st.download_button(
            _("Download this list (CSV)"),
            lambda: "\ufeff" + export_csv(rows, table.keys, table.columns),
            "selection.csv",
            "text/csv",
            on_click="ignore",
            icon=":material/download:",
            key="explore_csv",
        )
        st.download_button(
            _("Download the file paths"),
            lambda: export_listing(rows, table.keys, root=model.lead.config.data_root),
            "selection.txt",
            "text/plain",
            on_click="ignore",
            icon=":material/folder_open:",
            key="explore_listing",
        )
