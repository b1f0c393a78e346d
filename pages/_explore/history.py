"""Explore page: the gallery's versions, undo and roll-back."""

import pandas as pd
import streamlit as st

from core.errors import CoreError
from core.gallery.corrections import Edit, Version
from core.models.ensemble import Model
from pages import _shared as shared
from pages._text import _, class_label, describe, moment, plain


def show_state(model: Model) -> None:
    """Which version votes, and the undo button."""
    state = model.lead.curation
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            _(
                "Gallery version **{n}**: {relabelled} relabelled, {aside} excluded from the vote"
            ).format(n=state.version, relabelled=len(state.labels), aside=len(state.excluded))
        )
        if state.version:
            st.button(
                _("Undo last change"),
                icon=":material/undo:",
                key="explore_undo",
                on_click=_undo,
                args=(model.lead.config.data_id, state.version),
            )
    if message := st.session_state.pop("explore_message", None):
        st.error(message, icon=":material/error:")


def _undo(scope: str, version: int) -> None:
    try:
        shared.curation_store().undo(scope, expected_version=version)
    except CoreError as error:
        st.session_state["explore_message"] = describe(error)


def _roll_back(scope: str, number: int, version: int) -> None:
    try:
        shared.curation_store().roll_back(scope, number, expected_version=version)
    except CoreError as error:
        st.session_state["explore_message"] = describe(error)


def show_history(model: Model) -> None:
    """The audit trail, newest first, and the choice of a version to go back to."""
    scope, now = model.lead.config.data_id, model.lead.curation.version
    history = shared.curation_store().read_history(scope)
    if not history:
        st.markdown(_("Nothing has been changed yet."))
        return
    rows = [_describe(entry, edit) for entry in reversed(history) for edit in entry.edits]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt=_("Table of all changes to the gallery"),
        column_config={
            "version": st.column_config.NumberColumn(_("Version"), width="small"),
            "when": st.column_config.TextColumn(_("When (UTC)")),
            "who": st.column_config.TextColumn(_("Author")),
            "action": st.column_config.TextColumn(_("Action")),
            "file": st.column_config.TextColumn(_("Training image")),
            "old": st.column_config.TextColumn(_("Before")),
            "new": st.column_config.TextColumn(_("After")),
        },
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        number = st.selectbox(
            _("Restore version"), [n for n in range(now, -1, -1) if n != now],
            key="explore_version", width=180,
        )  # fmt: skip
        st.button(
            _("Restore"),
            icon=":material/history:",
            key="explore_roll_back",
            on_click=_roll_back,
            args=(scope, number, now),
        )
    st.caption(_("Restoring adds a new version; nothing is lost."))


def _describe(entry: Version, edit: Edit) -> dict[str, object]:
    return {
        "version": entry.number,
        "when": moment(entry.created),
        "who": entry.author or "–",
        "action": _say_action(entry) + ", " + _say_field(edit.field),
        "file": edit.key,
        "old": _say_value(edit.field, edit.old),
        "new": _say_value(edit.field, edit.new),
    }


def _say_action(entry: Version) -> str:
    if entry.action == "undo":
        return _("undone")
    if entry.action == "rollback":
        return _("restored version {n}").format(n=entry.restores)
    return _("changed")


def _say_field(field: str) -> str:
    return {"label": _("label"), "excluded": _("vote status"), "note": _("note")}[field]


def _say_value(field: str, value: str) -> str:
    if field == "label":
        return class_label(value)
    if field == "excluded":
        return _("excluded") if value else _("votes")
    return plain(value)
