"""The Diagnose page without a browser: first render, each widget and each status."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from page_diagnose import alter, find, open_page, picture, run_app, upload, words, worklist
from streamlit.testing.v1 import AppTest

from core.answers.diagnose import diagnose as answer
from core.answers.diagnosis import Diagnosis, MemberVote
from core.images.decode import Image
from core.models.ensemble import Ensemble, Model
from pages import _shared as shared


@pytest.fixture
def app(tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The first render with the tiny demo model."""
    return open_page(tiny_checkpoints, monkeypatch)


def refusals(app: AppTest) -> list[str]:
    """One line per file that was not read."""
    listed = next(e for e in app.expander if "not be read" in e.label or "未能读取" in e.label)
    return str(listed.markdown[0].value).splitlines()


def picker(app: AppTest) -> Any:
    return next(s for s in app.selectbox if str(s.key).startswith(shared.PICKER_KEY))


def test_without_a_model_the_page_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    app = run_app()
    assert not app.exception
    assert "There is no model yet" in words(app)
    assert app.code[0].value == "make demo"
    assert "python -m core demo" in words(app)
    assert "Research use, not a diagnosis" in words(app)


def test_a_broken_model_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "metrics.json", "weights.safetensors"):
        (tmp_path / "broken" / name).write_text("[]", encoding="utf-8")
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    app = run_app()
    assert "There is no model yet" in words(app)
    assert "broken" in app.sidebar.markdown[0].value


def test_first_render_states_the_limits_and_the_model(app: AppTest) -> None:
    assert not app.exception
    assert "Research use, not a diagnosis" in words(app)
    assert "at most 50 files of 64 MB each" in app.file_uploader[0].label
    assert app.sidebar.selectbox(key=shared.MODEL_KEY).value == "demo"
    assert "Classes: normal / disease" in app.sidebar.markdown[0].value
    assert "SYNTHETIC" in words(app)
    assert not app.dataframe


