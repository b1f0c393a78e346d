"""The jobs commands: what they print, and their exit codes."""

import json
from pathlib import Path

import pytest

from core import __main__ as cli
from core.jobs import state
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
        (("train", "--data", ".", "--name", "x", "--set", "train.epochs=0"), "epochs must be"),
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
