"""Diagnose page: downloads. One case as PDF and DICOM, all of them as JSON and CSV.

Files are made when asked for and go to the browser; nothing is written to the server's disk.
Streamlit logs what a download raises, with its message: none here may quote a file's tags.
"""

import logging
from collections.abc import Callable
from pathlib import PurePath

import streamlit as st

from core.answers.diagnosis import Diagnosis
from core.answers.scrutiny import Scrutiny
from core.errors import CoreError
from core.explanations.grad_cam import outline, overlay, resize_heatmap
from core.explanations.methods import METHODS
from core.export import case_dicom, case_pdf
from core.export.worklist import dump_json, to_csv
from core.models.ensemble import Model
from pages import _shared as shared
from pages._diagnose.sources import Source
from pages._text import _, describe, ngettext

logger = logging.getLogger(__name__)

_DICOM = "application/dicom"
_PDF = "application/pdf"


def show_case_downloads(
    model: Model, diagnosis: Diagnosis, source: Source, scrutiny: Scrutiny | None
) -> None:
    """PDF, Secondary Capture and Structured Report of the case, with the heatmaps on view."""
    if diagnosis.status == "rejected" or diagnosis.pixels is None:
        return
    stem = PurePath(diagnosis.file).stem or "case"
    pdf_name, sc_name, sr_name = f"{stem}.pdf", f"{stem}-overlay.dcm", f"{stem}-report.dcm"
    opacity = st.session_state.get(shared.OPACITY_KEY, 60) / 100
    has_line = bool(st.session_state.get(shared.CONTOUR_KEY))
    st.markdown(
        "#### " + _("Take this case with you"),
        help=_(
            "The DICOM files carry the patient and study identifiers of the file that you "
            "uploaded, if it was DICOM. The PDF carries none."
        ),
    )
    sure = _guard(diagnosis)
    with st.container(horizontal=True):
        st.download_button(
            _("Report (PDF)"),
            sure(lambda: case_pdf.build_pdf(model, diagnosis, scrutiny=scrutiny, opacity=opacity)),
            pdf_name,
            _PDF,
            on_click="ignore",
            icon=":material/picture_as_pdf:",
            key="diagnose_pdf",
        )
        st.download_button(
            _("Picture with heatmap (DICOM SC)"),
            sure(
                lambda: case_dicom.encode(
                    _capture(diagnosis, source, scrutiny, opacity=opacity, has_line=has_line)
                )
            ),
            sc_name,
            _DICOM,
            on_click="ignore",
            icon=":material/image:",
            key="diagnose_sc",
        )
        st.download_button(
            _("Structured report (DICOM SR)"),
            sure(lambda: _report(diagnosis, source, scrutiny, opacity=opacity, has_line=has_line)),
            sr_name,
            _DICOM,
            on_click="ignore",
            icon=":material/article:",
            key="diagnose_sr",
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
    apology = _("The file could not be made. Choose another kind, or look into the server's log.")

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


def _capture(
    diagnosis: Diagnosis,
    source: Source,
    scrutiny: Scrutiny | None,
    *,
    opacity: float,
    has_line: bool,
) -> "case_dicom.Dataset":
    pictures = {}
    assert diagnosis.pixels is not None
    height, width = diagnosis.pixels.shape[:2]
    if scrutiny is None:
        sheet = case_dicom.lay_out(diagnosis, {})
        return case_dicom.build_secondary_capture(diagnosis, sheet, source=source[2]())
    for heatmap in scrutiny.maps:
        fine = resize_heatmap(heatmap.values, height=height, width=width)
        picture = overlay(diagnosis.pixels, fine, opacity=opacity)
        caption = f"{heatmap.class_name}: {heatmap.backbone}, {METHODS[heatmap.method].name}"
        pictures[caption] = outline(picture, fine) if has_line else picture
    sheet = case_dicom.lay_out(diagnosis, pictures)
    return case_dicom.build_secondary_capture(diagnosis, sheet, source=source[2]())


def _report(
    diagnosis: Diagnosis,
    source: Source,
    scrutiny: Scrutiny | None,
    *,
    opacity: float,
    has_line: bool,
) -> bytes:
    capture = _capture(diagnosis, source, scrutiny, opacity=opacity, has_line=has_line)
    report = case_dicom.build_report(diagnosis, source=source[2](), picture=capture)
    return case_dicom.encode(report)


def show_downloads(cases: list[Diagnosis], *, n_hidden: int) -> None:
    """The whole worklist; cases whose answer still waits for the reader are left out."""
    if n_hidden:
        st.caption(
            ngettext(
                "{n} case that you have not read yet is left out of the files.",
                "{n} cases that you have not read yet are left out of the files.",
                n_hidden,
            ).format(n=n_hidden)
        )
    if not cases:
        return
    with st.container(horizontal=True):
        st.download_button(
            _("Download all results (JSON)"),
            lambda: dump_json(cases),
            "neighbordx.json",
            "application/json",
            on_click="ignore",
            icon=":material/download:",
            key="diagnose_json",
        )
        st.download_button(
            _("Download all results (CSV)"),
            lambda: "\ufeff" + to_csv(cases),
            "neighbordx.csv",
            "text/csv",
            on_click="ignore",
            icon=":material/download:",
            key="diagnose_csv",
        )
