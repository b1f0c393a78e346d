"""The Evaluate page without a browser: first render, every part, each widget, the job."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_page_finetune import put_job

from core.assessment.assess import assess
from core.assessment.record import Evaluation
from core.assessment.store import save_study
from core.config import Settings
from core.jobs import queue
from pages import _shared as shared
from pages import _text
from pages._evaluate.answers import say_answered
from pages._evaluate.run import say_progress

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "pages" / "evaluate.py"
ROBUSTNESS = {
    "n": 8,
    "rows": [
        {"kind": kind, "level": level, "strength": 1.0, "accuracy": 0.9 - level / 10,
         "accuracy_ci95": [0.5, 0.95], "auroc": 0.8, "n_unanswered": 2, "n_novel": 0}
        for kind, level in (("none", 0), ("blur", 1), ("blur", 2), ("blur", 3))
    ],
}  # fmt: skip
EXPLANATIONS = {
    "n": 8,
    "n_masks": 8,
    "rows": [
        {"backbone": "mean", "method": "integrated", "pointing_game": 0.625,
         "pointing_ci95": [0.3, 0.9], "energy_in_mask": 0.3, "energy_ci95": [0.2, 0.4],
         "deletion_auc": 0.4, "deletion_ci95": [0.3, 0.5], "insertion_auc": 0.7,
         "insertion_ci95": [0.6, 0.8], "n_faithful": 8, "better_than_random": 0.9},
        {"backbone": "-", "method": "random", "pointing_game": 0.1,
         "pointing_ci95": [0.0, 0.4], "energy_in_mask": 0.1, "energy_ci95": [0.0, 0.2],
         "deletion_auc": 0.5, "deletion_ci95": [0.4, 0.6], "insertion_auc": 0.5,
         "insertion_ci95": [0.4, 0.6], "n_faithful": 8, "better_than_random": None},
    ],
    "randomisation": {"convnext_atto": 0.12},
    "agreement": 0.34,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with evaluations of two splits and of a rival."""
    copy = tmp_path_factory.mktemp("evaluated") / "checkpoints"
    shutil.copytree(tiny_checkpoints, copy, ignore=shutil.ignore_patterns("evaluations"))
    settings = Settings(checkpoints_dir=copy, device="cpu")
    for model_id, split in (("demo", "val"), ("demo-triplet", "test"), ("demo", "test")):
        evaluation = assess(model_id, copy / ".demo-data", split=split, settings=settings)
    save_study(copy, evaluation, "robustness", ROBUSTNESS)
    save_study(copy, evaluation, "explanations", EXPLANATIONS)
    return copy


@pytest.fixture
def app(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(directory))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    return AppTest.from_file(str(PAGE), default_timeout=120).run()


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.subheader]
    return "\n".join(str(element.value) for element in shown)


def choose(app: AppTest, part: str) -> AppTest:
    app.session_state[shared.PART_KEY] = part
    app.run()
    assert not app.exception
    return app


def read_result(directory: Path) -> dict[str, Any]:
    (path,) = (directory / "demo" / "evaluations").glob("*-test/record.json")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
    return result


def test_the_overview_shows_the_commands_figures(app: AppTest, directory: Path) -> None:
    assert not app.exception
    result = read_result(directory)
    text = words(app)
    assert f"### {result['accuracy']:.3f}" in text
    low, high = result["auroc_ci95"]
    assert f"{low:.3f} to {high:.3f}" in text
    assert "**16 images**" in text
    assert "trained or calibrated on these images" not in text
    assert "Research use, not a diagnosis" in text


def test_a_cell_opens_its_images_and_closes_again(app: AppTest, directory: Path) -> None:
    confusion = read_result(directory)["confusion"]
    cell = max(confusion, key=lambda key: confusion[key])
    app.button(key=f"evaluate_cell_{cell}").click().run()
    assert not app.exception
    assert words(app).count("predicted ") == confusion[cell]
    app.button(key=f"evaluate_cell_{cell}").click().run()
    assert "predicted " not in words(app)


def test_the_operating_point_moves(app: AppTest) -> None:
    choose(app, "point")
    before = words(app)
    app.slider(key="evaluate_threshold").set_value(1.0).run()
    after = words(app)
    assert before != after
    assert "### 0.000" in after  # nothing is called disease
    assert "### –" in after  # so there is no PPV
    app.button(key="evaluate_t_safe").click().run()
    assert not app.exception
    assert app.slider(key="evaluate_threshold").value < 1.0
    app.slider(key="evaluate_prevalence").set_value(1.0).run()
    assert "at 1.0 % prevalence" in words(app)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("honesty", "With its current settings the model answers"),
        ("models", "They agree on"),
        ("groups", "no column to split by"),
        ("robust", "8 images, half of each class"),
        ("maps", "8 of them with a lesion mask"),
        ("report", "CLAIM checklist"),
    ],
)
def test_every_part_renders(app: AppTest, part: str, text: str) -> None:
    assert text in words(choose(app, part))


def test_a_rival_is_compared_on_the_same_images(app: AppTest) -> None:
    choose(app, "models")
    table = next(d.value for d in app.dataframe if "mcnemar" in d.value.columns)
    assert list(table["model"]) == ["demo", "demo-triplet"]
    assert table["mcnemar"][1]


def test_missing_studies_say_how_to_make_them(app: AppTest) -> None:
    names = app.selectbox(key=shared.EVALUATION_KEY).options
    other = next(i for i, label in enumerate(names) if "validation" in label)
    app.selectbox(key=shared.EVALUATION_KEY).select_index(other).run()
    assert "trained or calibrated on these images" in words(app)
    for part in ("robust", "maps"):
        assert "has not been run" in words(choose(app, part))


