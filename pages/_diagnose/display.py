"""Diagnose page: display controls (frame, window, inversion) and patient tags.

What is set here changes what the model sees: every change is a new reading of the file.
"""

import math

import streamlit as st

from core.answers.diagnosis import Diagnosis
from core.errors import CoreError
from core.export import case_dicom
from core.images.decode import Image
from core.images.text_region import TextRegion
from pages import _shared as shared
from pages._diagnose.intake import AS_STORED, Display, describe_file
from pages._diagnose.sources import Source
from pages._text import _, describe, describe_notice, plain

_CUSTOM = "custom"
_WARNINGS = (  # notices that put the answer in doubt
    "image.object_unknown",
    "image.for_processing",
    "image.tile",
    "image.aspect_ignored",
    "image.aspect_conflict",
    "image.palette_ignored",
)
_TAG_NAMES = {  # DICOM's own keywords, shown as they are
    "PatientName": "Patient's Name",
    "OtherPatientNames": "Other Patient Names",
    "PatientID": "Patient ID",
    "OtherPatientIDs": "Other Patient IDs",
    "PatientBirthDate": "Patient's Birth Date",
    "PatientSex": "Patient's Sex",
    "PatientAddress": "Patient's Address",
    "PatientComments": "Patient Comments",
    "AccessionNumber": "Accession Number",
    "ReferringPhysicianName": "Referring Physician's Name",
    "InstitutionName": "Institution Name",
    "StudyDate": "Study Date",
    "StudyDescription": "Study Description",
    "Modality": "Modality",
}


def show_controls(case_id: str) -> None:
    """Frame, window and inversion, where the file on view has them."""
    file = describe_file(case_id)
    if file is None or not (file.n_frames > 1 or file.value_range or file.is_grey):
        return
    frame, window, invert = st.session_state[shared.DISPLAY_KEY].get(case_id, AS_STORED)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        if file.n_frames > 1:
            frame = _choose_frame(case_id, file, frame)
        if file.value_range:
            window = _choose_window(case_id, file, window)
        if file.is_grey:
            invert = st.toggle(
                _("Invert"),
                value=invert,
                key=f"{shared.INVERT_KEY}_{case_id}",
                help=_("Swaps bright and dark. The model reads the image as displayed."),
            )
    _remember(case_id, (frame, window, invert))


def _remember(case_id: str, wanted: Display) -> None:
    """Read the file again when something was changed."""
    shown: dict[str, Display] = st.session_state[shared.DISPLAY_KEY]
    if shown.get(case_id, AS_STORED) != wanted:
        shown[case_id] = wanted
        st.rerun()


def _choose_frame(case_id: str, file: Image, frame: int) -> int:
    return (
        st.slider(
            _("Frame (1 to {n})").format(n=file.n_frames),
            min_value=1,
            max_value=file.n_frames,
            value=frame + 1,
            key=f"{shared.FRAME_KEY}_{case_id}",
            help=_("This file has several frames. Each is read separately."),
            width=260,
        )
        - 1
    )


