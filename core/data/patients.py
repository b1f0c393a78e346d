"""Find which images are of the same patient when neither folders nor a table say so.

Only kept together, never told apart by it: a wrong group makes a split coarser, not an answer
wrong. Of a DICOM PatientID only a hash leaves this module.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from core.data.decisions import Decision
from core.data.options import PATIENTS, DataOptions, compile_pattern
from core.files.names import show_name
from core.images.quiet import hush

_PATTERNS = (
    r"(?i)(?:^|[^a-z])((?:person|patient|subject|subj|pat|sub|case|pt)[\s_-]?\d+)",
    r"^(\d{8})_\d{3}(?!\d)",  # ChestX-ray14: patient and follow-up
    r"^(TCGA-\w{2}-\w{4})",
    r"(?i)^(p\d+)[_-]",
)
_MAYBE = r"^(.*\d)[_-]\d{1,4}$"  # "IM-0115-0001": perhaps a study and an image
_MIN_GROUPS = 2  # of each class, or no validation could be set apart
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ""})
_N_SNIFFED = 5
_HEADER_ERRORS = (
    *(InvalidDicomError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(NotImplementedError, RuntimeError, MemoryError, RecursionError, IndexError, OverflowError),
)


def find_patients(
    images: Sequence[tuple[Path, str]], options: DataOptions
) -> tuple[list[str], list[Decision]]:
    """Find a group for each image.

    Args:
        images: path and class of each.
        options: ``patients``: auto, dicom or a pattern; others find nothing.

    Returns:
        A group for each image, empty where none was found; what was decided.
    """
    none = [""] * len(images)
    if options.patients in ("none", "folder"):
        return none, []
    paths = [path for path, _class in images]
    if options.patients not in PATIENTS:
        return _read_names(paths, compile_pattern(options.patients))
    if options.patients == "dicom" or _are_dicom(paths):
        groups = _read_patient_ids(paths)
        n = len(set(groups) - {""})
        # one id for all: it was replaced when the files were anonymised
        if n > 1 or (n == 1 and options.patients == "dicom"):
            return groups, [Decision("patients.dicom", {"n": n})]
    if options.patients == "dicom":
        return none, [Decision("patients.none")]
    for pattern in _PATTERNS:
        groups, said = _read_names(paths, re.compile(pattern))
        if _are_usable(groups, [name for _path, name in images]):
            return groups, said
    return none, [_propose(paths)]


def _read_names(
    paths: Sequence[Path], pattern: re.Pattern[str]
) -> tuple[list[str], list[Decision]]:
    found = [pattern.search(path.stem) for path in paths]
    groups = [show_name(match[1] or "") if match else "" for match in found]
    sizes = Counter(group for group in groups if group)
    example = next((f"“{name}”: {n}" for name, n in sizes.most_common(1)), "")
    return groups, [Decision("patients.files", {"n": len(sizes), "example": example})]


def _are_usable(groups: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether names group images at all, and leave enough groups in each class to split."""
    sizes = Counter(group for group in groups if group)
    if not sizes or max(sizes.values()) < 2:
        return False
    by_class: dict[str, set[str]] = {name: set() for name in classes}
    for index, (group, name) in enumerate(zip(groups, classes, strict=True)):
        by_class[name].add(group or f"\0{index}")
    return all(len(found) >= _MIN_GROUPS for found in by_class.values())


def _propose(paths: Sequence[Path]) -> Decision:
    matches = [re.match(_MAYBE, path.stem) for path in paths]
    sizes: Mapping[str, int] = Counter(m[1] for m in matches if m)
    shared = [name for name, n in sizes.items() if n > 1]
    if len(shared) >= 5 and sum(sizes[name] for name in shared) >= len(paths) / 2:
        example = f"“{show_name(min(shared))}”, --patients '{_MAYBE}'"
        return Decision("patients.proposed", {"example": example})
    return Decision("patients.none")


def _are_dicom(paths: Sequence[Path]) -> bool:
    """Whether the files look like DICOM, by a few of them."""
    likely = [path for path in paths if path.suffix.lower() in _DICOM_SUFFIXES]
    if not likely or len(likely) < len(paths) / 2:
        return False
    step = max(1, len(likely) // _N_SNIFFED)
    sniffed = likely[::step][:_N_SNIFFED]
    return sum(_has_preamble(path) for path in sniffed) * 2 > len(sniffed)


def _has_preamble(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False


@hush()
def _read_patient_ids(paths: Sequence[Path]) -> list[str]:
    return [_read_patient_id(path) for path in paths]


def _read_patient_id(path: Path) -> str:
    """A hash of the PatientID and its issuer; empty if there is none."""
    try:
        tags = dcmread(
            path, stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"]
        )
        name = str(tags.get("PatientID") or "").strip()
        issuer = str(tags.get("IssuerOfPatientID") or "").strip()
    except _HEADER_ERRORS:
        return ""
    digest = hashlib.sha256(f"neighbordx\n{issuer}\n{name}".encode("utf-8", "backslashreplace"))
    return f"dicom-{digest.hexdigest()[:12]}" if name else ""
