"""The Models page without a browser: list, gate, activation, roll-back, ensemble."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.assessment.activation_gate import read_history
from core.assessment.model_comparison import compare_models
from core.config import Settings
from core.data.datasets import read_dataset
from core.jobs import queue
from core.models import registry
from core.models.registry import load_bundle
from pages import _shared as shared
from pages._text import LANGUAGE_KEY

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkpoints(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "ck"
    shutil.copytree(tiny_checkpoints, folder)
    return folder


@pytest.fixture
def app(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(checkpoints))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    app = AppTest.from_file(str(ROOT / "pages" / "models.py"), default_timeout=120)
    return app.run()


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.success]
    return "\n".join(str(element.value) for element in shown)


def test_the_list_and_the_card_of_the_model_in_use(app: AppTest) -> None:
    assert not app.exception
    table = app.table[0].value
    assert list(table["Model"]) == ["★ **demo**", "**demo\\-metric**", "**demo\\-triplet**"]
    assert all("normal / disease" in cell for cell in table["Training data"])
    assert "metric\\-ensemble" in table["Recipe"][1]
    assert "This model is in use." in words(app)
    assert "Research use, not a diagnosis" in words(app)


def test_a_card_in_another_language_is_announced(app: AppTest) -> None:
    assert "written in English" not in words(app)
    app.session_state[LANGUAGE_KEY] = "zh_CN"
    assert "模型卡以英文撰写" in words(app.run())


def test_a_model_goes_through_the_gate_into_use_and_back(app: AppTest, checkpoints: Path) -> None:
    app.selectbox(key=shared.MODELS_ONE_KEY).select("demo-metric").run()
    app.number_input(key=shared.MODELS_LIMIT_KEY).set_value(0.5).run()
    assert "on the same 12 images" in words(app)
    app.button(key="models_activate").click().run()
    assert not app.exception
    assert registry.active_model_id(checkpoints) == "demo-metric"
    assert "This model is in use." in words(app)
    app.button(key="models_roll_back").click().run()
    assert registry.active_model_id(checkpoints) == "demo"
    assert [e.action for e in read_history(checkpoints)] == ["activate", "roll-back"]
    assert list(app.dataframe[0].value["model"]) == ["demo", "demo-metric"]


def test_against_the_gate_a_reason_is_needed(app: AppTest, checkpoints: Path) -> None:
    (checkpoints / "demo-metric" / "metrics.json").write_text(
        (checkpoints / "demo-metric" / "metrics.json")
        .read_text(encoding="utf-8")
        .replace('"train/', '"other/'),
        encoding="utf-8",
    )
    app.selectbox(key=shared.MODELS_ONE_KEY).select("demo-metric").run()
    assert "no measurement on the same images" in words(app)
    assert app.button(key="models_activate").disabled
    app.text_area(key=shared.MODELS_REASON_KEY).input("We only try it out today.").run()
    app.button(key="models_activate").click().run()
    assert read_history(checkpoints)[0].reason == "We only try it out today."


def test_an_ensemble_of_ticked_models(app: AppTest, checkpoints: Path) -> None:
    app.session_state[shared.MODELS_VIEW_KEY] = "ensemble"
    app.run()
    for name in ("demo-metric", "demo-triplet"):
        app.checkbox(key=f"{shared.MODELS_MEMBERS_KEY}_{name}").check().run()
    app.text_input(key=shared.MODELS_NAME_KEY).input("both").run()
    app.button(key="models_build").click().run()
    assert not app.exception
    refused = "below the minimum" in words(app)  # random trunks are weak
    assert refused != (checkpoints / "both").is_dir()


def test_a_needed_model_is_not_offered_for_deletion(app: AppTest) -> None:
    app.selectbox(key=shared.MODELS_ONE_KEY).select("demo-metric").run()
    app.button(key="models_delete").click().run()
    assert "is a member of demo" in words(app)
    assert app.button(key="models_delete_yes").disabled


@pytest.mark.parametrize("view", ["compare", "files"])
def test_the_other_views_render(app: AppTest, view: str) -> None:
    app.session_state[shared.MODELS_VIEW_KEY] = view
    app.run()
    assert not app.exception
    assert not app.error
    if view == "compare":
        assert app.button(key="models_compare").label == "Compare"


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_comparison_that_the_gate_does_not_count_says_so(
    app: AppTest, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    settings = Settings(checkpoints_dir=checkpoints, device="cpu")
    model = load_bundle(checkpoints, "demo-metric", settings=settings)
    data = read_dataset(checkpoints / ".demo-data", val_fraction=0.25)
    compared = compare_models(model, model, data, split=split, hashes=("h", "h"))
    found = dataclasses.asdict(compared)
    job = queue.Job(job_id="one", kind="compare", title="", params={}, created="", status="done")
    monkeypatch.setattr(queue, "find_latest", lambda *_: job)
    monkeypatch.setattr(queue, "read_result", lambda *_: found)
    monkeypatch.setattr(queue, "folder_of", lambda *_: checkpoints)
    app.session_state[shared.MODELS_VIEW_KEY] = "compare"
    app.run()
    assert not app.exception
    assert not app.error
    assert ("The gate ignores this comparison" in words(app)) == (split == "val")


def test_without_a_model_the_page_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    app = AppTest.from_file(str(ROOT / "pages" / "models.py"), default_timeout=120)
    app.run()
    assert not app.exception
    assert "Train one on the Fine-tune page" in words(app)


def test_what_is_no_model_is_named_and_left_alone(app: AppTest, checkpoints: Path) -> None:
    (checkpoints / "xrays").mkdir()
    app.run()
    assert not app.exception
    assert "Not a model, left alone: xrays" in words(app)
    assert "xrays" not in " ".join(app.table[0].value["Model"])