def _choose_window(
    case_id: str, file: Image, window: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The file's own windows by name, or any centre and width within its values."""
    names = [str(i) for i in range(len(file.presets))]
    shared.outlive_page(f"{shared.PRESET_KEY}_{case_id}")
    chosen = st.selectbox(
        _("Window"),
        ["", *names, _CUSTOM],
        format_func=lambda name: _name_window(file, name),
        key=shared.keep_choice(f"{shared.PRESET_KEY}_{case_id}"),
        width=230,
        help=_(
            "Which values are shown as black and white. The model reads the image as displayed."
        ),
    )
    if chosen in names:
        preset = file.presets[int(chosen)]
        return preset.centre, preset.width
    if chosen != _CUSTOM:
        return None
    assert file.value_range is not None
    low, high = file.value_range
    span = (high - low) or 1.0
    written, step = _choose_digits(span)
    start = window or file.window or ((low + high) / 2, span)
    centre = st.slider(
        _("Window centre"),
        low - span / 2,
        high + span / 2,
        min(max(start[0], low - span / 2), high + span / 2),
        step=step,
        key=f"{shared.CENTRE_KEY}_{case_id}",
        format=written,
        width=260,
    )
    width = st.slider(
        _("Window width"),
        span / 500,
        2 * span,
        min(max(start[1], span / 500), 2 * span),
        step=step,
        key=f"{shared.WIDTH_KEY}_{case_id}",
        format=written,
        width=260,
    )
    return centre, width


def _choose_digits(span: float) -> tuple[str, float]:
    """How a slider writes a value of a range this wide, three digits at least, and its step."""
    n_digits = max(0, math.ceil(2 - math.log10(span)))
    return f"%.{n_digits}f", min(0.01, span / 1000)


def _name_window(file: Image, name: str) -> str:
    if name == "":
        return {
            "table": _("Lookup table in the file"),
            "window": _("File default"),
        }.get(file.file_display or "", _("Full range"))
    if name == _CUSTOM:
        return _("Custom")
    preset = file.presets[int(name)]
    label = preset.name or _("Window {n}").format(n=int(name) + 1)
    return f"{label} ({preset.centre:g} / {preset.width:g})"


def show_notices(diagnosis: Diagnosis) -> None:
    """How the file was read, where that is not obvious; what may spoil the answer stands out."""
    for notice in diagnosis.notices:
        text = plain(describe_notice(notice))
        if notice.code in _WARNINGS:
            st.warning(text, icon=":material/warning:")
        else:
            st.caption(":material/info: " + text)


def choose_overlay(diagnosis: Diagnosis) -> bool:
    """Whether to draw the file's overlay graphics on the image on view."""
    if diagnosis.overlay is None:
        return False
    return st.toggle(
        _("Show overlays"),
        key=f"{shared.OVERLAY_KEY}_{diagnosis.sha256}_{diagnosis.frame}",
        help=_(
            "Graphics in the file beside the picture, such as marks or text. They are drawn on "
            "this view only: the model never sees them."
        ),
    )


def warn_of_text(diagnosis: Diagnosis) -> None:
    """Say that names may be in the pixels, and where; the generator's own mark is known."""
    if not diagnosis.burned_in:
        return
    places = dict.fromkeys(_place(region) for region in diagnosis.burned_in)
    st.warning(
        _(
            "**This image may contain burned-in text** ({places}). It could be a name or just a "
            "marker: check before you share the image."
        ).format(places=", ".join(places)),
        icon=":material/visibility_lock:",
    )
    st.caption(
        _(
            "Text is detected by the shape and alignment of its letters; it is not read. In a "
            "test on three public data sets, 76 to 99 % of text lines added to images were "
            "found, and 0 to 4 % of untouched images were flagged."
        )
    )


def _place(region: TextRegion) -> str:
    """Where a line of lettering stands, in words."""
    third = min(2, int(3 * (region.top + region.height / 2)))
    side = min(2, int(3 * (region.left + region.width / 2)))
    return (
        (_("upper left"), _("upper edge"), _("upper right")),
        (_("left edge"), _("in the middle"), _("right edge")),
        (_("lower left"), _("lower edge"), _("lower right")),
    )[third][side]


def show_patient_tags(source: Source) -> None:
    """Patient and study tags of a DICOM file, only when asked for."""
    _file, content, read = source
    file: Image | None = st.session_state[shared.FILES_KEY].get(content)
    if file is None or file.format != "DICOM":
        return
    if not st.toggle(
        _("Show patient tags"),
        key=f"{shared.TAGS_KEY}_{content}",
        help=_("Name, ID and dates in this file. They are neither logged nor kept."),
    ):
        return
    try:
        tags = case_dicom.read_patient_tags(read())
    except CoreError as error:
        st.error(describe(error))
        return
    lines = [f"{_TAG_NAMES[tag]}: **{plain(value)}**" for tag, value in tags.items()]
    st.markdown("  \n".join(lines) or _say_what_was_looked_at())


def _say_what_was_looked_at() -> str:
    return _(
        "Empty or absent: {tags}. Other tags, and the image itself, may still identify a patient."
    ).format(tags=", ".join(_TAG_NAMES[tag] for tag in case_dicom.PATIENT_TAGS))
