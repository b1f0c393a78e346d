"""Diagnose: images in, the answer on each with its evidence out."""

import base64
import hashlib

import pandas as pd
import streamlit as st

from core.diagnosis import Diagnosis
from core.ensemble import Model
from core.image_io import encode_png, thumbnail
from pages import _shared as shared
from pages._diagnose_case import show_case
from pages._diagnose_export import show_downloads
from pages._diagnose_intake import collect_cases, show_intake
from pages._diagnose_reader import is_hidden, show_switch
from pages._diagnose_sources import list_sources
from pages._text import _, class_label, describe_error, percent

_THUMBNAIL_PX = 96


def headline(diagnosis: Diagnosis) -> str:
    """The answer in a few words, for the table and the list of cases."""
    if diagnosis.status == "rejected":
        return _("Not read")
    if is_hidden(diagnosis):
        return _("Waits for your read")
    if diagnosis.abstain_reason == "novel":
        return _("No answer: unfamiliar image")
    if diagnosis.status == "abstained":
        return _("No answer: too close to call")
    return class_label(diagnosis.predicted_class or "").capitalize()


def _reason(diagnosis: Diagnosis) -> str:
    if diagnosis.status == "rejected":
        return describe_error(diagnosis.error_code, diagnosis.error or "", diagnosis.error_params)
    return ""


def _data_url(diagnosis: Diagnosis) -> str | None:
    if diagnosis.pixels is None:
        return None
    png = encode_png(thumbnail(diagnosis.pixels, max_px=_THUMBNAIL_PX))
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _row(diagnosis: Diagnosis) -> dict[str, object]:
    is_hidden_now = is_hidden(diagnosis)
    has_p = diagnosis.status != "rejected" and diagnosis.abstain_reason != "novel"
    p = diagnosis.probabilities.get(diagnosis.disease_class)
    return {
        "image": _data_url(diagnosis),
        "file": diagnosis.file,
        "answer": headline(diagnosis),
        "p": percent(p) if has_p and not is_hidden_now and p is not None else "–",
        "status": "◌ " + _("hidden")
        if is_hidden_now
        else _STATUS_MARKS[diagnosis.status] + " " + _status(diagnosis.status),
        "reason": _reason(diagnosis),
    }


_STATUS_MARKS = {"answered": "●", "abstained": "○", "rejected": "✕"}


def _status(status: str) -> str:
    return {
        "answered": _("answered"),
        "abstained": _("no answer"),
        "rejected": _("rejected"),
    }[status]


def _choose_case(ids: list[str]) -> None:
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


def _show_worklist(cases: dict[str, Diagnosis]) -> None:
    ids = list(cases)
    p_label = _("Probability of {name}").format(
        name=class_label(next(iter(cases.values())).disease_class)
    )
    st.dataframe(
        pd.DataFrame([_row(d) for d in cases.values()]),
        hide_index=True,
        row_height=56,
        height=min(60 + 56 * len(cases), 420),
        key=shared.WORKLIST_KEY,
        on_select=lambda: _take_selected(ids),
        selection_mode="single-row-required",
        alt=_("Table of all images with their answers"),
        placeholder="–",
        column_config={
            "image": st.column_config.ImageColumn(_("Image"), width=70),
            "file": st.column_config.TextColumn(_("File"), width=170),
            "answer": st.column_config.TextColumn(_("Answer"), width=190),
            "p": st.column_config.TextColumn(p_label, width=150, alignment="right"),
            "status": st.column_config.TextColumn(_("Status"), width=110),
            "reason": st.column_config.TextColumn(_("Reason"), width="large"),
        },
    )


def _show_case_picker(cases: dict[str, Diagnosis]) -> None:
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
            _("Case on view"),
            ids,
            format_func=labels.__getitem__,
            key=picker,
            on_change=_take_picked,
            args=(picker,),
            label_visibility="collapsed",
        )


def _take_picked(picker: str) -> None:
    st.session_state[shared.CASE_KEY] = st.session_state[picker]


def main() -> None:
    """The page."""
    model: Model = shared.require_model()
    uploads = show_intake(model)
    cases = collect_cases(model, uploads)
    if not cases:
        st.info(
            _(
                "Upload one or more images. Each answer comes with the training images behind it, "
                "heatmaps and a map."
            ),
            icon=":material/upload_file:",
        )
        return
    show_switch()
    _choose_case(list(cases))
    if len(cases) > 1:
        _show_worklist(cases)
        _show_case_picker(cases)
    case_id = st.session_state[shared.CASE_KEY]
    show_case(model, case_id, cases[case_id], list_sources(uploads)[0][case_id])
    ready = [d for d in cases.values() if not is_hidden(d)]
    show_downloads(ready, n_hidden=len(cases) - len(ready))


main()
