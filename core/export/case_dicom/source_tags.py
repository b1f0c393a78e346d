"""The source file's DICOM header, and which of its tags a derived object copies.

Owns reading patient and study tags, and repairing or emptying those whose values violate the
standard: archives have many of them, and highdicom rejects them with the value in its message.
"""

import datetime
import io
import re

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.valuerep import TM

from core.images.dicom import is_dicom
from core.images.quiet import hush

READ_ERRORS = (
    InvalidDicomError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    OverflowError,
)
PATIENT_TAGS = (
    "PatientName",
    "OtherPatientNames",
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "PatientSex",
    "PatientAddress",
    "PatientComments",
    "AccessionNumber",
    "ReferringPhysicianName",
    "InstitutionName",
    "StudyDate",
    "StudyDescription",
    "Modality",
)
_NAMES = ("PatientName", "ReferringPhysicianName")
_DATES = ("PatientBirthDate", "StudyDate")
_TEXTS = ("PatientID", "AccessionNumber", "StudyID")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_SEXES = ("M", "F", "O")
_SIDES = ("R", "L", "B", "U")
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA


@hush()
def read_patient_tags(data: bytes) -> dict[str, str]:
    """Read the file's patient and study tags: keyword -> text, without empty ones.

    Only for a reader who asks; nothing else in the program reads them. Even if all PATIENT_TAGS are
    empty, the file may still identify a patient.
    """
    header = _read_header(data)
    if header is None:
        return {}
    found = {tag: header.get(tag) for tag in PATIENT_TAGS}
    return {tag: _write(value) for tag, value in found.items() if value and _write(value)}


def _write(value: object) -> str:
    several = value if isinstance(value, MultiValue) else [value]
    return ", ".join(text for text in (str(v).strip() for v in several) if text)


@hush()
def read_source(data: bytes) -> Dataset | None:
    """Read the header of a DICOM file; None for any other file."""
    return _read_header(data)


def is_referable(header: Dataset) -> bool:
    """Whether another object can refer to this one: it states its class and its three UIDs."""
    return all(header.get(tag) for tag in _UIDS)


def _read_header(data: bytes) -> Dataset | None:
    """Read everything before the pixels, as Unicode; invalid elements are dropped."""
    if not is_dicom(data):
        return None
    try:
        header = dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    except READ_ERRORS:
        return None
    for tag in list(header.keys()):
        try:
            value = header[tag].value
            for item in value if header[tag].VR == "SQ" else ():
                list(item.iterall())
        except READ_ERRORS:
            del header[tag]
    return header


@hush()
def complete(header: Dataset) -> Dataset:
    """Copy the header with all type 2 tags of patient and study, conformant or empty."""
    done = Dataset()
    done.update(header)
    for tag in _NAMES:
        value = done.get(tag)
        first = value[0] if isinstance(value, MultiValue) and value else value
        setattr(done, tag, str(first) if first else None)
    for tag in _DATES:
        setattr(done, tag, _mend_date(_find_text(done, tag)))
    done.StudyTime = _mend_time(_find_text(done, "StudyTime"))
    sex = _find_text(done, "PatientSex").upper()
    done.PatientSex = sex if sex in _SEXES else None
    for tag in _TEXTS:
        if tag not in done:
            setattr(done, tag, None)
    return done


@hush()
def find_body_part(header: Dataset) -> str | None:
    """The body part examined, as a conformant code string; None if it is not stated as one."""
    text = _find_text(header, "BodyPartExamined").upper()
    return text if _CODE_STRING.fullmatch(text) else None


@hush()
def find_laterality(header: Dataset) -> str | None:
    """The side of the image, or of its series: R, L, B (both) or U (unpaired); None if unknown."""
    for tag in ("ImageLaterality", "Laterality"):
        side = _find_text(header, tag).upper()
        if side in _SIDES:
            return side
    return None


def _find_text(header: Dataset, tag: str) -> str:
    """A tag's value; empty if it has several, which these tags must not."""
    value = header.get(tag)
    return "" if value is None or isinstance(value, MultiValue) else str(value).strip()


def _mend_date(text: str) -> str | None:
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    try:
        datetime.date(*(int(part) for part in found.groups()))
    except ValueError:
        return None
    return "".join(found.groups())


def _mend_time(text: str) -> str | None:
    digits = text.replace(":", "")  # with colons: ACR-NEMA
    try:
        return digits if digits and TM(digits) is not None else None
    except ValueError:
        return None
