"""Evaluate page: the report as HTML and PDF."""

import streamlit as st

from core.assessment.record import Evaluation
from core.config import Settings
from core.export import evaluation_report
from pages._text import _, moment

_REPORT_KEY = "evaluate_report"  # (token, html, pdf) of the last one written


def show_report(evaluation: Evaluation) -> None:
    """One press writes the report; it is then offered in both forms."""
    st.markdown(
        _(
            "The report contains the model card, all figures with their intervals, images with "
            "wrong answers and the limitations, in the order of the CLAIM checklist (2024), with"
            " the items it covers and those you must add. It is in English only."
        )
    )
    token = f"{evaluation.model_id}/{evaluation.name}/{evaluation.created}"
    if st.button(
        _("Create the report"), type="primary", icon=":material/description:", key="evaluate_write"
    ):
        with st.spinner(_("Creating the report …")):
            content = evaluation_report.build_report(
                Settings.from_env().checkpoints_dir, evaluation.model_id, evaluation.name
            )
            st.session_state[_REPORT_KEY] = (
                token,
                evaluation_report.to_html(content),
                evaluation_report.to_pdf(content),
            )
    written = st.session_state.get(_REPORT_KEY)
    if written is None or written[0] != token:
        return
    st.caption(_("Evaluated {when} UTC.").format(when=moment(evaluation.created)))
    with st.container(horizontal=True):
        for data, suffix, mime, label in (
            (written[1], "html", "text/html", _("Download as HTML")),
            (written[2], "pdf", "application/pdf", _("Download as PDF")),
        ):
            st.download_button(
                label,
                data,
                f"{evaluation.model_id}-{evaluation.name}.{suffix}",
                mime,
                on_click="ignore",
                icon=":material/download:",
                key=f"evaluate_{suffix}",
            )