def test_training_images_among_those_measured_are_counted(
    app: AppTest, directory: Path, seen_folder: Path
) -> None:
    settings = Settings(checkpoints_dir=directory, device="cpu")
    other = assess("demo", seen_folder, split="test", settings=settings)
    names = app.run().selectbox(key=shared.EVALUATION_KEY).options
    index = next(i for i, label in enumerate(names) if label.startswith("elsewhere"))
    app.selectbox(key=shared.EVALUATION_KEY).select_index(index).run()
    assert "The model was trained or calibrated on **6** of these 8 images." in words(app)
    assert "not an external test" in words(choose(app, "external"))
    shutil.rmtree(directory / "demo" / "evaluations" / other.name)


def test_two_data_sets_are_put_side_by_side(app: AppTest) -> None:
    choose(app, "external")
    assert "recalibrate on" in words(app) or "Recalibrated on" in words(app)


def test_the_report_is_offered_in_both_forms(app: AppTest) -> None:
    choose(app, "report")
    app.button(key="evaluate_write").click().run()
    assert not app.exception
    assert len(app.get("download_button")) == 2


def test_a_job_is_started_with_what_was_chosen(
    app: AppTest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, dict[str, Any], str]] = []

    def start(kind: str, params: dict[str, Any], *, title: str, settings: Settings) -> None:
        assert settings.checkpoints_dir == directory
        started.append((kind, params, title))

    monkeypatch.setattr(queue, "start", start)
    app.text_input(key="evaluate_data").set_value("/nowhere").run()
    app.button(key="evaluate_start").click().run()
    assert started == []
    assert "no data at /nowhere" in words(app)
    app.text_input(key="evaluate_data").set_value(str(directory / ".demo-data")).run()
    app.checkbox(key="evaluate_part_robustness").check().run()
    app.button(key="evaluate_start").click().run()
    assert not app.exception
    ((kind, params, title),) = started
    assert (kind, title) == ("evaluate", "demo"), "a title is in no language"
    assert params["model"] == "demo"
    assert params["parts"] == ["robustness"]
    assert params["split"] == "test"


def test_a_model_knows_which_class_of_the_data_is_disease(
    unsaid_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(unsaid_checkpoints))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    started: list[str] = []
    monkeypatch.setattr(queue, "start", lambda kind, *_args, **_more: started.append(kind))
    app = AppTest.from_file(str(PAGE), default_timeout=120).run()
    app.text_input(key="evaluate_data").set_value(str(unsaid_checkpoints / ".demo-data")).run()
    app.button(key="evaluate_start").click().run()
    assert not app.exception
    assert started == ["evaluate"]


def test_a_class_that_no_name_tells_is_asked_for(
    app: AppTest, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(queue, "start", lambda _kind, params, **_more: started.append(params))
    for split in ("train", "test"):
        for number, name in enumerate(("normal", "disease")):
            source = directory / ".demo-data" / split / name
            shutil.copytree(source, tmp_path / split / str(number))
    app.text_input(key="evaluate_data").set_value(str(tmp_path)).run()
    app.button(key="evaluate_start").click().run()
    assert not app.exception
    assert started == []
    app.selectbox(key="evaluate_disease").select("1").run()
    app.button(key="evaluate_start").click().run()
    assert [params["options"] for params in started] == [{"disease_class": "1"}]


@pytest.mark.parametrize(("n", "words"), [(1, "1 was too close"), (2, "2 were too close")])
def test_one_uncertain_image_is_counted_in_the_singular(n: int, words: str) -> None:
    answered = {"n_answered": 7, "accuracy": 0.5, "n_uncertain": n, "n_novel": 0}
    evaluation = SimpleNamespace(result={"coverage_at_abstention": answered}, keys=range(8))
    assert words in say_answered(evaluation)  # type: ignore[arg-type]


def test_progress_is_said_in_the_sessions_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    waiting = queue.Job("20260101-000000-000009", "evaluate", "demo", {}, "now")
    assert say_progress(waiting).startswith("Starting"), "nothing else runs"
    put_job(tmp_path, "audit", {}, "running")
    assert say_progress(waiting).startswith("Starting"), "a look does not hold it up"
    put_job(tmp_path, "train", {"name": "other"}, "running")
    assert say_progress(waiting).startswith("Waiting for other work")
    running = dataclasses.replace(waiting, status="running")
    assert say_progress(running).startswith("Starting")
    monkeypatch.setattr(_text, "language", lambda: "zh_CN")
    said = {
        message: say_progress(dataclasses.replace(running, message=message))
        for message in ("24 of 120 images", "blur, level 2")
    }
    assert list(said.values()) == ["正在评估：第 24 项，共 120 项", "正在评估：模糊，级别 2"]


def test_a_model_without_evaluations_asks_for_one(
    tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "checkpoints"
    shutil.copytree(tiny_checkpoints, copy, ignore=shutil.ignore_patterns("evaluations"))
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(copy))
    app = AppTest.from_file(str(PAGE), default_timeout=60).run()
    assert not app.exception
    assert "has not been evaluated yet" in words(app)
    assert app.text_input(key="evaluate_data").value == str(tiny_checkpoints / ".demo-data")


def test_kept_pictures_come_back(directory: Path) -> None:
    from core.assessment.store import list_evaluations, load_evaluation

    name = list_evaluations(directory, "demo")[0].name
    evaluation: Evaluation = load_evaluation(directory, "demo", name)
    assert len(evaluation.thumbnails) == len(evaluation.keys)
