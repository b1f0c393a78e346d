"""The Fine-tune page without a browser: what it shows of data, jobs and their ends."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core import jobs
from core.audit import AuditReport, Duplicates
from core.jobs import state
from core.jobs.state import Job
from core.readiness import judge
from pages import _shared as shared
from pages._charts_jobs import build_growing_map, build_k_curve, build_lines, build_validation

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
            changes = {"error": "no", "error_code": "job.disk", "error_params": {"free_mb": 3}}
            state.transition(folder, status, **(changes if status == "failed" else {}))
    return folder


def report(**changes: object) -> AuditReport:
    counts = {"train": {"normal": 40, "disease": 40}, "val": {"normal": 30, "disease": 30},
              "test": {"normal": 30, "disease": 30}}  # fmt: skip
    base = AuditReport("id", 200, counts, (1, 1, 1), (1, 1, 1), {}, (), (), (), (), ())
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


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
    assert "No data is on the server yet" in words(app)


def choose(app: AppTest, phantom_folder: Path, findings: list, tmp_path: Path) -> AppTest:
    params = {"data": str(phantom_folder.resolve()), "disease_class": None}
    result = {
        "report": report().to_json(), "class_names": ["normal", "disease"],
        "disease_class": "disease", "findings": [dataclasses.asdict(f) for f in findings],
        "samples": {"normal": [], "disease": []}, "pictures": {}, "labels": {},
    }  # fmt: skip
    put_job(tmp_path / "ck", "audit", params, "done", json.loads(json.dumps(result)))
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

    monkeypatch.setattr(jobs, "start", start)
    choose(app, phantom_folder, [], tmp_path)
    assert "Nothing suspicious was found" in words(app)
    assert app.button(key="finetune_start").disabled
    app.text_input(key=shared.FT_NAME_KEY).input("eyes").run()
    app.number_input(key=shared.FT_SEEDS_KEY).set_value(2).run()
    app.text_area(key=shared.FT_MORE_KEY).input("train.n_views=2\n").run()
    app.button(key="finetune_start").click().run()
    assert not app.exception
    assert [(k, p["name"], p["seed"]) for k, p in asked] == [
        ("train", "eyes-s0", 0), ("train", "eyes-s1", 1),
    ]  # fmt: skip
    assert asked[0][1]["overrides"] == ["train.epochs=6", "train.n_views=2"]
    app.text_area(key=shared.FT_MORE_KEY).input("train.n_views=0").run()
    assert "must be 1..64, got 0" in words(app)


def test_data_that_cannot_be_trained_on_is_said_plainly(
    app: AppTest, phantom_folder: Path, tmp_path: Path
) -> None:
    counts = {"train": {"normal": 40, "disease": 3}, "val": {"normal": 30, "disease": 30}}
    choose(app, phantom_folder, list(judge(report(counts=counts))), tmp_path)
    shown = words(app)
    assert "Training cannot start" in shown
    assert "Class “disease” has 3 readable images in train; 8 are needed." in shown
    assert "There is no test split" in shown
    app.text_input(key=shared.FT_NAME_KEY).input("eyes").run()
    assert app.button(key="finetune_start").disabled


def test_jobs_of_everybody_are_listed_with_how_they_ended(app: AppTest, tmp_path: Path) -> None:
    for status in ("done", "failed", "cancelled", "running", "queued"):
        put_job(tmp_path / "ck", "train", {"name": f"model-{status}"}, status)
    app.run()
    shown = words(app)
    assert not app.exception
    for status in ("done", "failed", "cancelled", "running", "queued"):
        assert f"model\\-{status}" in shown
    assert "The disk is full: " in shown or "no" in shown
    labels = [button.label for button in app.button]
    assert labels.count("Cancel") == 2
    assert labels.count("Resume") == 2


def test_the_weighing_of_an_audit_by_hand() -> None:
    assert judge(report()) == ()
    twice = Duplicates(("a", "b"), across_splits=True, across_labels=True)
    plain = Duplicates(("c", "d"), across_splits=False, across_labels=False)
    found = judge(
        report(
            exact_duplicates=(twice,), near_duplicates=(plain,), groups_across_splits=("p1",),
            unreadable=(("train/normal/x.png", "no"),),
        )
    )  # fmt: skip
    assert [f.code for f in found] == [
        "exact_labels", "exact_leak", "near_repeats", "unreadable", "patients",
    ]  # fmt: skip
    assert {f.severity for f in found} == {"warning"}
    few = {"train": {"normal": 7, "disease": 90}, "val": {"normal": 1, "disease": 40},
           "test": {"normal": 0, "disease": 40}}  # fmt: skip
    blockers = [f for f in judge(report(counts=few)) if f.severity == "blocker"]
    assert [(f.params["split"], f.params["n"]) for f in blockers] == [("train", 7), ("val", 1)]


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
    figure = build_validation(records, accuracy="a", auroc="b", x_title="step")
    assert [list(line.y) for line in figure.data] == [[0.8], [0.9]]
    assert list(build_k_curve(validation["k_scores"], accuracy="a", auroc="b").data[0].x) == [5]
    figure = build_growing_map(validation["map"], disease="d", other="n")
    assert {t.name: list(t.x) for t in figure.data} == {"n": [2], "d": [0]}
