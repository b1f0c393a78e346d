"""Explore page: one training image, its leave-one-out vote, neighbours, heatmap, corrections."""

import numpy as np
import streamlit as st

from core.answers.diagnose import diagnose
from core.errors import CoreError
from core.explanations.grad_cam import overlay, resize_heatmap
from core.exploring import gallery_table
from core.exploring.gallery_table import Exploration
from core.gallery.corrections import Change
from core.gallery.leave_one_out import NeighbourTable
from core.models.ensemble import Model
from core.models.originals import load_image
from pages import _shared as shared
from pages._explore import data
from pages._explore.words import value_label
from pages._text import _, class_label, describe, percent, plain
from pages._thumbnails import show_thumbnail

Tables = tuple[NeighbourTable, ...]
_N_NEIGHBOURS = 8


def mark(name: str, model: Model) -> str:
    """Colour is never alone: a shape in front of the class."""
    return "◆" if name == model.disease_class else "●"


def show_case(model: Model, tables: Tables, table: Exploration) -> None:
    """The opened image, or how to open one."""
    row = st.session_state.get(shared.OPENED_KEY)
    if row is None or row >= len(table):
        st.info(
            _(
                "Use the lasso or the box on the map to list images below. Click a point, or "
                "“Open” under an image, to see it here with its neighbours."
            ),
            icon=":material/touch_app:",
        )
        return
    _show_picture(model, table, row)
    _show_corrections(model, tables, table, row)
    _show_neighbours(model, tables, table, row)
    _show_heatmap(model, row)


def _show_picture(model: Model, table: Exploration, row: int) -> None:
    label = table.class_names[table.labels[row]]
    left, right = st.columns([2, 3])
    with left, st.container(key=f"card-{'disease' if label == model.disease_class else 'other'}-o"):
        show_thumbnail(model, row, alt=_("Training image {name}").format(name=table.keys[row]))
    with right:
        st.markdown(f"**{plain(table.keys[row])}**")
        lines = [_("Label: {name}").format(name=_name_class(label, model))]
        if table.predicted[row] >= 0:
            answer = table.class_names[table.predicted[row]]
            lines.append(
                _("Its neighbours say: {name}, {p}").format(
                    name=_name_class(answer, model),
                    p=percent(float(table.columns["confidence"][row])),
                )
            )
        else:
            lines.append(_("No image is left to vote on it."))
        if table.is_wrong[row]:
            lines.append(":red[:material/warning: " + _("Its neighbours outvote its label.") + "]")
        split = str(table.columns["split"][row])
        if split != "train":
            lines.append(f":violet-badge[{value_label(split)}] {value_label('looks on')}")
        purity = float(table.columns["purity"][row])
        if not np.isnan(purity):
            lines.append(
                _("{share} of its neighbours have the same label").format(share=percent(purity))
            )
        for name in ("vote", "corrected"):
            value = str(table.columns[name][row])
            if value in ("set aside", "relabelled"):
                lines.append(f":violet-badge[{value_label(value)}]")
        st.markdown("  \n".join(lines))
        with st.container(horizontal=True):
            st.button(
                _("Find similar images"),
                icon=":material/image_search:",
                key="explore_like",
                on_click=_list_similar,
                args=(row,),
            )
            st.button(_("Close"), key="explore_close", on_click=data.open_image, args=(None,))


def _name_class(name: str, model: Model) -> str:
    return f"{mark(name, model)} **{plain(class_label(name))}**"


def _list_similar(row: int) -> None:
    st.session_state["explore_query"] = row
    st.session_state[shared.LIST_KEY] = "similar"


def _show_corrections(model: Model, tables: Tables, table: Exploration, row: int) -> None:
    state = model.lead.curation
    key = table.keys[row]
    with st.expander(_("Correct this image"), icon=":material/edit:", expanded=True):
        names = list(table.class_names)
        place = f"{row}_{state.version}"  # a new version starts from what it says
        is_guest = table.columns["split"][row] != "train"
        label_key = f"explore_label_{place}"
        st.session_state.setdefault(label_key, names[int(table.labels[row])])
        new = st.radio(
            _("Label"), names, key=shared.keep_choice(label_key),
            format_func=class_label, horizontal=True, disabled=is_guest,
            help=_("Labels of other splits must be corrected in the data itself.")
            if is_guest else None,
        )  # fmt: skip
        aside = st.checkbox(
            _("Exclude it from the vote"),
            value=is_guest or key in state.excluded,
            key=f"explore_aside_{place}",
            disabled=is_guest,
        )
        note = st.text_input(
            _("Note"), value=state.notes.get(key, ""), key=f"explore_note_{place}", max_chars=500
        )
        changes = [
            Change(key, "label", new),
            Change(key, "excluded", "yes" if aside and not is_guest else ""),
            Change(key, "note", note),
        ]
        given = table.class_names[table.given_labels[row]]
        wanted = [c for c in changes if state.read(key, c.field, given_label=given) != c.new]
        offer_changes(model, tables, table, wanted, place="case")


