"""One case on the Diagnose page: frames, windows, the read, what the answer says, downloads."""

import dataclasses
import io
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import streamlit as st
from page_diagnose import File, alter, find, open_page, picture, upload, words, worklist
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from pydicom.data import get_testdata_file
from streamlit.testing.v1 import AppTest

from core.answers.diagnosis import LeftOut, MemberVote, Novelty
from core.errors import CoreError
from core.export import case_dicom
from core.images import phantom
from core.images.decode import encode_png
from core.images.notices import Notice
from core.images.overlays import draw_overlay
from core.models.ensemble import Ensemble
from pages import _shared as shared
from pages import _text
from pages._diagnose.heatmaps import case_key


@pytest.fixture
def app(tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The first render with the tiny demo model."""
    return open_page(tiny_checkpoints, monkeypatch)


def stack() -> File:
    frames = [
        PILImage.fromarray(phantom.draw(950_100 + i, is_diseased=False, size=96).pixels)
        for i in range(3)
    ]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    return ("stack.tif", buffer.getvalue(), "image/tiff")


def shown_of(app: AppTest) -> tuple[object, ...]:
    """How the only case is shown: frame, window, inverted."""
    ((_content, shown, _model),) = app.session_state[shared.RESULTS_KEY]
    return tuple(shown)


def test_frames_of_a_stack_are_read_one_by_one(app: AppTest) -> None:
    upload(app, stack())
    first = next(iter(app.session_state[shared.RESULTS_KEY].values()))
    find(app.slider, "Frame (1 to 3)").set_value(3).run()
    assert not app.exception
    assert shown_of(app) == (2, None, False)
    last = next(iter(app.session_state[shared.RESULTS_KEY].values()))
    assert not np.array_equal(first.pixels, last.pixels)


def test_windows_of_the_file_any_window_and_inversion(app: AppTest) -> None:
    path = get_testdata_file("CT_small.dcm")
    upload(app, ("ct", Path(str(path)).read_bytes(), "application/octet-stream"))
    assert not app.exception
    assert shown_of(app) == (0, None, False)
    find(app.toggle, "Invert").set_value(True).run()
    assert shown_of(app) == (0, None, True)
    window = find(app.selectbox, "Window")
    window.set_value("custom").run()
    find(app.slider, "Window width").set_value(400.0).run()
    assert not app.exception
    _frame, used, is_inverted = shown_of(app)
    assert used is not None
    assert used[1] == 400.0
    assert is_inverted
    assert len(app.session_state[shared.RESULTS_KEY]) == 1  # older readings are forgotten


def deep_file(**tags: object) -> File:
    """A small DICOM of 12 bits with these tags."""
    file = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    for tag, value in tags.items():
        setattr(file, tag, value)
    buffer = io.BytesIO()
    file.save_as(buffer)
    return ("ct", buffer.getvalue(), "")


def test_the_window_box_names_what_is_applied(app: AppTest) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = np.arange(4096, dtype=np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    for tags, named in (
        ({}, "Full range"),
        ({"WindowCenter": 1000, "WindowWidth": 2000}, "File default"),
        ({"WindowCenter": [60000, 1000], "WindowWidth": [10, 2000]}, "Full range"),
        ({"VOILUTSequence": [table]}, "Lookup table in the file"),
    ):
        upload(app, deep_file(**tags))
        window = find(app.selectbox, "Window")
        assert window.options[0] == named, tags
        window.set_value("custom").run()
        assert find(app.selectbox, "Window").options[0] == named, tags


def test_sliders_of_a_small_range_have_small_steps(app: AppTest) -> None:
    upload(app, deep_file(RescaleSlope="0.0002442", RescaleIntercept="0"))
    find(app.selectbox, "Window").set_value("custom").run()
    width = find(app.slider, "Window width")
    assert width.max < 2
    width.set_value(width.max / 4).run()
    assert not app.exception
    (shown,) = app.session_state[shared.RESULTS_KEY].values()
    assert len(np.unique(shown.pixels)) > 100


def test_reader_first_hides_the_answer_until_the_read_is_committed(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(monkeypatch, status="answered", abstain_reason=None, predicted_class="disease")
    app.toggle(key=shared.READER_FIRST_KEY).set_value(True).run()  # before any answer is drawn
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"))
    assert "Answer: " not in words(app)
    assert {row["answer"] for row in worklist(app)} == {"Awaiting your read"}
    assert {row["p"] for row in worklist(app)} == {"–"}
    assert "2 cases that you have not read yet" in words(app)
    commit = next(b for b in app.button if b.label == "Commit and show the answer")
    commit.click().run()
    assert "First choose what you see" in words(app)
    find(app.radio, "What do you see?").set_value("normal")
    find(app.slider, "How confident are you?").set_value(90)
    next(b for b in app.button if b.label == "Commit and show the answer").click().run()
    assert not app.exception
    assert "Your read: **normal**, 90 % confident; **the model disagrees**" in words(app)
    assert "◆ Answer: disease" in words(app)
    assert [row["answer"] for row in worklist(app)] == ["Disease", "Awaiting your read"]
    ((of, read),) = app.session_state[shared.READS_KEY].items()
    assert of[1:] == (0, ("normal", "disease"))
    assert (read.class_name, read.confidence, read.is_before_answer) == ("normal", 0.9, True)
    assert "after the answer had been shown" not in words(app)


def commit(app: AppTest, class_name: str) -> None:
    find(app.radio, "What do you see?").set_value(class_name)
    next(b for b in app.button if b.label == "Commit and show the answer").click().run()


def test_a_read_after_a_look_at_the_answer_is_not_said_to_be_before_it(app: AppTest) -> None:
    switch = shared.READER_FIRST_KEY
    app.toggle(key=switch).set_value(True).run()
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"))
    assert "has already been shown" not in words(app)
    app.toggle(key=switch).set_value(False).run()
    app.toggle(key=switch).set_value(True).run()
    assert {row["answer"] for row in worklist(app)} == {"Awaiting your read"}
    assert "The answer for this image has already been shown" in words(app)
    commit(app, "normal")
    assert "It was made after the answer had been shown." in words(app)
    app.file_uploader(key=shared.UPLOADS_KEY).set_value(None).run()
    upload(app, picture(950_001, "again.png"))  # taken away and brought again: seen all the same
    assert "The answer for this image has already been shown" in words(app)
    commit(app, "normal")
    (read,) = app.session_state[shared.READS_KEY].values()
    assert not read.is_before_answer


def test_a_read_of_one_frame_is_none_of_another(app: AppTest) -> None:
    app.toggle(key=shared.READER_FIRST_KEY).set_value(True).run()
    upload(app, stack())
    commit(app, "normal")
    assert "Your read: **normal**" in words(app)
    find(app.slider, "Frame (1 to 3)").set_value(3).run()
    assert "Your read: **normal**" not in words(app)
    assert find(app.radio, "What do you see?").value is None
    commit(app, "disease")
    assert "Your read: **disease**" in words(app)
    assert "after the answer had been shown" not in words(app)
    find(app.slider, "Frame (1 to 3)").set_value(1).run()
    assert "Your read: **normal**" in words(app)


def test_patient_tags_are_shown_only_when_asked_and_text_is_warned_of(app: AppTest) -> None:
    path = get_testdata_file("CT_small.dcm")
    data = Path(str(path)).read_bytes()
    written = PILImage.fromarray(np.full((300, 300, 3), 60, np.uint8))
    font = ImageFont.load_default(26)
    ImageDraw.Draw(written).text((20, 250), "DOE^JANE 4711", fill=(255, 255, 255), font=font)
    name = ("name.png", encode_png(np.asarray(written)), "image/png")
    upload(app, ("ct", data, ""))
    assert "1CT1" not in words(app)
    assert "burned-in text" not in words(app)
    find(app.toggle, "Show patient tags").set_value(True).run()
    assert "Patient ID: **1CT1**" in words(app)
    upload(app, name)
    assert "may contain burned-in text** (lower edge)" in words(app)
    upload(app, picture())
    assert "burned-in text" not in words(app)  # the generator's own mark is known
    assert "Carries the mark of images generated by NeighborDx" in words(app)


def test_a_file_without_patient_tags_is_not_said_to_name_nobody(app: AppTest) -> None:
    file = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    for tag in case_dicom.PATIENT_TAGS:
        if tag in file:
            del file[tag]
    buffer = io.BytesIO()
    file.save_as(buffer)
    upload(app, ("ct", buffer.getvalue(), ""))
    find(app.toggle, "Show patient tags").set_value(True).run()
    assert "Empty or absent: Patient's Name, Other Patient Names, Patient ID" in words(app)
    assert "may still identify a patient" in words(app)


def test_a_case_can_be_taken_along(app: AppTest) -> None:
    upload(app, picture())
    labels = {b.proto.label for b in app.get("download_button")}
    assert {"Report (PDF)", "Image with heatmap (DICOM SC)", "Structured report (DICOM SR)"} <= {
        *labels
    }


def test_a_download_that_fails_quotes_no_tag_and_says_so(
    app: AppTest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: dict[str, Callable[[], bytes]] = {}

    def keep(_label: str, make: Callable[[], bytes], *_names: str, key: str, **_: object) -> None:
        made[key] = make

    def fail(*_: object, **_options: object) -> bytes:
        raise RuntimeError("Jane" + "^Doe")

    monkeypatch.setattr(st, "download_button", keep)
    monkeypatch.setattr(case_dicom, "build_secondary_capture", fail)
    upload(app, picture())
    for key in ("diagnose_sc", "diagnose_sr"):
        with pytest.raises(CoreError) as caught:
            made[key]()
        assert "Jane^Doe" not in "".join(traceback.format_exception(caught.value))
    assert "Jane" not in caplog.text
    app.run()
    assert "The file could not be created" in words(app)
    app.segmented_control(key="lang").set_value("zh_CN").run()
    assert "无法生成该文件" in words(app)


def test_a_single_picture_has_no_frame_choice(app: AppTest) -> None:
    upload(app, picture())
    assert not [s for s in app.slider if s.label.startswith("Frame")]


def test_too_close_to_call_is_no_answer(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(
        monkeypatch,
        status="abstained",
        abstain_reason="uncertain",
        predicted_class="disease",
        probabilities={"normal": 0.46, "disease": 0.54},
    )
    upload(app, picture())
    assert "No answer: too close to call" in words(app)
    assert "Leaning: **disease**" in words(app)
    assert "Answer: " not in words(app).replace("No answer: ", "")


def test_an_unfamiliar_image_gets_no_leaning(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(
        monkeypatch,
        status="abstained",
        abstain_reason="novel",
        novelty=Novelty(distance_percentile=100.0, is_novel=True),
    )
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"))
    assert "unlike those the model was trained on" in words(app)
    assert "More unusual than any training image." in words(app)
    assert "Leaning" not in words(app)
    assert "Probability:" not in words(app)
    for persuasive in (
        *(
            "Vote by class",
            "moved the vote towards each class",
            "chance",
            "Answers of the ensemble",
        ),
        *("share", "weight", "vote as a table"),
    ):
        assert persuasive not in words(app), persuasive
    assert {row["p"] for row in worklist(app)} == {"–"}


def test_files_of_one_name_read_in_one_second_have_heatmaps_of_their_own(app: AppTest) -> None:
    upload(app, picture(950_001, "IM0001"), picture(950_002, "IM0001"))
    one, two = app.session_state[shared.RESULTS_KEY].values()
    assert one.file == two.file
    assert case_key(one) != case_key(dataclasses.replace(two, created=one.created))


def test_an_answer_on_a_most_unusual_image_asks_for_caution(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Novelty(distance_percentile=100.0, is_novel=False)
    alter(monkeypatch, status="answered", abstain_reason=None, novelty=odd)
    upload(app, picture())
    assert "**More unusual than any training image**, but still within the accepted range" in words(
        app
    )
    assert "More unusual than 100 %" not in words(app)


def test_an_answer_names_the_class_and_the_probability(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(
        monkeypatch,
        status="answered",
        abstain_reason=None,
        predicted_class="disease",
        probabilities={"normal": 0.001, "disease": 0.999},
    )
    upload(app, picture())
    assert "◆ Answer: disease" in words(app)
    assert "disease **>99 %**" in words(app)  # never rounded to certainty


def test_names_keep_their_letters_at_the_head_of_a_line(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(
        monkeypatch,
        status="answered",
        abstain_reason=None,
        predicted_class="COVID-19",
        disease_class="COVID-19",
        probabilities={"normal": 0.1, "COVID-19": 0.9},
    )
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"))
    assert {row["answer"] for row in worklist(app)} == {"COVID-19"}


def test_what_voted_is_called_nearest_for_one_model_alone(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = (MemberVote("one", {"normal": 0.2, "disease": 0.8}, 1.0),)
    with monkeypatch.context() as patch:
        alter(patch, status="answered", abstain_reason=None)
        upload(app, picture())
    assert "training images that voted" in words(app)
    assert "nearest training images are labelled" not in words(app)
    alter(monkeypatch, members=one, status="answered", abstain_reason=None)
    upload(app, picture(950_001))
    assert "training images that voted" not in words(app)
    assert "nearest training images" in words(app)


def test_copies_members_and_moved_originals_are_said(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = (
        MemberVote("one", {"normal": 0.2, "disease": 0.8}, 0.6),
        MemberVote("two", {"normal": 0.3, "disease": 0.7}, 0.4),
    )
    left_out = (LeftOut(0, "x", "duplicate"), LeftOut(1, "y", "group"))
    alter(monkeypatch, members=members, left_out=left_out, status="answered", abstain_reason=None)
    monkeypatch.setattr(Ensemble, "has_original", lambda _self, _index: False)
    upload(app, picture())
    assert "It did not vote." in words(app)
    assert "1 training image of the same patient was excluded" in words(app)
    assert "original has moved" in words(app)
    assert "Answers of the ensemble members" in words(app)


def test_how_a_file_was_read_is_said_and_its_graphics_are_drawn_on_request(app: AppTest) -> None:
    path = get_testdata_file("examples_overlay.dcm")
    file = pydicom.dcmread(str(path))
    file.PresentationIntentType = "FOR PROCESSING"
    buffer = io.BytesIO()
    file.save_as(buffer)
    upload(app, ("mr", buffer.getvalue(), ""))
    assert not app.exception
    assert "Overlay graphics in the file" in "".join(c.value for c in app.caption)
    assert any("raw detector data" in w.value for w in app.warning)
    (before,) = (d.pixels.copy() for d in app.session_state[shared.RESULTS_KEY].values())
    drawn: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pages._diagnose.case.draw_overlay",
            lambda pixels, mask: drawn.append(mask) or draw_overlay(pixels, mask),
        )
        app.run()
        assert drawn == []  # off until asked for
        find(app.toggle, "Show overlays").set_value(True).run()
    assert not app.exception
    expected = file.overlay_array(0x6000).astype(bool)
    np.testing.assert_array_equal(drawn[0], expected)
    (after,) = (d.pixels for d in app.session_state[shared.RESULTS_KEY].values())
    np.testing.assert_array_equal(after, before)
    upload(app, deep_file())
    assert "Show overlays" not in {t.label for t in app.toggle}


def test_notices_and_kinds_of_objects_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "language", lambda: "zh_CN")
    monkeypatch.setattr(_text, "_", lambda message: f"<{message}>")
    notice = Notice("image.overlays", "English", {"n": 3})
    assert _text.describe_notice(notice).startswith("<Overlay graphics in the file (3)")
    assert _text.describe_notice(Notice("image.new", "English")) == "English"
    told = _text.describe_error("image.dicom_object", "x", {"object": "segmentation"})
    assert "“<segmentation>”" in told
