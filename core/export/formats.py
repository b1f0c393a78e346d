"""The table of export formats, used by the page and the command line.

To add one, write its builder in a module of this package and add it to ``CASE_FORMATS`` (one case
with its evidence) or ``WORKLIST_FORMATS`` (all answers of a session).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pydicom.dataset import Dataset

from core.answers.diagnosis import Diagnosis
from core.answers.scrutiny import Scrutiny
from core.explanations.grad_cam import outline, overlay, resize_heatmap
from core.explanations.methods import METHODS
from core.export import case_dicom, case_pdf
from core.export.worklist import dump_json, to_csv
from core.models.ensemble import Model


@dataclass(frozen=True)
class Case:
    """The inputs of a case export."""

    model: Model
    diagnosis: Diagnosis  # with pixels
    scrutiny: Scrutiny | None  # the tested heatmaps to show; None: the answer's own, or none
    source: Callable[[], bytes | None]  # the original file
    opacity: float = 0.6  # of the heatmaps, 0..1
    has_line: bool = False  # whether to draw a contour around the bright areas


@dataclass(frozen=True)
class CaseFormat:
    """One case as a file."""

    name: str  # if there is no translation
    suffix: str  # appended to the name of the image
    mime: str
    build: Callable[[Case], bytes]

    def name_file(self, file: str) -> str:
        """The export's file name for an image of that name."""
        return f"{PurePath(file).stem or 'case'}{self.suffix}"


@dataclass(frozen=True)
class WorklistFormat:
    """All answers as a text file."""

    name: str
    file_name: str
    mime: str
    build: Callable[[Sequence[Diagnosis]], str]


def _build_pdf(case: Case) -> bytes:
    return case_pdf.build_pdf(
        case.model, case.diagnosis, scrutiny=case.scrutiny, opacity=case.opacity
    )


def _build_capture(case: Case) -> bytes:
    return case_dicom.encode(_capture(case, case.source()))


def _build_report(case: Case) -> bytes:
    source = case.source()
    capture = _capture(case, source)
    return case_dicom.encode(
        case_dicom.build_report(case.diagnosis, source=source, picture=capture)
    )


def _capture(case: Case, source: bytes | None) -> Dataset:
    """The image and its tested heatmaps on one sheet, as a Secondary Capture."""
    pixels = case.diagnosis.pixels
    assert pixels is not None
    height, width = pixels.shape[:2]
    pictures = {}
    for heatmap in case.scrutiny.maps if case.scrutiny else ():
        fine = resize_heatmap(heatmap.values, height=height, width=width)
        picture = overlay(pixels, fine, opacity=case.opacity)
        caption = f"{heatmap.class_name}: {heatmap.backbone}, {METHODS[heatmap.method].name}"
        pictures[caption] = outline(picture, fine) if case.has_line else picture
    sheet = case_dicom.lay_out(case.diagnosis, pictures)
    return case_dicom.build_secondary_capture(case.diagnosis, sheet, source=source)


CASE_FORMATS: Mapping[str, CaseFormat] = {
    "pdf": CaseFormat("Report (PDF)", ".pdf", "application/pdf", _build_pdf),
    "sc": CaseFormat(
        "Image with heatmap (DICOM SC)", "-overlay.dcm", "application/dicom", _build_capture
    ),
    "sr": CaseFormat(
        "Structured report (DICOM SR)", "-report.dcm", "application/dicom", _build_report
    ),
}
WORKLIST_FORMATS: Mapping[str, WorklistFormat] = {
    "json": WorklistFormat("All results (JSON)", "neighbordx.json", "application/json", dump_json),
    "csv": WorklistFormat(
        "All results (CSV)",
        "neighbordx.csv",
        "text/csv",
        lambda cases: "\ufeff" + to_csv(cases),  # spreadsheets detect UTF-8 by the BOM
    ),
}
