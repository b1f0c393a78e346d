"""Fine-tune page: what the data are taken for, and how a person changes it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core.data.decisions import Decision
from core.data.options import ROLES, DataOptions, read_options
from core.data.plan import Plan, list_folders, make_plan
from core.errors import CoreError
from pages import _shared as shared
from pages._text import N_, _, describe, plain

_ROLE_WORDS = {
    "": N_("decide by name"),
    "train": N_("training images"),
    "val": N_("validation images"),
    "test": N_("test images"),
    "class": N_("a class"),
    "kind": N_("no patient, a kind or level"),
    "patient": N_("a patient"),
    "masks": N_("masks"),
    "skip": N_("leave out"),
}
_PATIENT_WORDS = {
    "auto": N_("decide by folders, DICOM or file names"),
    "none": N_("unknown: every image by itself"),
    "folder": N_("folders inside the classes"),
    "dicom": N_("DICOM PatientID"),
}
_ICONS = {
    "said": ":material/check:",
    "warning": ":material/warning:",
    "question": ":material/help:",
}


def choose_plan(data: Path) -> Plan | None:
    """Show what the data are taken for and let a person change it; None while that fails."""
    key = f"{shared.FT_OPTIONS_KEY}_{data}"
    for name in ("patients", "masks"):
        shared.outlive_page(f"{key}_{name}")
    with st.container(border=True):
        st.markdown("#### " + _("What these images are taken for"))
        plan = _try_plan(data, _read_options(key))
        if plan is not None:
            _show_decisions(plan)
            _choose_disease(plan, key)
        _choose_more(data, plan, key)
    return plan


def _read_options(key: str) -> DataOptions:
    """The options that the widgets of this data set say."""
    state = st.session_state
    roles: Mapping[str, str] = state.get(f"{key}_roles") or {}
    classes: Mapping[str, str] = state.get(f"{key}_classes") or {}
    raw: dict[str, Any] = {
        "folders": [[name, role] for name, role in roles.items() if role in ROLES],
        "classes": [[found, name] for found, name in classes.items() if name and name != found],
        "patients": state.get(f"{key}_patients") or "auto",
        "mask_files": "none" if state.get(f"{key}_masks") is False else "auto",
    }
    if state.get(f"{key}_said") is not None:
        raw["disease_class"] = state[f"{key}_said"]
    return read_options(raw)


def _try_plan(data: Path, options: DataOptions) -> Plan | None:
    """The plan; an answer that no longer fits is taken back once."""
    try:
        return _make_plan(data, json.dumps(options.to_json(), sort_keys=True))
    except CoreError as error:
        if error.code == "data.disease_class" and options.disease_class is not None:
            st.session_state.pop(f"{shared.FT_OPTIONS_KEY}_{data}_said", None)
            return _try_plan(data, dataclasses.replace(options, disease_class=None))
        st.error(describe(error), icon=":material/block:")
        return None


@st.cache_resource(ttl=60, max_entries=4, show_spinner=False)
def _make_plan(data: Path, options: str) -> Plan:
    return make_plan(data, read_options(json.loads(options)))


@st.cache_data(ttl=60, max_entries=4, show_spinner=False)
def _list_folders(data: Path) -> tuple[str, ...]:
    return list_folders(data)


def forget_plans() -> None:
    """Look at the data again, which may have changed."""
    _make_plan.clear()
    _list_folders.clear()


def _show_decisions(plan: Plan) -> None:
    counts = plan.count()
    st.markdown("  \n".join(f"{_ICONS[one.kind]} {say_decision(one)}" for one in plan.decisions))
    if len(plan.class_names) == 2:
        splits = {"train": _("training"), "val": _("validation"), "test": _("test"), "": ""}
        parts = [
            " ".join([splits[split], " / ".join(f"{plain(c)} {n}" for c, n in found.items())])
            for split, found in counts.items()
        ]
        st.caption(_("Images found: {parts}").format(parts="; ".join(parts)))


def say_decision(decision: Decision) -> str:
    """A decision in the session's language; foreign names are safe for Markdown."""
    params = {name: plain(str(value)) for name, value in decision.params.items()}
    return _(decision.template).format(**params)


def _choose_disease(plan: Plan, key: str) -> None:
    if len(plan.class_names) != 2:
        return
    state = st.session_state
    state[f"{key}_disease"] = plan.disease_class

    def keep() -> None:
        state[f"{key}_said"] = state[f"{key}_disease"]

    st.selectbox(
        _("Which class is the disease?"),
        sorted(plan.class_names),
        index=None,
        placeholder=_("Choose the class that means disease"),
        on_change=keep,
        key=f"{key}_disease",
        help=_("With the wrong class here, every answer of the model would be inverted."),
    )


def _choose_more(data: Path, plan: Plan | None, key: str) -> None:
    with st.expander(
        _("Change how these images are read"), icon=":material/tune:", expanded=plan is None
    ):
        _edit_roles(data, key)
        if plan is not None:
            _edit_classes(plan, key)
        st.selectbox(
            _("Which images are of one patient?"),
            list(_PATIENT_WORDS),
            format_func=lambda name: _(_PATIENT_WORDS[name]),
            key=shared.keep_choice(f"{key}_patients"),
        )
        st.checkbox(
            _("Take files such as x_mask.png for masks of x.png"), value=True, key=f"{key}_masks"
        )


def _edit_roles(data: Path, key: str) -> None:
    """A table of the folders with what each is; the answers are kept by name."""
    try:
        folders = _list_folders(data)
    except CoreError:
        return
    if not folders:
        return
    kept = _start_from(f"{key}_roles")
    words = {role: _(word) for role, word in _ROLE_WORDS.items()}
    table = pd.DataFrame({"folder": folders, "role": [words[kept.get(f, "")] for f in folders]})
    edited = st.data_editor(
        table,
        hide_index=True,
        height=min(300, 38 * (len(folders) + 1)),
        column_config={
            "folder": st.column_config.TextColumn(_("Folder"), disabled=True),
            "role": st.column_config.SelectboxColumn(
                _("What it is"), options=list(words.values()), required=True
            ),
        },
        key=f"{key}_roles_table",
    )
    roles = {word: role for role, word in words.items()}
    new = {f: roles[word] for f, word in zip(edited["folder"], edited["role"], strict=True)}
    _keep(f"{key}_roles", {folder: role for folder, role in new.items() if role})


def _edit_classes(plan: Plan, key: str) -> None:
    """A table of the classes found with the name of each; equal names become one class."""
    kept = _start_from(f"{key}_classes")
    sources = list(plan.source_classes)
    table = pd.DataFrame({"found": sources, "name": [kept.get(s, s) for s in sources]})
    edited = st.data_editor(
        table,
        hide_index=True,
        column_config={
            "found": st.column_config.TextColumn(_("Class found"), disabled=True),
            "name": st.column_config.TextColumn(
                _("Its name"), required=True, help=_("Equal names become one class.")
            ),
        },
        key=f"{key}_classes_table",
    )
    new = dict(zip(edited["found"], edited["name"].str.strip(), strict=True))
    _keep(f"{key}_classes", {found: name for found, name in new.items() if name != found})


def _start_from(key: str) -> dict[str, str]:
    """The answers that a table was first drawn with; it adds its own changes to these."""
    state = st.session_state
    state.setdefault(key, {})
    if f"{key}_table" not in state:
        state[f"{key}_start"] = dict(state[key])
    started: dict[str, str] = state[f"{key}_start"]
    return started


def _keep(key: str, value: dict[str, str]) -> None:
    if st.session_state[key] != value:
        st.session_state[key] = value
        st.rerun()
