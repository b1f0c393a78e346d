"""The Fine-tune page without a browser: what it shows of data, jobs and their ends."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from test_data_readiness import report

from core.config import OBJECTIVES, RECIPES
from core.config.presets import build_config
from core.data.audit import Duplicates
from core.data.options import DataOptions
from core.data.readiness import judge
from core.images.decode import encode_jpeg
from core.jobs import queue, state
from core.jobs.state import Job
from pages import _shared as shared
from pages._charts.jobs import build_growing_map, build_k_curve, build_lines, build_validation
from pages._finetune.data import SEEDS, audit_params
from pages._finetune.findings import say
from pages._text import LANGUAGE_KEY

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def app(tmp_path: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """A server with a data folder and no model."""
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path / "ck"))
    monkeypatch.setenv("NEIGHBORDX_DATA", str(phantom_folder.parent))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    app = AppTest.from_file(str(ROOT / "pages" / "finetune.py"), default_timeout=120)
    return app.run()


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.success]
    return "\n".join(str(element.value) for element in shown)


def put_job(checkpoints: Path, kind: str, params: dict, status: str, result: dict | None = None):
    """A job as if it had run."""
    directory = state.jobs_dir(checkpoints)
    number = len(state.list_folders(directory))
    job = Job(f"20260101-000000-{number:06d}", kind, str(params.get("name", kind)), params, "now")
    with state.hold_queue(directory):
        folder = state.create(directory, job)
        me = state.identify(os.getpid())
        state.transition(folder, "queued", supervisor=me)  # else it would get a process
        if status != "queued":
            state.transition(folder, "running", supervisor=me)
        if result is not None:  # as a worker does: while it runs; queueing clears old results
            state.write_json(folder / "result.json", result)
        if status not in ("queued", "running"):
            changes = {
                "error": "the disk is full: 3 MB are free.",
                "error_code": "job.disk",
                "error_params": {"free_mb": 3},
            }
            state.transition(folder, status, **(changes if status == "failed" else {}))
    return folder


def test_the_first_view_offers_the_folders_of_the_server(app: AppTest) -> None:
    assert not app.exception
    assert app.selectbox(key=shared.FT_FOLDER_KEY).options == ["data"]
    app.selectbox(key=shared.FT_FOLDER_KEY).select("data").run()
    assert app.button(key="finetune_check").label == "Check the data"


def test_without_data_the_page_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("NEIGHBORDX_DATA", str(tmp_path / "none"))
    app = AppTest.from_file(str(ROOT / "pages" / "finetune.py"), default_timeout=120)
    app.run()
    assert "There is no data on the server yet" in words(app)


def result_of(findings: list, **changes: object) -> dict:
    """Of a check that found these."""
    found = [dataclasses.asdict(f) for f in findings]
    keys = [key for f in findings for group in f.keys for key in group]
    result = {
        "report": report().to_json(),
        "class_names": ["normal", "disease"],
        "counts": {str(seed): report().counts for seed in SEEDS},
        "disease_class": "disease", "findings": {str(seed): found for seed in SEEDS},
        "samples": {"normal": [], "disease": []},
        "pictures": {key: "0000.jpg" for key in keys},
        "labels": {key: ["val", "disease"] for key in keys},
    }  # fmt: skip
    return {**result, **changes}


def choose(
    app: AppTest,
    phantom_folder: Path,
    findings: list,
    tmp_path: Path,
    *,
    width: int = 96,
    height: int = 96,
) -> AppTest:
    params = audit_params(phantom_folder, DataOptions())
    size = {"width_range": [width] * 3, "height_range": [height] * 3}
    result = {**result_of(findings), "report": report(**size).to_json()}
    folder = put_job(tmp_path / "ck", "audit", params, "done", json.loads(json.dumps(result)))
    (folder / "pictures").mkdir()
    (folder / "pictures" / "0000.jpg").write_bytes(encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    app.selectbox(key=shared.FT_FOLDER_KEY).select("data").run()
    return app


def test_good_data_and_a_name_let_training_start(
    app: AppTest, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def start(kind: str, params: dict, *, title: str, settings: object) -> Job:
        assert settings is not None
        asked.append((kind, params))
        return Job("20260101-000000-000009", kind, title, params, "now")

    monkeypatch.setattr(queue, "start", start)
    choose(app, phantom_folder, [], tmp_path)
    assert "Nothing suspicious was found" in words(app)
    assert app.button(key="finetune_start").disabled
    app.text_input(key=shared.FT_NAME_KEY).input("eyes").run()
    app.multiselect(key=shared.FT_SEEDS_KEY).set_value([0, 7]).run()
    app.selectbox(key=shared.FT_RECIPE_KEY).select("report").run()
    app.toggle(key=shared.FT_ENSEMBLE_KEY).set_value(True).run()
    assert app.radio(key=shared.FT_OBJECTIVE_KEY).disabled
    app.text_area(key=shared.FT_MORE_KEY).input("train.n_views=2\n").run()
    app.button(key="finetune_start").click().run()
    assert not app.exception
    assert [(k, p["name"], p["seed"]) for k, p in asked] == [
        ("train", "eyes-s0", 0), ("train", "eyes-s7", 7),
    ]  # fmt: skip
    wanted = asked[0][1]
    assert wanted["overrides"] == ["train.epochs=20", "train.n_views=2"]
    assert (wanted["recipe"], wanted["is_ensemble"]) == ("report", True)
    assert build_config(wanted).recipe == "report"
    app.text_area(key=shared.FT_MORE_KEY).input("train.seed=3").run()
    assert "Train.seed is not set here\\: seeds, epochs and objective have" in words(app)
    app.text_area(key=shared.FT_MORE_KEY).input("train.n_views=0").run()
    assert "Input should be greater than or equal to 1, got 0" in words(app)


def test_large_images_may_be_looked_at_larger(
    app: AppTest, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def start(kind: str, params: dict, *, title: str, settings: object) -> Job:
        assert settings is not None
        asked.append(params)
        return Job("20260101-000000-000009", kind, title, params, "now")

    monkeypatch.setattr(queue, "start", start)
    choose(app, phantom_folder, [], tmp_path, width=470, height=340)
    said = (
        "The images are 470 x 340 px (median): at {} px, details only a few pixels wide are lost. "
    )
    assert said.format(288) + "448 px would take about 2.4 times as long." in words(app)
    app.text_input(key=shared.FT_NAME_KEY).input("eyes").run()
    app.selectbox(key=f"{shared.FT_SIZE_KEY}_offline").select(448).run()
    assert "px (median)" not in words(app)
    app.button(key="finetune_start").click().run()
    assert "preprocess.input_size=448" in asked[0]["overrides"]
    assert build_config(asked[0]).preprocess.input_size == 448
    app.text_area(key=shared.FT_MORE_KEY).input("preprocess.input_size=96").run()
    app.button(key="finetune_start").click().run()
    assert build_config(asked[1]).preprocess.input_size == 96  # a size that is not offered


def test_a_change_of_language_keeps_the_recipe(
    app: AppTest, phantom_folder: Path, tmp_path: Path
) -> None:
    choose(app, phantom_folder, [], tmp_path)
    app.selectbox(key=shared.FT_RECIPE_KEY).select("report")
    app.radio(key=shared.FT_OBJECTIVE_KEY).set_value("metric-ensemble").run()
    app.session_state[LANGUAGE_KEY] = "zh_CN"
    app.run()
    recipe = app.selectbox(key=shared.FT_RECIPE_KEY)
    objective = app.radio(key=shared.FT_OBJECTIVE_KEY)
    assert (recipe.value, objective.value) == ("report", "metric-ensemble")
    # A browser keeps the old words unless it is told the new.
    places = (
        (recipe, RECIPES.index("report")),
        (objective, list(OBJECTIVES).index("metric-ensemble")),
    )
    for shown, place in places:
        assert shown.proto.set_value
        assert shown.proto.raw_value == shown.options[place]


def test_data_that_cannot_be_trained_on_is_said_plainly(
    app: AppTest, phantom_folder: Path, tmp_path: Path
) -> None:
    counts = {"train": {"normal": 40, "disease": 3}, "val": {"normal": 30, "disease": 30}}
    choose(app, phantom_folder, list(judge(report(readable=counts))), tmp_path)
    shown = words(app)
    assert "Training cannot start" in shown
    assert "Class “disease” has 3 readable training images; 8 are needed." in shown
    assert "There are no test images" in shown
    app.text_input(key=shared.FT_NAME_KEY).input("eyes").run()
    assert app.button(key="finetune_start").disabled


def test_what_the_data_are_taken_for_is_said_and_can_be_changed(
    app: AppTest, phantom_folder: Path, tmp_path: Path
) -> None:
    place = f"{shared.FT_OPTIONS_KEY}_{phantom_folder}"
    app.selectbox(key=shared.FT_FOLDER_KEY).select("data").run()
    shown = words(app)
    assert "“disease” is the disease, because “normal” says that nothing was found." in shown
    assert app.selectbox(key=f"{place}_disease").value == "disease"
    app.selectbox(key=f"{place}_disease").select("normal").run()
    assert "because you said so" in words(app)
    assert "reads like the class without one" in words(app)
    said = DataOptions(disease_class="normal", patients="none")
    app.selectbox(key=f"{place}_patients").select("none").run()
    put_job(tmp_path / "ck", "audit", audit_params(phantom_folder, said), "done", result_of([]))
    app.run()
    assert "Nothing suspicious was found" in words(app)


def test_a_number_is_no_disease_until_somebody_says_so(
    app: AppTest, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = tmp_path / "places" / "numbered"
    for name, number in (("normal", "0"), ("disease", "1, [red]*x*")):
        shutil.copytree(next(phantom_folder.rglob(name)), numbered / number)
    monkeypatch.setenv("NEIGHBORDX_DATA", str(numbered.parent))
    app.run()
    app.selectbox(key=shared.FT_FOLDER_KEY).select("numbered").run()
    assert "Which class is the disease?" in words(app)
    assert r"1, \[red\]\*x\*" in words(app)
    assert app.button(key="finetune_check").disabled
    place = f"{shared.FT_OPTIONS_KEY}_{numbered.resolve()}"
    app.selectbox(key=f"{place}_disease").select("1, [red]*x*").run()
    assert not app.button(key="finetune_check").disabled


def test_warnings_share_one_box_and_their_pictures_one_fold(
    app: AppTest, phantom_folder: Path, tmp_path: Path
) -> None:
    few = {"train": {"normal": 40, "disease": 40}, "val": {"normal": 9, "disease": 8},
           "test": {"normal": 12, "disease": 1}}  # fmt: skip
    twins = (Duplicates(("train/a.png", "val/b.png"), across_splits=True, across_labels=False),)
    found = list(judge(report(readable=few, exact_duplicates=twins)))
    choose(app, phantom_folder, found, tmp_path)
    assert not app.exception
    (box,) = app.warning
    assert (
        "9 validation images of “normal”; 8 validation images of “disease”; 12 test images of"
        in box.value
    )
    assert "1 group of identical images lies in more than one split" in box.value
    assert [fold.label for fold in app.expander].count("Review these images") == 1


def test_a_page_says_in_english_what_core_says() -> None:
    few = {"train": {"normal": 7, "disease": 50}, "val": {"normal": 1, "disease": 29}}
    for n in (1, 2):
        groups = tuple(
            Duplicates((f"a{i}", f"b{i}"), across_splits=leak, across_labels=labels)
            for leak, labels in ((True, False), (False, True), (False, False))
            for i in range(n)
        )
        findings = judge(
            report(
                readable=few,
                exact_duplicates=groups,
                near_duplicates=groups,
                unreadable=(("x.png", "no"),) * n,
                groups_across_splits=("p1", "p2")[:n],
            )
        )
        assert len({f.code for f in findings}) == 12
        for finding in findings:
            assert say(finding, clean=str) == finding.message


def test_an_upload_that_a_job_needs_is_not_deleted(
    tmp_path: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "ck"
    upload = checkpoints / ".data" / "eyes-1"
    shutil.copytree(phantom_folder, upload)
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(checkpoints))
    monkeypatch.setenv("NEIGHBORDX_DATA", str(tmp_path / "none"))
    app = AppTest.from_file(str(ROOT / "pages" / "finetune.py"), default_timeout=120)
    app.run()
    app.selectbox(key=shared.FT_FOLDER_KEY).select("eyes-1").run()
    put_job(checkpoints, "train", {"name": "eyes", "data": str(upload)}, "running")
    app.button(key="finetune_delete_data").click().run()
    assert "Jobs are using these images: eyes" in words(app)
    assert "finetune_delete_yes" not in [button.key for button in app.button]


def test_what_a_training_will_take_is_shown_with_and_without_a_graphics_card(
    app: AppTest, phantom_folder: Path, tmp_path: Path
) -> None:
    choose(app, phantom_folder, [], tmp_path)
    app.text_input(key=shared.FT_NAME_KEY).input("eyes").run()
    wanted = {
        "data": str(phantom_folder.resolve()), "options": {}, "preset": "offline",
        "recipe": "robust", "objective": "triplet", "is_ensemble": False,
        "overrides": ["train.epochs=6"], "cache_trunk": True, "is_synthetic": False,
    }  # fmt: skip
    cost = {
        "total_s": 600, "start_s": 10, "trunk_s": 400, "fit_s": 150, "finish_s": 40,
        "memory_bytes": 2e9, "memory_free_bytes": 9e9, "disk_bytes": 3e8, "disk_free_bytes": 9e9,
        "device": "cpu", "gpu_name": "", "gpu_bytes": 0, "gpu_free_bytes": 0, "has_disk": True,
        "has_memory": True, "has_gpu_memory": True,
    }  # fmt: skip
    put_job(tmp_path / "ck", "trial", wanted, "done", cost)
    app.run()
    assert {m.label: m.value for m in app.metric} == {
        "Time": "10 min", "Memory": "2.0 GB", "GPU memory": "no GPU",
        "Disk during training": "300 MB",
    }  # fmt: skip
    gpu = {"device": "cuda:0", "gpu_name": "Card", "gpu_bytes": 5e9, "gpu_free_bytes": 4e9}
    put_job(tmp_path / "ck", "trial", wanted, "done", {**cost, **gpu, "has_gpu_memory": False})
    app.run()
    assert "5.0 GB" in [m.value for m in app.metric]
    assert "Only 4.0 GB of GPU memory is free now." in words(app)


def test_jobs_of_everybody_are_listed_with_how_they_ended(app: AppTest, tmp_path: Path) -> None:
    for status in ("done", "failed", "cancelled", "running", "queued"):
        put_job(tmp_path / "ck", "train", {"name": f"model-{status}"}, status)
    app.run()
    shown = words(app)
    assert not app.exception
    for status in ("done", "failed", "cancelled", "running", "queued"):
        assert f"model\\-{status}" in shown
    assert shown.count("The disk is full\\: 3 MB are free.") == 1
    labels = [button.label for button in app.button]
    assert labels.count("Cancel") == 2
    assert labels.count("Resume") == 2


def test_a_job_says_at_once_that_it_starts_and_that_it_is_cancelled(
    app: AppTest, tmp_path: Path
) -> None:
    folder = put_job(tmp_path / "ck", "train", {"name": "eyes"}, "running")
    app.run()
    assert app.get("progress")[0].proto.text == "Starting: loading libraries and data …"
    words = {"progress": 0.1, "message": "running the trunks: 3 of 40 images"}
    state.write_json(folder / "progress.json", words)
    app.run()
    assert app.get("progress")[0].proto.text == "Reading the images, 3 of 40"
    key = f"cancel-{folder.name}"
    app.button(key=key).click().run()
    assert (app.button(key=key).label, app.button(key=key).disabled) == ("Cancelling …", True)
    with state.hold_queue(folder.parent):
        state.transition(folder, "cancelled")
        state.transition(folder, "queued", supervisor=state.identify(os.getpid()))
    app.run()
    assert (app.button(key=key).label, app.button(key=key).disabled) == ("Cancel", False)


def test_the_step_is_short_in_every_language(app: AppTest, tmp_path: Path) -> None:
    folder = put_job(tmp_path / "ck", "train", {"name": "eyes"}, "running")
    record = {"step": 20.0, "n_steps": 120, "loss": 1.0, "active": 0.5, "spread": 0.5,
              "adapter_lr": 1e-3, "tail_lr": 0.0}  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(record), encoding="utf-8")
    app.session_state[LANGUAGE_KEY] = "zh_CN"
    app.run()
    assert not app.exception
    assert app.metric[0].value == "20 / 120"


def test_the_curves_show_what_was_measured() -> None:
    validation = {
        "accuracy": 0.8,
        "auroc": 0.9,
        "k_scores": [{"k": 5, "accuracy": 0.7, "auroc": 0.8}],
        "map": {"xy": [[0, 1], [2, 3]], "is_disease": [True, False]},
    }
    records = [{"step": 20.0, "loss": 2.0}, {"step": 40.0, "loss": 1.0, "validation": validation}]
    figure = build_lines(records, {"loss": "loss"}, x_title="step")
    assert list(figure.data[0].y) == [2.0, 1.0]
    rates = [{"step": 20.0, "lr": 1e-3}, {"step": 40.0, "lr": 0.0}]
    figure = build_lines(rates, {"lr": "rate"}, x_title="step", is_log=True)
    assert (list(figure.data[0].x), figure.layout.yaxis.type) == ([20.0], "log")
    figure = build_lines(rates[1:], {"lr": "rate"}, x_title="step", is_log=True)
    assert (list(figure.data[0].y), figure.layout.yaxis.type) == ([0.0], "linear")
    figure = build_validation(records, accuracy="a", auroc="b", x_title="step")
    assert [list(line.y) for line in figure.data] == [[0.8], [0.9]]
    assert list(build_k_curve(validation["k_scores"], accuracy="a", auroc="b").data[0].x) == [5]
    figure = build_growing_map(validation["map"], disease="d", other="n")
    assert {t.name: list(t.x) for t in figure.data} == {"n": [2], "d": [0]}
