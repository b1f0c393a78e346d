"""Diagnose page: the worklist, one row per image, with the reasons for refusals."""

import base64
import hashlib
from collections.abc import Iterable

import pandas as pd
import streamlit as st

from core.answers.diagnosis import Diagnosis
from core.images.decode import encode_png, thumbnail
from pages import _shared as shared
from pages._diagnose.reader import is_hidden
from pages._text import _, class_label, describe_error, ngettext, percent, plain

_THUMBNAIL_PX = 96
_N_OPEN = 6  # refusals that are listed without a click


def headline(diagnosis: Diagnosis) -> str:
    """The answer in a few words, for the table and the list of cases."""
    if diagnosis.status == "rejected":
        return _("Could not be read")
    if is_hidden(diagnosis):
        return _("Awaiting your read")
    if diagnosis.abstain_reason == "novel":
        return _("No answer: unfamiliar image")
    if diagnosis.status == "abstained":
        return _("No answer: too close to call")
    return _begin_large(class_label(diagnosis.predicted_class or ""))


def _begin_large(name: str) -> str:
    """A name at the head of a line; what follows stays: COVID-19."""
    return name[:1].upper() + name[1:]


def _data_url(diagnosis: Diagnosis) -> str | None:
    if diagnosis.pixels is None:
        return None
    png = encode_png(thumbnail(diagnosis.pixels, max_px=_THUMBNAIL_PX))
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _row(diagnosis: Diagnosis, *, is_repeat: bool) -> dict[str, object]:
    is_hidden_now = is_hidden(diagnosis)
    has_p = diagnosis.status != "rejected" and diagnosis.abstain_reason != "novel"
    p = diagnosis.probabilities.get(diagnosis.disease_class)
    return {
        "image": _data_url(diagnosis),
        "file": _("Duplicate of {name}").format(name=diagnosis.file)
        if is_repeat
        else diagnosis.file,
        "answer": headline(diagnosis),
        "p": percent(p) if has_p and not is_hidden_now and p is not None else "–",
        "status": "◌ " + _("hidden")
        if is_hidden_now
        else _STATUS_MARKS[diagnosis.status] + " " + _status(diagnosis.status),
    }


_STATUS_MARKS = {"answered": "●", "abstained": "○", "rejected": "✕"}


def _status(status: str) -> str:
    return {
        "answered": _("answered"),
        "abstained": _("no answer"),
        "rejected": _("rejected"),
    }[status]


def _find_repeats(cases: Iterable[Diagnosis]) -> list[bool]:
    """For each case whether one before it is of the same file."""
    seen: set[str] = set()
    repeats = []
    for case in cases:
        repeats.append(case.sha256 in seen)
        seen.update(filter(None, [case.sha256]))
    return repeats


def choose_case(ids: list[str]) -> None:
    """Keep a valid case on view, and the table's selected row in step with it."""
    if st.session_state.get(shared.CASE_KEY) not in ids:
        st.session_state[shared.CASE_KEY] = ids[0]
    row = ids.index(st.session_state[shared.CASE_KEY])
    current = st.session_state.get(shared.WORKLIST_KEY)
    if current is None or list(current["selection"]["rows"]) != [row]:
        st.session_state[shared.WORKLIST_KEY] = {
            "selection": {"rows": [row], "columns": [], "cells": []}
        }


def _take_selected(ids: list[str]) -> None:
    rows = st.session_state[shared.WORKLIST_KEY]["selection"]["rows"]
    if rows and rows[0] < len(ids):
        st.session_state[shared.CASE_KEY] = ids[rows[0]]


def _step(ids: list[str], by: int) -> None:
    at = ids.index(st.session_state[shared.CASE_KEY])
    st.session_state[shared.CASE_KEY] = ids[(at + by) % len(ids)]


def show_worklist(cases: dict[str, Diagnosis]) -> None:
    """A row per image; the row that is chosen is the case on view."""
    ids = list(cases)
    disease = class_label(next(iter(cases.values())).disease_class)
    repeats = _find_repeats(cases.values())
    rows = [_row(d, is_repeat=r) for d, r in zip(cases.values(), repeats, strict=True)]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        row_height=56,
        height=min(60 + 56 * len(cases), 420),
        key=shared.WORKLIST_KEY,
        on_select=lambda: _take_selected(ids),
        selection_mode="single-row-required",
        alt=_("Table of all images with their answers"),
        placeholder="–",
        column_order=["image", "answer", "p", "status", "file"],
        column_config={
            "image": st.column_config.ImageColumn(_("Image"), width=60),
            "answer": st.column_config.TextColumn(_("Answer"), width=178),
            "p": st.column_config.TextColumn(
                _begin_large(disease),
                width=84,
                alignment="right",
                help=_("Probability of {name}").format(name=disease),
            ),
            "status": st.column_config.TextColumn(_("Status"), width=100),
            "file": st.column_config.TextColumn(
                _("File")
            ),  # last: a long name is cut, not an answer
        },
    )


def show_refusals(cases: dict[str, Diagnosis]) -> None:
    """Every file that was not read, with its reason in full: a table's cell would cut it."""
    refused = [d for d in cases.values() if d.status == "rejected"]
    if not refused:
        return
    title = ngettext(
        "{n} file could not be read: reason", "{n} files could not be read: reasons", len(refused)
    ).format(n=len(refused))
    with st.expander(title, icon=":material/block:", expanded=len(refused) <= _N_OPEN):
        st.markdown("\n".join(f"- **{plain(d.file)}**: {plain(_reason(d))}" for d in refused))


def _reason(diagnosis: Diagnosis) -> str:
    return describe_error(diagnosis.error_code, diagnosis.error or "", diagnosis.error_params)


def show_case_picker(cases: dict[str, Diagnosis]) -> None:
    """Previous, next, and a list of all cases by name and answer."""
    ids = list(cases)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            _("Previous"),
            icon=":material/arrow_back:",
            on_click=_step,
            args=(ids, -1),
            shortcut="P",
            key="diagnose_previous",
        )
        st.button(
            _("Next"),
            icon=":material/arrow_forward:",
            on_click=_step,
            args=(ids, 1),
            shortcut="N",
            key="diagnose_next",
        )
        labels = {
            case_id: f"{number}. {diagnosis.file} · {headline(diagnosis)}"
            for number, (case_id, diagnosis) in enumerate(cases.items(), start=1)
        }
        # One widget per set of labels: the browser keeps the text of the chosen option otherwise.
        told = hashlib.sha256("\n".join(labels.values()).encode()).hexdigest()[:12]
        picker = f"{shared.PICKER_KEY}_{told}"
        st.session_state[picker] = st.session_state[shared.CASE_KEY]
        st.selectbox(
            _("Current case"),
            ids,
            format_func=labels.__getitem__,
            key=picker,
            on_change=_take_picked,
            args=(picker,),
            label_visibility="collapsed",
        )


def _take_picked(picker: str) -> None:
    st.session_state[shared.CASE_KEY] = st.session_state[picker]
