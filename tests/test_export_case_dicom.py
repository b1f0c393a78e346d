"""SC and SR read back: they contain the answer, keep the source's identifiers, pass a validator."""

import dataclasses
import io
import shutil
import subprocess
import traceback
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from core.answers.diagnosis import RESEARCH_USE, Diagnosis, Novelty, ReaderRead
from core.errors import ImageError
from core.export.case_dicom import (
    PATIENT_TAGS,
    build_report,
    build_secondary_capture,
    encode,
    lay_out,
    read_patient_tags,
)
from core.export.case_dicom.sheet import _load_font, _spell, _wrap, _write_head
from core.images.decode import decode
from core.images.quiet import hush

CASE = Diagnosis(
    file="a.dcm",
    status="answered",
    model_id="cxr",
    data_id="0123456789ab",
    created="2026-11-24T22:00:00+00:00",
    software="0.2.0 (commit 1a2b3c4)",
    disease_class="pneumonia",
    predicted_class="pneumonia",
    probabilities={"normal": 0.125, "pneumonia": 0.875},
    novelty=Novelty(42.0, False),
    reader=ReaderRead("normal", 0.7, "2026-11-24T21:59:00+00:00"),
)
PICTURE = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)


@pytest.fixture(scope="module")
def source() -> bytes:
    path = get_testdata_file("CT_small.dcm")
    assert path is not None
    return Path(str(path)).read_bytes()


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def read_values(report: pydicom.Dataset) -> dict[str, str]:
    """Read the report's group with highdicom."""
    content = hd.sr.srread(io.BytesIO(encode(report))).content
    (group,) = content.get_image_measurement_groups()
    stated = {q.name.meaning: q.value.meaning for q in group.get_qualitative_evaluations()}
    return stated | {m.name.meaning: str(m.value) for m in group.get_measurements()}


def test_the_report_holds_the_answer_and_the_sources_identifiers(source: bytes) -> None:
    report = read(encode(build_report(CASE, source=source)))
    original = read(source)
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert report.get(tag) == original.get(tag), tag
    values = read_values(report)
    assert values["Answer of the model"] == "Answer: pneumonia"
    assert float(values["Calibrated probability of pneumonia"]) == 87.5
    assert float(values["Novelty percentile"]) == 42.0
    assert values["Read of the reader before the answer"] == "normal"
    assert values["Intended use"].startswith("Research use")
    assert (values["Model"], values["Training data"]) == ("cxr", "0123456789ab")
    assert report.CompletionFlag == "PARTIAL"
    assert report.VerificationFlag == "UNVERIFIED"
    parsed = hd.sr.srread(io.BytesIO(encode(report)))
    groups = parsed.content.get_image_measurement_groups()
    assert len(groups) == 1
    numbers = {m.name.meaning: m.value for m in groups[0].get_measurements()}
    assert numbers["Calibrated probability of pneumonia"] == 87.5
    (image,) = groups[0].source_images
    assert image.referenced_sop_instance_uid == original.SOPInstanceUID


def test_a_read_after_the_answer_is_reported_as_that(source: bytes) -> None:
    late = dataclasses.replace(CASE.reader, is_before_answer=False)
    values = read_values(build_report(dataclasses.replace(CASE, reader=late), source=source))
    assert values["Read of the reader after the answer"] == "normal"
    assert "Read of the reader before the answer" not in values


def test_every_meaning_has_a_code_value_of_its_own_the_same_in_every_file(source: bytes) -> None:
    def read_codes(case: Diagnosis) -> dict[str, str]:
        report = build_report(case, source=source)
        group = hd.sr.srread(io.BytesIO(encode(report))).content.get_image_measurement_groups()[0]
        said = [*group.get_measurements(), *group.get_qualitative_evaluations()]
        names = [item.name for item in said]
        return {name.meaning: name.value for name in names}

    codes = read_codes(CASE)
    assert len(set(codes.values())) == len(codes)
    assert max(map(len, codes.values())) <= 16
    assert read_codes(dataclasses.replace(CASE, file="b.dcm")) == codes
    alike = dataclasses.replace(CASE, probabilities={"läsion": 0.5, "Läsion": 0.5})
    assert len(set(read_codes(alike).values())) == len(codes)


