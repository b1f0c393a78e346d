"""Commands for finished models: their output, files and exit codes."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from core.models import registry


@pytest.fixture
def checkpoints(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "ck"
    shutil.copytree(tiny_checkpoints, folder)
    return folder


def test_compare_activate_and_roll_back(
    run, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    data = str(checkpoints / ".demo-data")
    pair = ("--first", "demo", "--second", "demo-metric")
    assert run("compare", *pair, "--data", data, "--json", str(out)) == 0
    assert "McNemar" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["n"] == 16
    assert run("activate", "--model", "demo-metric", "--limit", "1.0") == 0
    assert (
        "on the same 16 images (comparison on test images that neither knew)"
        in capsys.readouterr().out
    )
    assert registry.active_model_id(checkpoints) == "demo-metric"
    assert run("delete", "--model", "demo-metric", "--yes") == 2
    assert run("roll-back", "--reason", "only a test") == 0
    assert registry.active_model_id(checkpoints) == "demo"
    assert run("history", "--json", str(out)) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert [(e["action"], e["reason"]) for e in told] == [
        ("activate", ""), ("roll-back", "only a test"),
    ]  # fmt: skip
    assert run("roll-back") == 2


def test_compare_asks_the_model_which_class_is_disease(
    run, unsaid_checkpoints: Path, tmp_path: Path
) -> None:
    pair = ("--first", "demo-triplet", "--second", "demo-metric")
    place = ("--checkpoints", str(unsaid_checkpoints), "--json", str(tmp_path / "out.json"))
    assert run("compare", *pair, "--data", str(unsaid_checkpoints / ".demo-data"), *place) == 0
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert sum(row["is_disease"] for row in found["rows"]) == 8


def test_export_import_delete_and_card(
    run, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.neighbordx"
    assert run("export", "--model", "demo-triplet", str(file)) == 0
    assert run("import", str(file), "--name", "again") == 0
    assert run("card", "--model", "again") == 0
    assert "Research use, not a diagnosis" in capsys.readouterr().out
    assert run("delete", "--model", "again", "--yes") == 0
    assert not (checkpoints / "again").exists()
    file.write_bytes(b"nonsense")
    assert run("import", str(file)) == 2
    assert "the file is not taken" in capsys.readouterr().err


def test_unpack(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, evil = tmp_path / "good.zip", tmp_path / "evil.zip"
    for path, name in ((good, "x/normal/a.png"), (evil, "../a.png")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    assert run("unpack", str(good)) == 0
    assert (Path(capsys.readouterr().out.strip()) / "a.png").is_file()
    assert run("unpack", str(evil)) == 2
    assert "points out of its folder" in capsys.readouterr().err
    assert run("unpack", str(tmp_path / "none.zip")) == 2
