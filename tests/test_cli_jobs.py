"""The jobs commands: their output and exit codes."""

import json
from pathlib import Path

import pytest

from core import __main__ as cli
from core.config import Settings
from core.images.phantom import write_dataset
from core.jobs import queue, state
from core.jobs.state import Job


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["core", "jobs", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


def test_list_show_and_delete(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    assert "No job yet" in capsys.readouterr().err
    job = Job("20260101-000000-000001", "train", "eyes", {"name": "eyes"}, "2026-01-01")
    with state.hold_queue(state.jobs_dir(tmp_path)):
        folder = state.create(state.jobs_dir(tmp_path), job)
        state.transition(folder, "failed", error="no luck", error_code="job")
    (folder / "log.txt").write_text("a line of the log\n", encoding="utf-8")
    out = tmp_path / "jobs.json"
    assert run("list", "--json", str(out)) == 0
    (listed,) = json.loads(out.read_text(encoding="utf-8"))
    assert (listed["status"], listed["error"]) == ("failed", "no luck")
    assert run("show", job.job_id) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["title"] == "eyes"
    assert "a line of the log" in shown.err
    assert run("delete", job.job_id) == 0
    assert run("show", job.job_id) == 2
    assert "there is no job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cancel", "nothing"), "there is no job 'nothing'"),
        (("resume", "nothing"), "there is no job 'nothing'"),
        (("train", "--data", ".", "--name", "../x"), "expected 1 to 64 letters"),
        (("train", "--data", ".", "--name", "x", "--preset", "huge"), "unknown preset"),
        (("train", "--data", ".", "--name", "x", "--set", "train.epochs=0"), "train.epochs: Input"),
    ],
)
def test_bad_input_queues_nothing(
    run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert state.list_folders(state.jobs_dir(tmp_path)) == []


@pytest.mark.parametrize("command", [("jobs", "train"), ("train",)])
@pytest.mark.parametrize("look", ["--check", "--no-check"])
def test_data_that_cannot_be_trained_on_are_refused_with_the_page_s_sentences(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    look: str,
) -> None:
    write_dataset(tmp_path / "few", n_train=14, n_test=4, size=64)
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path / "ck"))
    few = ("--data", str(tmp_path / "few"), "--preset", "tiny-random", "--name", "m", look)
    monkeypatch.setattr("sys.argv", ["core", *command, *few])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "training cannot start. Class “" in told
    assert "readable training images; 8 are needed." in told
    assert queue.list_jobs(tmp_path / "ck") == []
    assert not list(tmp_path.glob("ck/.runs/*"))


def test_warnings_are_said_and_the_run_is_queued_with_all_its_choices(
    run,
    phantom_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[dict[str, object]] = []

    def start(kind: str, params: dict[str, object], *, title: str, settings: Settings) -> Job:
        asked.append(dict(params))
        return Job("20260101-000000-000009", kind, title, params, str(settings.checkpoints_dir))

    monkeypatch.setattr(queue, "start", start)
    some = ("--set", "train.val_fraction=0.25", "--seed", "4", "--recipe", "report", "--ensemble")
    data = ("--data", str(phantom_folder), "--preset", "tiny-random", "--name", "eyes")
    assert run("train", *data, *some) == 0
    shown = capsys.readouterr()
    assert "figures will be rough." in shown.err
    assert shown.out.strip() == "20260101-000000-000009"
    (params,) = asked
    assert (params["recipe"], params["is_ensemble"], params["seed"]) == ("report", True, 4)
