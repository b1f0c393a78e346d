"""The PDF has the required content as extractable text, whatever the names."""

import dataclasses
import io

import pytest
from pypdf import PdfReader

from core.answers.diagnose import diagnose, reject
from core.answers.diagnosis import Diagnosis, Novelty, ReaderRead
from core.answers.reliability import Reliability
from core.answers.scrutiny import MapScrutiny, Scrutiny, draw_maps, scrutinise
from core.errors import ImageError
from core.explanations.faithfulness import Faithfulness
from core.export.case_pdf import build_pdf
from core.export.pdf_text import spell
from core.images.decode import decode, encode_png
from core.images.notices import Notice
from core.images.phantom import draw
from core.models.ensemble import Ensemble


@pytest.fixture(scope="module")
def case(tiny_ensemble: Ensemble) -> Diagnosis:
    image = decode(encode_png(draw(900001, is_diseased=True, size=96).pixels), name="a.png")
    done = diagnose(tiny_ensemble, [image])[0]
    return dataclasses.replace(done, status="answered", abstain_reason=None)


def read(data: bytes) -> str:
    pages = PdfReader(io.BytesIO(data)).pages
    return " ".join(" ".join(page.extract_text().split()) for page in pages)


def test_the_page_says_all_that_it_must(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    maps = draw_maps(
        tiny_ensemble, case, class_name=case.predicted_class or "", method="integrated"
    )
    scrutiny = scrutinise(tiny_ensemble, case, maps)
    answered = dataclasses.replace(case, reader=ReaderRead("normal", 0.8, case.created))
    data = build_pdf(tiny_ensemble, answered, scrutiny=scrutiny)
    text = read(data)
    for expected in (
        f"Answer: {case.predicted_class}",
        "Research use, not a diagnosis.",
        case.model_id,
        case.data_id.split("+")[0],
        case.created[:10],
        "80 % sure",
        "integrated gradients of the vote",
        "chance",
        "Nearest training images",
        case.neighbours[0].key.split("/")[-1],
        f"{case.neighbours[0].distance:.4f}",
        "Each model's vote",
        *(m.model_id for m in case.members),
    ):
        assert expected in text, expected
    images = sum(len(page.images) for page in PdfReader(io.BytesIO(data)).pages)
    assert images >= 1 + len(case.heatmaps)


def test_the_pdf_never_says_a_false_certainty(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    shares = {name: 1 - 4e-5 if name == "disease" else 4e-5 for name in case.probabilities}
    members = tuple(dataclasses.replace(m, probabilities=shares) for m in case.members)
    sure = dataclasses.replace(case, probabilities=shares, members=members, vote_shares=shares)
    text = read(build_pdf(tiny_ensemble, sure))
    assert "disease >99 %" in text
    assert "100.0%" not in text
    assert "<1 %" in text


def test_a_read_after_the_answer_is_said_to_be_that(
    tiny_ensemble: Ensemble, case: Diagnosis
) -> None:
    read_late = ReaderRead("normal", 0.8, case.created, is_before_answer=False)
    text = read(build_pdf(tiny_ensemble, dataclasses.replace(case, reader=read_late)))
    assert "The reader, AFTER the answer was shown: normal" in text


def test_no_answer_and_untested_maps_are_said(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    unsure = dataclasses.replace(case, status="abstained", abstain_reason="uncertain")
    text = read(build_pdf(tiny_ensemble, unsure))
    assert "too close to call" in text
    assert "Not tested on this image" in text


@pytest.mark.parametrize("is_held_out", [True, False])
def test_a_calibration_error_on_its_own_images_is_said_to_be_one(
    tiny_ensemble: Ensemble, case: Diagnosis, monkeypatch: pytest.MonkeyPatch, is_held_out: bool
) -> None:
    known = Reliability(40, 0.2, 0.1, "temperature", is_held_out, (), None)
    monkeypatch.setattr("core.export.case_pdf.describe_reliability", lambda _model: known)
    text = read(build_pdf(tiny_ensemble, case))
    assert "off by 10.0% on average" in text
    assert ("calibrated on these very images" in text) is not is_held_out


def test_nothing_in_the_report_of_a_novel_image_speaks_for_an_answer(
    tiny_ensemble: Ensemble, case: Diagnosis
) -> None:
    novel = dataclasses.replace(case, status="abstained", abstain_reason="novel")
    maps = draw_maps(tiny_ensemble, case, class_name="disease")
    tests = {
        m.backbone: MapScrutiny(Faithfulness(0, 1, 0.5, 0.5, (), (), (), ()), 1.0) for m in maps
    }
    scrutiny = Scrutiny("disease", "grad-cam", maps, tests, 0.9)
    text = read(build_pdf(tiny_ensemble, novel, scrutiny=scrutiny))
    assert "not the kind of image" in text
    assert "What the model would have compared it with" in text
    assert case.neighbours[0].key.split("/")[-1] in text
    for persuasive in ("robabilit", "Heatmap for", "chance", "Vote of all", "Each model", "%,"):
        assert persuasive not in text, persuasive
    assert f"{case.neighbours[0].share:.1%}" not in text


@pytest.mark.parametrize(
    ("percentile", "is_novel", "said"),
    [
        (42.0, False, "More unusual than 42 % of the training images."),
        (99.8, False, "More unusual than >99 % of the training images."),
        (100.0, True, "More unusual than any training image."),
        (100.0, False, "though within the limit: take the answer with caution."),
    ],
)
def test_the_unusual_is_said_as_on_the_screen(
    tiny_ensemble: Ensemble, case: Diagnosis, percentile: float, is_novel: bool, said: str
) -> None:
    odd = dataclasses.replace(case, novelty=Novelty(percentile, is_novel), maps=())
    assert said in read(build_pdf(tiny_ensemble, odd))


def test_the_first_frame_of_several_is_named_too(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    bare = dataclasses.replace(case, maps=())
    assert "frame" not in read(build_pdf(tiny_ensemble, bare))
    stack = dataclasses.replace(bare, frame=0, n_frames=30)
    assert "a.png, frame 1 of 30" in read(build_pdf(tiny_ensemble, stack))


def test_names_in_any_letters_and_markup_are_set(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    odd = dataclasses.replace(case, file="眼底 <b>&.png")
    data = build_pdf(tiny_ensemble, odd)
    assert f"Answer: {case.predicted_class}" in read(data)
    assert b"STSong-Light" in data  # the only font here with these characters


def test_only_letters_that_the_font_lacks_go_to_the_font_that_viewers_may_lack() -> None:
    foreign = '<font name="STSong-Light">眼底</font>'
    assert spell("眼底 a–b’s é….png", font="Helvetica") == f"{foreign} a–b’s é….png"


def test_a_class_in_any_letters_is_set_in_the_members_table(
    tiny_ensemble: Ensemble, case: Diagnosis
) -> None:
    names = {"normal": "正常", case.disease_class: "肺炎"}
    members = tuple(
        dataclasses.replace(m, probabilities={names[c]: p for c, p in m.probabilities.items()})
        for m in case.members
    )
    odd = dataclasses.replace(case, disease_class="肺炎", members=members)
    assert "probability of 肺炎" in read(build_pdf(tiny_ensemble, odd))


def test_a_rejected_file_has_no_report(tiny_ensemble: Ensemble) -> None:
    rejected = reject("a", ImageError("no"), model=tiny_ensemble)
    with pytest.raises(ImageError, match="not read"):
        build_pdf(tiny_ensemble, rejected)


def test_the_notices_of_a_file_are_printed(tiny_ensemble: Ensemble, case: Diagnosis) -> None:
    said = dataclasses.replace(case, notices=(Notice("x", "Raw detector data <FOR PROCESSING>."),))
    assert "Raw detector data <FOR PROCESSING>." in read(build_pdf(tiny_ensemble, said))
    assert "Raw detector" not in read(build_pdf(tiny_ensemble, case))
