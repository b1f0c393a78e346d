"""Diagnose page: the reader commits a read and its confidence before the answer is shown."""

from datetime import UTC, datetime

import streamlit as st

from core.answers.diagnosis import Diagnosis, ReaderRead
from core.models.ensemble import Model
from pages import _shared as shared
from pages._diagnose.intake import commit_read, was_seen
from pages._text import _, class_label, percent, plain


def show_switch() -> None:
    """The switch; it stands before any answer does."""
    shared.outlive_page(shared.READER_FIRST_KEY)
    st.toggle(
        _("First read: hide answers until I commit my own read"),
        key=shared.READER_FIRST_KEY,
        help=_(
            "Answers stay hidden until you commit your own read of a case. Readers who commit "
            "first are less often misled by a wrong answer. Your read is included in the export."
            " Turn this on before you add images: a read of an image whose answer was already "
            "shown is marked as made after it."
        ),
    )


def is_hidden(diagnosis: Diagnosis) -> bool:
    """Whether the answer waits for the reader."""
    is_on = bool(st.session_state.get(shared.READER_FIRST_KEY))
    return is_on and diagnosis.status != "rejected" and diagnosis.reader is None


def has_answer_on_view(diagnosis: Diagnosis) -> bool:
    """Whether the page shows an answer on the case, or that there is none."""
    return diagnosis.status != "rejected" and not is_hidden(diagnosis)


def show_form(model: Model, case_id: str, diagnosis: Diagnosis) -> None:
    """Ask for the read; once committed it stands."""
    is_late = was_seen(model, case_id)
    with st.form(f"diagnose_read_{case_id}_{diagnosis.frame}_{model.class_names}", border=True):
        st.markdown("#### " + _("Your read"))
        if is_late:
            st.caption(
                _(
                    "The answer for this image has already been shown: your read will be marked "
                    "as made after it."
                )
            )
        chosen = st.radio(
            _("What do you see?"),
            list(model.class_names),
            index=None,
            format_func=class_label,
            horizontal=True,
        )
        confidence = st.slider(
            _("How confident are you?"), 50, 100, 75, step=5, format="%d %%", width=320
        )
        is_sent = st.form_submit_button(
            _("Commit and show the answer"), type="primary", icon=":material/lock:"
        )
    if not is_sent:
        return
    if chosen is None:
        st.warning(_("First choose what you see."), icon=":material/warning:")
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    read = ReaderRead(chosen, confidence / 100, now, is_before_answer=not is_late)
    commit_read(model, case_id, read)
    st.rerun()


def show_read(diagnosis: Diagnosis) -> None:
    """What the reader said, beside what the model says."""
    if diagnosis.reader is None:
        return
    read = diagnosis.reader
    if diagnosis.status != "answered":
        verdict = _("the model gives no answer")
    elif read.class_name == diagnosis.predicted_class:
        verdict = _("the model agrees")
    else:
        verdict = _("**the model disagrees**")
    st.markdown(
        ":material/person: "
        + _("Your read: {name}, {share} confident; {verdict}.").format(
            name=f"**{plain(class_label(read.class_name))}**",
            share=percent(read.confidence),
            verdict=verdict,
        )
        + ("" if read.is_before_answer else " " + _("It was made after the answer had been shown."))
    )
