"""A case as DICOM: a Secondary Capture of the overlay and a Structured Report of the answer.

Owns the conversion of the answer to DICOM objects (highdicom; the report is TID 1500 with one TID
1501 group). Study and patient identifiers are those of the source file if it was DICOM; any other
image gets its own study without a patient. Both objects are marked for research use. Concepts
without a standard code get one in the private scheme 99NBDX.
"""

import copy
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import highdicom as hd
import numpy as np
from highdicom.sr import (
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from core.answers.diagnosis import RESEARCH_USE, Diagnosis
from core.errors import CoreError, ImageError, check_shape
from core.export.case_dicom.sheet import lay_out, say_answer
from core.export.case_dicom.source_tags import (
    PATIENT_TAGS,
    READ_ERRORS,
    complete,
    find_body_part,
    find_laterality,
    is_referable,
    read_patient_tags,
    read_source,
)
from core.images.dicom_grey import find_number
from core.images.quiet import hush

SCHEME = "99NBDX"
MANUFACTURER = "NeighborDx"
_CHARACTERS = "ISO_IR 192"  # UTF-8: class names may be in any script
_REPORT_SERIES, _PICTURE_SERIES = 9001, 9002  # unlike a scanner's own series numbers

__all__ = [
    "PATIENT_TAGS",
    "build_report",
    "build_secondary_capture",
    "encode",
    "lay_out",
    "read_patient_tags",
    "say_answer",
]


@contextmanager
def _hide_tag_values() -> Iterator[None]:
    """Replace library errors, which may quote the source's tags, with an ImageError."""
    try:
        with hush():
            yield
    except CoreError:
        raise
    except READ_ERRORS as err:
        raise ImageError(
            f"the tags of the source cannot be carried into a DICOM object ({type(err).__name__}). "
            "Export the image again from the archive, or take the PDF.",
            code="export.tags",
            params={"reason": type(err).__name__},
        ) from None


@_hide_tag_values()
def build_secondary_capture(
    diagnosis: Diagnosis, picture: NDArray[np.uint8], *, source: bytes | None = None
) -> Dataset:
    """Build a Secondary Capture of the overlay, in its own series in the source's study.

    Args:
        diagnosis: the case.
        picture: (H, W, 3) uint8 RGB to store; must include the research notice.
        source: the original file, DICOM or not.

    Raises:
        ShapeError: not a colour image.
        ImageError: the source's tags cannot be copied.
    """
    check_shape("picture", picture, (None, None, 3))
    reference = _read_reference(diagnosis, source)
    now = datetime.fromisoformat(diagnosis.created)
    drawn = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()
    capture = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=reference,
        pixel_array=np.ascontiguousarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=_name(diagnosis, "picture series"),
        sop_instance_uid=_name(diagnosis, f"picture {drawn}"),
        series_number=_PICTURE_SERIES,
        instance_number=1,
        manufacturer=MANUFACTURER,
        specific_character_set=_CHARACTERS,
    )
    capture.PatientOrientation = None  # the displayed image may be in any orientation
    _state_side(capture, reference)
    capture.SeriesDescription = _cut(f"NeighborDx overlay. {RESEARCH_USE}", 64)
    capture.ImageComments = f"{say_answer(diagnosis)}. Model {diagnosis.model_name}. {RESEARCH_USE}"
    capture.BurnedInAnnotation = "YES"
    capture.SoftwareVersions = _cut(diagnosis.software, 64) or None
    what = "The image alone" if diagnosis.abstain_reason == "novel" else "Heatmap over the image"
    capture.DerivationDescription = _cut(f"{what}, {now:%Y-%m-%d}", 1024)
    return capture


def _state_side(capture: Dataset, reference: Dataset) -> None:
    """State body part and side as the source does.

    The side goes into the image's own tag, empty if it is unknown: the series' Laterality is then
    not allowed, and without either it would be required of every part that is not known unpaired.
    """
    if "Laterality" in capture:
        del capture.Laterality
    body_part = find_body_part(reference)
    if body_part:
        capture.BodyPartExamined = body_part
    capture.ImageLaterality = find_laterality(reference)


@_hide_tag_values()
def build_report(
    diagnosis: Diagnosis, *, source: bytes | None = None, picture: Dataset | None = None
) -> Dataset:
    """Build a Structured Report (TID 1500) of the answer, referring to the source image.

    Args:
        diagnosis: an answered or abstained case.
        source: the original file.
        picture: the Secondary Capture, which is reported on instead if the source is not DICOM
            or not of a standard kind.

    Raises:
        ImageError: the case was rejected, there is no DICOM image to report on, or the source's
            tags cannot be copied.
    """
    if diagnosis.status == "rejected":
        raise ImageError(
            "a file that was not read has no answer to report; choose another case.",
            code="export.rejected",
        )
    header = read_source(source) if source else None
    is_usable = header is not None and is_referable(header)
    for evidence in (complete(header) if header is not None and is_usable else None, picture):
        with suppress(KeyError):  # a private or retired SOP class, unknown to highdicom
            if evidence is not None:
                return _write_report(diagnosis, evidence)
    raise ImageError(
        "a report needs a DICOM image to refer to; make the Secondary Capture first.",
        code="export.no_image",
    )