def test_names_in_any_letters_come_back(source: bytes) -> None:
    original = read(source)
    original.SpecificCharacterSet = "GB18030"
    original.PatientName = "Wang^XiaoDong=王^小东"
    foreign = encode_as_it_is(original)
    case = dataclasses.replace(
        CASE, predicted_class="病变", probabilities={"正常": 0.125, "病变": 0.875}
    )
    for made in (
        build_report(case, source=foreign),
        build_secondary_capture(case, PICTURE, source=foreign),
    ):
        again = read(encode(made))
        assert str(again.PatientName) == "Wang^XiaoDong=王^小东"
        assert "病变" in str(again.get("ImageComments", again))


def encode_as_it_is(dataset: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_the_picture_is_in_the_sources_study(source: bytes) -> None:
    capture = read(encode(build_secondary_capture(CASE, PICTURE, source=source)))
    original = read(source)
    assert capture.StudyInstanceUID == original.StudyInstanceUID
    assert capture.SeriesInstanceUID != original.SeriesInstanceUID
    assert capture.PatientID == original.PatientID
    np.testing.assert_array_equal(capture.pixel_array, PICTURE)
    assert "Answer: pneumonia" in capture.ImageComments
    assert "Research use" in capture.SeriesDescription
    assert capture.Modality == "OT"


def test_a_picture_gets_a_study_of_its_own_without_a_patient() -> None:
    capture = build_secondary_capture(CASE, PICTURE, source=b"\x89PNG")
    report = read(encode(build_report(CASE, source=b"\x89PNG", picture=capture)))
    assert report.StudyInstanceUID == capture.StudyInstanceUID
    assert not report.PatientID
    assert not report.PatientName
    with pytest.raises(ImageError, match="needs a DICOM image"):
        build_report(CASE, source=b"\x89PNG")


@pytest.mark.parametrize(
    "other",
    [{"sha256": "b" * 64}, {"frame": 1}, {"window": (40.0, 400.0)}, {"is_inverted": True}],
    ids=lambda change: next(iter(change)),
)
def test_another_file_or_reading_of_the_same_name_and_second_has_other_uids(
    other: dict[str, object],
) -> None:
    case = dataclasses.replace(CASE, file="IM0001", sha256="a" * 64)
    one = build_secondary_capture(case, PICTURE)
    two = build_secondary_capture(dataclasses.replace(case, **other), PICTURE)
    for tag in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert one[tag].value != two[tag].value, tag
    drawn_anew = build_secondary_capture(case, 255 - PICTURE)
    assert drawn_anew.StudyInstanceUID == one.StudyInstanceUID
    assert drawn_anew.SOPInstanceUID != one.SOPInstanceUID


def test_a_frame_is_referred_to_by_its_number() -> None:
    path = get_testdata_file("rtdose.dcm")
    assert path is not None
    data = Path(str(path)).read_bytes()
    report = build_report(dataclasses.replace(CASE, frame=2), source=data)
    group = hd.sr.srread(io.BytesIO(encode(report))).content.get_image_measurement_groups()[0]
    assert group.source_images[0].referenced_frame_numbers == [3]


def test_no_answer_is_said_and_gives_no_probability(source: bytes) -> None:
    novel = dataclasses.replace(CASE, status="abstained", abstain_reason="novel")
    values = read_values(build_report(novel, source=source))
    assert values["Answer of the model"].startswith("No answer: not the kind")
    assert not any("probability" in name for name in values)
    rejected = dataclasses.replace(CASE, status="rejected")
    with pytest.raises(ImageError, match="was not read"):
        build_report(rejected, source=source)


def test_patient_tags_are_read_only_on_request(source: bytes) -> None:
    tags = read_patient_tags(source)
    assert tags["PatientID"] == "1CT1"
    assert read_patient_tags(b"\x89PNG") == {}


def test_patient_tags_are_found_in_a_file_that_cannot_be_referred_to(source: bytes) -> None:
    original = read(source)
    for tag in PATIENT_TAGS:
        original[tag] = pydicom.DataElement(tag, pydicom.datadict.dictionary_VR(tag), None)
    del original.SeriesInstanceUID
    assert read_patient_tags(encode_as_it_is(original)) == {}
    original.OtherPatientIDs = ["12", "345"]
    original.PatientAddress = "1 Main St"
    original.ReferringPhysicianName = "Doc^A"
    assert read_patient_tags(encode_as_it_is(original)) == {
        "OtherPatientIDs": "12, 345",
        "PatientAddress": "1 Main St",
        "ReferringPhysicianName": "Doc^A",
    }


def capture_of(source: bytes, stated: dict[str, object]) -> bytes:
    """The Secondary Capture of a source with these tags."""
    with hush():
        original = read(source)
        for tag, value in stated.items():
            setattr(original, tag, value)
        data = encode_as_it_is(original)
    return encode(build_secondary_capture(CASE, PICTURE, source=data))


SIDES = {
    "nothing stated": ({}, (None, "")),
    "unpaired": ({"BodyPartExamined": "CHEST"}, ("CHEST", "")),
    "side of the series": (
        {"BodyPartExamined": "BREAST", "Laterality": "L"},
        ("BREAST", "L"),
    ),
    "side of the image": (
        {"BodyPartExamined": "BREAST", "ImageLaterality": "R", "Laterality": ""},
        ("BREAST", "R"),
    ),
    "paired, side unknown": ({"BodyPartExamined": "KNEE"}, ("KNEE", "")),
    "against the standard": ({"BodyPartExamined": "Chest", "Laterality": "left"}, ("CHEST", "")),
    "more than one": ({"BodyPartExamined": ["CHEST", "HEAD"]}, (None, "")),
}


@pytest.mark.parametrize(("stated", "expected"), SIDES.values(), ids=SIDES)
def test_body_part_and_side_are_the_sources(
    source: bytes, stated: dict[str, object], expected: tuple[str | None, str]
) -> None:
    capture = read(capture_of(source, stated))
    assert (capture.get("BodyPartExamined"), capture.ImageLaterality or "") == expected
    assert "Laterality" not in capture


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("stated", [stated for stated, _ in SIDES.values()], ids=SIDES)
def test_a_validator_has_not_even_a_warning_on_body_part_and_side(
    source: bytes, stated: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "sc.dcm"
    path.write_bytes(capture_of(source, stated))
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in run.stderr.splitlines() if line[:5] in ("Error", "Warni")] == []


@pytest.mark.parametrize(
    "missing", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_a_source_that_cannot_be_referred_to_keeps_its_patient(source: bytes, missing: str) -> None:
    original = read(source)
    del original[missing]
    data = encode_as_it_is(original)
    capture = build_secondary_capture(CASE, PICTURE, source=data)
    report = read(encode(build_report(CASE, source=data, picture=capture)))
    for made in (read(encode(capture)), report):
        assert (made.PatientID, made.PatientName) == (original.PatientID, original.PatientName)
        assert made.StudyInstanceUID
        if missing != "StudyInstanceUID":
            assert made.StudyInstanceUID == original.StudyInstanceUID
    group = hd.sr.srread(io.BytesIO(encode(report))).content.get_image_measurement_groups()[0]
    assert group.source_images[0].referenced_sop_instance_uid == capture.SOPInstanceUID
    (notice,) = [n for n in decode(data).notices if n.code == "image.no_reference"]
    assert notice.params == {"tags": missing}
    with pytest.raises(ImageError, match="needs a DICOM image"):
        build_report(CASE, source=data)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_a_validator_finds_no_error(source: bytes, tmp_path: Path) -> None:
    capture = build_secondary_capture(CASE, PICTURE, source=None)
    files = {
        "sc.dcm": capture,
        "sr.dcm": build_report(CASE, picture=capture),
        "sc-of-source.dcm": build_secondary_capture(CASE, PICTURE, source=source),
        "sr-of-source.dcm": build_report(CASE, source=source),
    }
    for name, dataset in files.items():
        path = tmp_path / name
        path.write_bytes(encode(dataset))
        run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in run.stderr.splitlines() if line.startswith("Error")]
        assert errors == [], name


def test_the_objects_say_which_version_answered_where_it_is_known(source: bytes) -> None:
    unknown = dataclasses.replace(CASE, software="")
    for build in (
        lambda case: build_secondary_capture(case, PICTURE, source=source),
        lambda case: build_report(case, source=source),
    ):
        assert read(encode(build(CASE))).SoftwareVersions == "0.2.0 (commit 1a2b3c4)"
        assert not read(encode(build(unknown))).SoftwareVersions
    stated = str(read(encode(build_report(CASE, source=source))).ContentSequence)
    assert "0.2.0 (commit 1a2b3c4)" in stated
    assert "Software version" not in str(
        read(encode(build_report(unknown, source=source))).ContentSequence
    )


def test_the_sheet_keeps_the_overlays_pixels_and_is_stored_whole(source: bytes) -> None:
    shown = dataclasses.replace(CASE, pixels=PICTURE)
    overlays = {"a": PICTURE, "b": 255 - PICTURE}
    sheet = lay_out(shown, overlays)
    height, width = PICTURE.shape[:2]
    side = sheet.shape[1] // 2
    np.testing.assert_array_equal(sheet[-height:, :width], PICTURE)
    np.testing.assert_array_equal(sheet[-height:, side : side + width], 255 - PICTURE)
    assert sheet[:-height].max() > 200  # the answer is written above
    capture = read(encode(build_secondary_capture(shown, sheet, source=source)))
    np.testing.assert_array_equal(capture.pixel_array, sheet)
    again = build_secondary_capture(shown, sheet, source=source)
    assert again.SOPInstanceUID == capture.SOPInstanceUID  # a report can refer to its image


LONG = dataclasses.replace(
    CASE,
    model_id="kermany-chest-offline-robust-seed0-2026-11-20-metric-ensemble-v2",
    data_id="0123456789abcdef+fedcba9876543210",
    pixels=np.zeros((60, 300, 3), np.uint8),
)


def test_no_line_of_the_sheet_is_cut_off_and_captions_stay_apart() -> None:
    black = np.zeros((60, 300, 3), np.uint8)
    seen_by = "vit_large_patch16_224.augreg_in21k_ft_in1k, integrated gradients of the vote"
    captions = {f"pneumonia: {seen_by}": black, f"normal: {seen_by}": black}
    font = _load_font(18)
    for text in (*_write_head(LONG, font), *captions):
        lines = _wrap(text, font, width=430)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert max(font.getlength(line) for line in lines) <= 430
    assert _write_head(LONG, font)[0] == RESEARCH_USE  # on its own line, never after a long one
    sheet = lay_out(LONG, captions).astype(int)
    side = sheet.shape[1] // 2
    assert sheet[:, -4:].max() == 0
    is_caption = sheet[:, :, 0] > sheet[:, :, 2] + 20  # orange
    assert is_caption[:, :side].any()
    assert not is_caption[:, side - 4 : side].any(), "a caption runs into the next"


def test_class_names_that_the_font_lacks_are_told_by_number() -> None:
    font = _load_font(18)
    foreign = dataclasses.replace(
        LONG, predicted_class="肺炎", disease_class="肺炎", probabilities={"肺": 0.1, "肺炎": 0.9}
    )
    said = _write_head(foreign, font)[1]
    assert said == (
        "Answer: class 2 (disease) (class 1 (not disease) 10 %, class 2 (disease) 90 %)"
    )
    assert _spell("肺炎: x, 图", foreign, font) == "class 2 (disease): x, ?"


def test_the_sheet_never_says_a_false_certainty() -> None:
    sure = dataclasses.replace(LONG, probabilities={"normal": 4e-5, "pneumonia": 1 - 4e-5})
    said = _write_head(sure, _load_font(18))[1]
    assert said == "Answer: pneumonia (normal <1 %, pneumonia >99 %)"


def test_the_capture_of_a_novel_image_has_no_heatmap() -> None:
    novel = dataclasses.replace(CASE, status="abstained", abstain_reason="novel", pixels=PICTURE)
    sheet = lay_out(novel, {"pneumonia: x, Grad-CAM": 255 - PICTURE})
    np.testing.assert_array_equal(sheet, lay_out(novel, {}))
    capture = build_secondary_capture(novel, sheet)
    assert "Heatmap" not in capture.DerivationDescription


ODD_TAGS = {
    "time with colons": {"StudyTime": "14:04:38"},
    "time that is none": {"StudyTime": "999999"},
    "date with dots": {"PatientBirthDate": "1950.03.12"},
    "date in free form": {"PatientBirthDate": "12/03/1950"},
    "two dates": {"PatientBirthDate": ["19500312", "19510312"]},
    "sex unknown": {"PatientSex": "U"},
    "sex in small letters": {"PatientSex": "f"},
    "sex as a word": {"PatientSex": "Female"},
    "unknown letters": {"SpecificCharacterSet": "ISO_IR 999"},
    "name with a backslash": {"PatientName": "A^B\\C^D"},
    "two physicians": {"ReferringPhysicianName": ["A^B", "C^D"]},
    "private kind of image": {"SOPClassUID": "1.2.3"},
}


@pytest.mark.parametrize("odd", ODD_TAGS.values(), ids=ODD_TAGS)
def test_tags_that_break_the_standard_are_mended_or_left_empty(
    source: bytes, odd: dict[str, object]
) -> None:
    with hush():
        original = read(source)
        for tag, value in odd.items():
            setattr(original, tag, value)
        data = encode_as_it_is(original)
    capture = build_secondary_capture(CASE, PICTURE, source=data)
    for made in (capture, build_report(CASE, source=data, picture=capture)):
        again = read(encode(made))
        assert again.PatientID == "1CT1"
        assert again.StudyInstanceUID == original.StudyInstanceUID
        mended = {"14:04:38": "140438", "1950.03.12": "19500312", "f": "F"}
        mended |= {"A^B\\C^D": "A^B", "A^B": "A^B"}
        for tag in odd.keys() - {"SpecificCharacterSet", "SOPClassUID"}:
            value = odd[tag]
            first = value[0] if tag == "ReferringPhysicianName" else value
            assert str(again.get(tag) or "") == mended.get(str(first), ""), tag


def test_japanese_names_with_code_extensions_come_back(source: bytes) -> None:
    original = read(source)
    original.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    original.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    foreign = encode_as_it_is(original)
    capture = build_secondary_capture(CASE, PICTURE, source=foreign)
    for made in (capture, build_report(CASE, source=foreign)):
        assert str(read(encode(made)).PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_what_cannot_be_carried_over_is_told_without_its_value(
    source: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise ValueError("Unable to convert 'Doe^Jane'")

    monkeypatch.setattr(hd.sc.SCImage, "from_ref_dataset", refuse)
    with pytest.raises(ImageError, match="cannot be carried") as caught:
        build_secondary_capture(CASE, PICTURE, source=source)
    assert caught.value.code == "export.tags"
    told = "".join(traceback.format_exception(caught.value))
    assert "Unable to convert" not in told