def test_an_image_gets_an_answer_with_its_evidence(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(monkeypatch, status="answered", abstain_reason=None)
    upload(app, picture())
    assert not app.exception
    diagnosis = next(iter(app.session_state[shared.RESULTS_KEY].values()))
    assert diagnosis.status in ("answered", "abstained")
    assert "chance" in words(app)  # each heatmap beside its own test
    assert "Agreement between the heatmaps of the backbones" in words(app)
    assert "Several models vote. Distance: the mean over the models." in words(app)
    cards = [m.value for m in app.markdown if ":small[**" in m.value]
    assert len(cards) == len(diagnosis.neighbours) + (diagnosis.nearest_other is not None)
    assert diagnosis.model_id in app.caption[-1].value
    assert "Research use, not a diagnosis" in app.caption[-1].value
    other = next(c for c in ("normal", "disease") if c != diagnosis.predicted_class)
    choice = next(s for s in app.get("button_group") if "heatmap_class" in str(s.key))
    choice.set_value(other).run()
    assert not app.exception
    app.toggle(key=shared.CONTOUR_KEY).set_value(True).run()
    assert not app.exception
    before = [s.by_backbone for s in app.session_state[shared.SCRUTINY_KEY].values()]
    app.segmented_control(key=shared.METHOD_KEY).set_value("integrated").run()
    assert not app.exception
    kept = app.session_state[shared.SCRUTINY_KEY]
    assert [key[-2:] for key in kept][-1] == (other, "integrated")
    assert len(kept) == len(before) + 1  # worked out when asked for, not with the answer
    assert len(app.get("plotly_chart")) >= 1  # the map, and the bar unless the image is unfamiliar
    heatmaps = [c.value for c in app.caption if c.value.startswith("Backbone: ")]
    assert len(heatmaps) == len(diagnosis.heatmaps) > 0


def test_a_bad_file_stands_beside_good_results(app: AppTest) -> None:
    upload(app, picture(), ("report.pdf", b"%PDF-1.7 text", "application/pdf"), ("", b"", ""))
    assert not app.exception
    rows = worklist(app)
    assert [row["answer"] == "Could not be read" for row in rows] == [False, True, True]
    reasons = refusals(app)
    assert reasons[0].startswith("- **report.pdf**: Expected PNG, JPEG")
    assert "empty" in reasons[1]


def test_the_same_file_twice_is_said(app: AppTest) -> None:
    again = ("again.png", picture()[1], "image/png")
    upload(app, picture(), picture(950_001, "other.png"), again, ("", b"", ""), ("", b"", ""))
    files = [row["file"] for row in worklist(app)]
    assert files == ["eye.png", "other.png", "Duplicate of again.png", "", ""]


def test_previous_next_and_the_list_choose_the_case(app: AppTest) -> None:
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"), picture(950_003, "c.png"))
    assert app.subheader[0].value == "a.png"
    app.button(key="diagnose_next").click().run()
    assert app.subheader[0].value == "b.png"
    app.button(key="diagnose_previous").click().run()
    app.button(key="diagnose_previous").click().run()
    assert app.subheader[0].value == "c.png"
    ids = list(app.session_state[shared.HASHES_KEY])
    picker(app).set_value(ids[1]).run()
    assert app.subheader[0].value == "b.png"


def test_a_rerun_computes_nothing_and_a_removed_file_is_forgotten(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (picture(950_001, "a.png"), picture(950_002, "b.png"))
    upload(app, *files)
    calls: list[str] = []
    real = answer

    def diagnose(bundle: Model, images: Sequence[Image], **options: bool) -> list[Diagnosis]:
        calls.extend(image.name for image in images)
        return real(bundle, images, **options)

    monkeypatch.setattr("pages._diagnose.intake.diagnose", diagnose)
    app.slider(key=shared.OPACITY_KEY).set_value(20).run()
    assert calls == []
    upload(app, files[1])  # another upload of the same content
    assert calls == []
    assert len(app.session_state[shared.RESULTS_KEY]) == 1
    app.file_uploader(key=shared.UPLOADS_KEY).set_value(None).run()
    assert app.session_state[shared.RESULTS_KEY] == {}
    assert app.session_state[shared.HASHES_KEY] == {}


def visit(app: AppTest, page: str) -> AppTest:
    """As a click in the navigation: widgets of the page that is left lose their values."""
    return app.switch_page(f"{page}.py").run()


def test_what_was_uploaded_and_read_outlives_a_visit_to_another_page(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"))
    app.toggle(key=shared.READER_FIRST_KEY).set_value(True).run()
    find(app.radio, "What do you see?").set_value("normal")
    next(b for b in app.button if b.label == "Commit and show the answer").click().run()
    monkeypatch.setattr("pages._diagnose.intake.diagnose", None)  # nothing is read again
    visit(app, "models")
    assert shared.UPLOADS_KEY not in app.session_state
    visit(app, "diagnose")
    assert not app.exception
    assert not app.file_uploader(key=shared.UPLOADS_KEY).value
    assert [row["file"] for row in worklist(app)] == ["a.png", "b.png"]
    assert "Your read: **normal**" in words(app)
    assert worklist(app)[1]["answer"] == "Awaiting your read"
    assert "Kept from your last visit to this page: a.png, b.png" in words(app)
    app.button(key="diagnose_remove_kept").click().run()
    assert "Upload one or more images" in words(app)
    assert app.session_state[shared.READS_KEY] == {}


def test_uploads_of_two_visits_stand_side_by_side_and_go_one_by_one(app: AppTest) -> None:
    upload(app, picture(950_001, "a.png"))
    visit(app, "models")
    visit(app, "diagnose")
    upload(app, picture(950_002, "b.png"))
    assert [row["file"] for row in worklist(app)] == ["a.png", "b.png"]
    app.file_uploader(key=shared.UPLOADS_KEY).set_value(None).run()
    assert app.subheader[0].value == "a.png"
    assert len(app.session_state[shared.RESULTS_KEY]) == 1


def test_a_zip_is_its_files_and_a_bad_one_has_its_reason(app: AppTest) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/one.png", picture(950_001)[1])
        archive.writestr("notes.txt", b"hello")
    upload(app, ("all.zip", buffer.getvalue(), "application/zip"), ("bad.zip", b"PK\x03\x04", ""))
    assert not app.exception
    rows = worklist(app)
    assert [row["file"] for row in rows] == ["one.png", "notes.txt", "bad.zip"]
    assert [row["answer"] == "Could not be read" for row in rows] == [False, True, True]
    assert "damaged" in refusals(app)[1]


def test_samples_are_read_labelled_and_removed(app: AppTest) -> None:
    app.pills(key=shared.SAMPLES_KEY).set_value([900_001, 900_002]).run()
    assert not app.exception
    assert [row["file"] for row in worklist(app)] == ["sample-1.png", "sample-2.png"]
    assert ":violet-badge[SYNTHETIC] Generated with lesions." in words(app)
    app.pills(key=shared.SAMPLES_KEY).set_value([]).run()
    assert "Upload one or more images" in words(app)


def test_a_new_file_comes_on_view_and_a_reading_that_goes_on_moves_nothing(app: AppTest) -> None:
    app.pills(key=shared.SAMPLES_KEY).set_value([900_001]).run()
    app.pills(key=shared.SAMPLES_KEY).set_value([900_001, 900_002]).run()
    assert app.subheader[0].value == "sample\\-2.png"
    app.session_state[shared.CASE_KEY] = next(iter(app.session_state[shared.CONTENTS_KEY]))
    app.session_state[shared.RESULTS_KEY] = {}  # a reading cut short, by another language or page
    app.run()
    assert app.subheader[0].value == "sample\\-1.png"


def test_samples_are_not_offered_for_other_models(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ensemble, "is_synthetic", False)
    app.run()
    assert not app.pills
    assert "Sample images are only available for the demo model" in words(app)


def test_everything_changes_language(app: AppTest) -> None:
    upload(app, picture(), ("empty.png", b"", "image/png"))
    app.segmented_control(key="lang").set_value("zh_CN").run()
    assert not app.exception
    assert "仅供研究" in words(app)
    assert "文件为空" in refusals(app)[0]
    chart = json.loads(app.get("plotly_chart")[-1].proto.spec)
    assert {"本图像", "正常", "患病"} <= {trace.get("name") for trace in chart["data"]}
    assert picker(app).options[1].endswith("未能读取")


def test_a_fault_in_one_file_leaves_the_others(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = answer

    def diagnose(bundle: Model, images: Sequence[Image], **options: bool) -> list[Diagnosis]:
        if images[0].name == "b.png":
            raise RuntimeError("boom")
        return real(bundle, images, **options)

    monkeypatch.setattr("pages._diagnose.intake.diagnose", diagnose)
    upload(app, picture(950_001, "a.png"), picture(950_002, "b.png"))
    assert not app.exception
    rows = worklist(app)
    assert rows[0]["answer"] != "Could not be read"
    assert "server log" in refusals(app)[0]


def test_our_own_limits_are_enforced(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_MAX_FILES", "1")
    monkeypatch.setenv("NEIGHBORDX_MAX_UPLOAD_MB", "1")
    app.run()
    big = ("big.png", b"\0" * (2**20 + 1), "image/png")
    upload(app, big, picture())
    assert "1 file over the limit was left out" in words(app)
    assert "the limit is 1 MB" in words(app)


def test_a_neighbour_is_shown_side_by_side_and_closed(app: AppTest) -> None:
    upload(app, picture())
    app.button(key="diagnose_compare_vote_1").click().run()
    assert "Side by side" in words(app)
    app.button(key="diagnose_compare_close").click().run()
    assert "Side by side" not in words(app)


def test_no_close_case_and_disputed_models_are_said(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = (
        MemberVote("one", {"normal": 0.2, "disease": 0.8}, 0.6),
        MemberVote("two", {"normal": 0.7, "disease": 0.3}, 0.4),
    )
    alter(monkeypatch, close_limit=0.0, members=members, status="answered", abstain_reason=None)
    upload(app, picture())
    assert "**No similar case.**" in words(app)
    assert "The models disagree" in words(app)


def test_file_names_are_never_markup(app: AppTest) -> None:
    upload(app, picture(950_001, "![x](http://example.invalid/x.png)_*a*.png"))
    assert app.subheader[0].value.startswith("\\!\\[x\\]\\(http\\://")


def test_an_error_of_the_model_is_shown_and_a_bug_is_not(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_bundle: Model) -> bool:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Ensemble, "is_synthetic", property(fail))
    app.run()
    assert not app.exception
    assert "Something went wrong on the server" in words(app)
    assert "secret detail" not in words(app)