def _write_report(diagnosis: Diagnosis, evidence: Dataset) -> ComprehensiveSR:
    content = MeasurementReport(
        observation_context=_build_observer(diagnosis),
        procedure_reported=CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=[_build_group(diagnosis, evidence, frame=diagnosis.frame)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = ComprehensiveSR(
        evidence=[evidence],
        content=content[0],
        series_instance_uid=_name(diagnosis, "report series"),
        series_number=_REPORT_SERIES,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_cut(diagnosis.model_id, 64),
        is_complete=False,
        is_final=False,
        is_verified=False,
        series_description=_cut(f"NeighborDx answer. {RESEARCH_USE}", 64),
        specific_character_set=_CHARACTERS,
    )
    report.SoftwareVersions = _cut(diagnosis.software, 64) or None
    return report


@_hide_tag_values()
def encode(dataset: Dataset) -> bytes:
    """Encode a DICOM object as file bytes, with text in UTF-8."""
    written = copy.deepcopy(dataset)
    written.SpecificCharacterSet = _CHARACTERS
    buffer = io.BytesIO()
    written.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _build_observer(diagnosis: Diagnosis) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[diagnosis.model_id, diagnosis.data_id]),
        name=_cut(f"NeighborDx {diagnosis.model_id}", 64),
        manufacturer_name=MANUFACTURER,
        model_name=_cut(diagnosis.model_id, 64),
        serial_number=_cut(diagnosis.data_id, 64),
    )
    context = ObserverContext(
        observer_type=codes.DCM.Device, observer_identifying_attributes=device
    )
    return ObservationContext(observer_device_context=context)


def _build_group(
    diagnosis: Diagnosis, evidence: Dataset, *, frame: int
) -> MeasurementsAndQualitativeEvaluations:
    is_multi = (find_number(evidence, "NumberOfFrames") or 1) > 1
    image = SourceImageForMeasurementGroup(
        referenced_sop_class_uid=evidence.SOPClassUID,
        referenced_sop_instance_uid=evidence.SOPInstanceUID,
        referenced_frame_numbers=[frame + 1] if is_multi else None,
    )
    stated = [
        ("Answer of the model", say_answer(diagnosis)),
        ("Model", diagnosis.model_id),
        ("Training data", diagnosis.data_id),
        *([("Software version", diagnosis.software)] if diagnosis.software else []),
        ("Intended use", RESEARCH_USE),
    ]
    measured: list[tuple[str, float]] = []
    if diagnosis.abstain_reason != "novel":
        measured += [
            (f"Calibrated probability of {name}", 100.0 * p)
            for name, p in diagnosis.probabilities.items()
        ]
    if diagnosis.novelty is not None:
        measured.append(("Novelty percentile", diagnosis.novelty.distance_percentile))
    if diagnosis.reader is not None:
        when = "before" if diagnosis.reader.is_before_answer else "after"
        stated.append((f"Read of the reader {when} the answer", diagnosis.reader.class_name))
        measured.append(("Confidence of the reader", 100.0 * diagnosis.reader.confidence))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier="NeighborDx answer"),
        source_images=[image],
        measurements=[
            Measurement(name=_code(name), value=round(value, 3), unit=codes.UCUM.Percent)
            for name, value in measured
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(name=_code(name), value=_code(value)) for name, value in stated
        ],
    )


def _code(meaning: str) -> CodedConcept:
    """Build a private code from the start of the meaning and a hash of the whole meaning.

    The code is the same in every file, and different meanings have different codes.
    """
    short = "".join(c if c.isascii() and c.isalnum() else "_" for c in meaning).upper()
    digest = hashlib.sha256(meaning.encode()).hexdigest().upper()
    return CodedConcept(
        value=f"{short[:7]}_{digest[:8]}",  # at most 16 characters (VR SH)
        scheme_designator=SCHEME,
        meaning=_cut(meaning, 64),
    )


def _name(diagnosis: Diagnosis, kind: str) -> str:
    """A UID, deterministic for a kind of object, a file and its diagnosis."""
    shown = f"{diagnosis.frame}:{diagnosis.window}:{diagnosis.is_inverted}"
    parts = (diagnosis.file, diagnosis.sha256, shown, diagnosis.created, diagnosis.model_id, kind)
    return str(generate_uid(entropy_srcs=["\n".join(parts)]))


def _read_reference(diagnosis: Diagnosis, source: bytes | None) -> Dataset:
    """The source's header, its patient included; UIDs that it lacks are replaced by own ones."""
    header = read_source(source) if source else None
    reference = Dataset() if header is None else header
    for tag, value in (
        ("StudyInstanceUID", _name(diagnosis, "study")),
        ("SeriesInstanceUID", _name(diagnosis, "series")),
        ("SOPInstanceUID", _name(diagnosis, "image")),
        ("SOPClassUID", SecondaryCaptureImageStorage),
    ):
        if not reference.get(tag):
            setattr(reference, tag, value)
    return complete(reference)


def _cut(text: str, n: int) -> str:
    """Text for a DICOM value of at most ``n`` characters: no control sign, no value separator."""
    shown = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return shown if len(shown) <= n else shown[: n - 1] + "…"
