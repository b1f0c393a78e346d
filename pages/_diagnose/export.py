"""Diagnose page: export one case, or the whole worklist.

Files are made when asked for and go to the browser; nothing is written to the server's disk.
Streamlit logs what a download raises, with its message: none here may quote a file's tags.
"""

import functools
import logging
from collections.abc import Callable

import streamlit as st

from core.answers.diagnosis import Diagnosis
from core.answers.scrutiny import Scrutiny
from core.errors import CoreError
from core.export.formats import CASE_FORMATS, WORKLIST_FORMATS, Case
from core.models.ensemble import Model
from pages import _shared as shared
from pages._diagnose.sources import Source
from pages._text import N_, _, describe, ngettext

logger = logging.getLogger(__name__)

_ICON = ":material/download:"
_CASE_WORDS = {
    "pdf": (N_("Report (PDF)"), ":material/picture_as_pdf:"),
    "sc": (N_("Image with heatmap (DICOM SC)"), ":material/image:"),
    "sr": (N_("Structured report (DICOM SR)"), ":material/article:"),
}
_WORKLIST_WORDS = {
    "json": N_("Download all results (JSON)"),
    "csv": N_("Download all results (CSV)"),
}


def show_case_downloads(
    model: Model, diagnosis: Diagnosis, source: Source, scrutiny: Scrutiny | None
) -> None:
    """PDF, Secondary Capture and Structured Report of the case, with the heatmaps on view."""
    if diagnosis.status == "rejected" or diagnosis.pixels is None:
        return
    case = Case(
        model,
        diagnosis,
        scrutiny,
        source[2],
        opacity=st.session_state.get(shared.OPACITY_KEY, 60) / 100,
        has_line=bool(st.session_state.get(shared.CONTOUR_KEY)),
    )
    st.markdown(
        "#### " + _("Export this case"),
        help=_(
            "The DICOM files carry the patient and study identifiers of the uploaded file, if it "
            "was DICOM. The PDF carries none. All three are written in English."
        ),
    )
    sure = _guard(diagnosis)
    with st.container(horizontal=True):
        for key, export in CASE_FORMATS.items():
            label, icon = _CASE_WORDS.get(key, (export.name, _ICON))
            st.download_button(
                _(label),
                sure(functools.partial(export.build, case)),
                export.name_file(diagnosis.file),
                export.mime,
                on_click="ignore",
                icon=icon,
                key=f"diagnose_{key}",
            )


def _guard(diagnosis: Diagnosis) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Let a download fail in words of ours, and say so here when the page is next drawn.

    It runs in a thread without a session: what it needs of one is looked up now.
    """
    case = (diagnosis.file, diagnosis.sha256, diagnosis.frame, diagnosis.created)
    failed: dict[tuple[object, ...], CoreError] = st.session_state.setdefault(
        shared.EXPORT_FAILED_KEY, {}
    )
    for other in failed.keys() - {case}:
        del failed[other]
    if case in failed:
        st.error(describe(failed[case]), icon=":material/error:")
    apology = _(
        "The file could not be created. Choose another format; the server log has the details."
    )

    def sure(make: Callable[[], bytes]) -> Callable[[], bytes]:
        def made() -> bytes:
            try:
                data = make()
            except CoreError as error:
                failed[case] = error.with_traceback(None)
            except Exception as error:  # noqa: BLE001 - logged without its text: it may quote a tag
                logger.error("a download failed: %s", type(error).__name__)
                failed[case] = CoreError(apology, code="export.failed")
            else:
                failed.pop(case, None)
                return data
            raise CoreError(apology, code="export.failed")

        return made

    return sure


def show_downloads(cases: list[Diagnosis], *, n_hidden: int) -> None:
    """The whole worklist; cases whose answer still waits for the reader are left out."""
    if n_hidden:
        st.caption(
            ngettext(
                "{n} case that you have not read yet is left out of the downloads.",
                "{n} cases that you have not read yet are left out of the downloads.",
                n_hidden,
            ).format(n=n_hidden)
        )
    if not cases:
        return
    with st.container(horizontal=True):
        for key, export in WORKLIST_FORMATS.items():
            st.download_button(
                _(_WORKLIST_WORDS.get(key, export.name)),
                functools.partial(export.build, cases),
                export.file_name,
                export.mime,
                on_click="ignore",
                icon=_ICON,
                key=f"diagnose_{key}",
            )