def offer_changes(
    model: Model, tables: Tables, table: Exploration, changes: list[Change], *, place: str
) -> None:
    """The effect before it is applied, and the button that applies it."""
    if not changes:
        return
    if any(change.field != "note" for change in changes):
        show_effect(gallery_table.preview(model, tables, changes))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            _("Your name (for the record)"), key=f"{shared.AUTHOR_KEY}_{place}", width=220
        )
        st.button(
            _("Apply"),
            key=f"explore_apply_{place}",
            type="primary",
            icon=":material/check:",
            on_click=_apply_changes,
            args=(model, table, changes, place),
        )


def _apply_changes(model: Model, table: Exploration, changes: list[Change], place: str) -> None:
    """Write the changes as the gallery's next version; then nothing is marked any more."""
    row_of = {key: row for row, key in enumerate(table.keys)}
    given = {c.key: table.class_names[table.given_labels[row_of[c.key]]] for c in changes}
    try:
        shared.curation_store().apply(
            model.lead.config.data_id,
            changes,
            given_labels=given,
            expected_version=model.lead.curation.version,
            author=st.session_state.get(f"{shared.AUTHOR_KEY}_{place}", ""),
        )
    except CoreError as error:
        st.session_state["explore_message"] = describe(error)
        return
    for key in [str(k) for k in st.session_state]:
        if key.startswith(f"{shared.MARKED_KEY}_"):
            st.session_state[key] = False
        elif key.startswith("explore_bulk_"):
            st.session_state[key] = None


def show_effect(effect: gallery_table.Effect) -> None:
    """What the changes would do to the left-out answers."""
    st.markdown(
        _(
            "Leave-one-out accuracy: **{before}** now, **{after}** after the change. Among the "
            "other images, {mended} would become right and {broken} wrong."
        ).format(
            before=f"{effect.accuracy_before:.1%}",
            after=f"{effect.accuracy_after:.1%}",
            mended=effect.n_mended,
            broken=effect.n_broken,
        ),
        help=_(
            "Each training image is classified by the vote of the others. The network was "
            "trained on these images, so expect lower accuracy on new ones."
        ),
    )


def _show_neighbours(model: Model, tables: Tables, table: Exploration, row: int) -> None:
    rows, distances = gallery_table.list_neighbours(model, tables, row)
    st.markdown("**" + _("Nearest voting images") + "**")
    with st.grid("auto", min_column_width=84, gap=("xsmall", "xsmall")):
        for rank, (near, distance) in enumerate(
            zip(rows[:_N_NEIGHBOURS].tolist(), distances.tolist(), strict=False)
        ):
            label = table.class_names[table.labels[near]]
            kind = "disease" if label == model.disease_class else "other"
            with st.container(key=f"card-{kind}-n{rank}"):
                show_thumbnail(
                    model, near, alt=_("Training image {name}").format(name=table.keys[near])
                )
                st.markdown(f":small[{mark(label, model)} {distance:.3f}]")


def _show_heatmap(model: Model, row: int) -> None:
    if st.button(_("Show the heatmap"), key="explore_heatmap", icon=":material/blur_on:"):
        with st.spinner(_("Reading the image …")):
            image, is_original = load_image(model, row)
            diagnosis = diagnose(model, [image])[0]
        if not is_original:
            st.caption(_("The original is missing or has changed: this is its thumbnail."))
        if diagnosis.pixels is None or not diagnosis.heatmaps:
            st.caption(_("There is no heatmap for this image."))
            return
        height, width = diagnosis.pixels.shape[:2]
        target = class_label(diagnosis.predicted_class or "")
        columns = st.columns(max(1, len(diagnosis.heatmaps)))
        for column, (backbone, heatmap) in zip(columns, diagnosis.heatmaps.items(), strict=False):
            fine = resize_heatmap(heatmap, height=height, width=width)
            column.image(
                overlay(diagnosis.pixels, fine, opacity=0.6),
                width="stretch",
                output_format="PNG",
                caption=_("Backbone: {backbone}").format(backbone=plain(backbone)),
                alt=_("Heatmap of {backbone}: bright areas support {name}").format(
                    backbone=backbone, name=target
                ),
            )
        st.caption(_("Bright areas support {name}.").format(name=plain(target)))
