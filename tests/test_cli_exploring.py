"""The gallery commands: findings, gallery, fit-map."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def home(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """Models whose gallery a test can change."""
    for name in ("demo-triplet", "demo-metric", "demo"):
        shutil.copytree(tiny_checkpoints / name, tmp_path / "models" / name)
    return tmp_path / "models"


@pytest.fixture
def checkpoints(home: Path) -> Path:
    return home


def test_findings_are_written_as_json_and_csv(run, tmp_path: Path) -> None:
    out, table = tmp_path / "f.json", tmp_path / "f.csv"
    assert run("findings", "--model", "demo", "--json", str(out), "--csv", str(table)) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == found["n"]
    wrong = [row["file"] for row in rows if row["outcome"] == "wrong"]
    assert {item["file"] for item in found["wrong_when_left_out"]} == set(wrong)
    assert found["leave_one_out_accuracy"] == pytest.approx(1 - len(wrong) / len(rows), abs=1e-6)
    assert found["duplicates"] == []


def test_a_relabel_is_previewed_made_undone_and_listed(
    run, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(home / "demo-triplet" / "gallery.npz", allow_pickle=False) as arrays:
        key = str(arrays["keys"][0])
    history = tmp_path / "h.json"

    def read_history() -> list[dict[str, object]]:
        assert run("gallery", "--model", "demo", "--json", str(history)) == 0
        return list(json.loads(history.read_text(encoding="utf-8")))

    wish = ("gallery", "--model", "demo", "--exclude", key, "--author", "A")
    assert run(*wish, "--dry-run") == 0
    assert "right when left out" in capsys.readouterr().err
    assert read_history() == []
    assert run(*wish) == 0
    assert read_history()[0]["edits"] == [
        {"key": key, "field": "excluded", "old": "", "new": "yes"}
    ]
    assert run("gallery", "--model", "demo-metric", "--undo") == 0  # same data, same gallery
    assert [entry["action"] for entry in read_history()] == ["change", "undo"]
    assert run("gallery", "--model", "demo", "--roll-back", "1") == 0
    assert read_history()[2]["restores"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--relabel", "x.png"), "expected FILE=CLASS"),
        (("--relabel", "x.png=cyst"), "expected FILE=CLASS"),
        (("--exclude", "nowhere.png"), "no image 'nowhere.png'"),
        (("--undo",), "no change left to undo"),
    ],
)
def test_bad_wishes_are_one_line(
    run, arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("gallery", "--model", "demo", *arguments) == 2
    assert reason in capsys.readouterr().err


def test_a_map_is_fitted_and_kept(run, home: Path) -> None:
    assert run("fit-map", "--model", "demo", "--method", "pca", "--dimensions", "3") == 0
    kept = [path.name for folder in home.glob("*/maps") for path in folder.iterdir()]
    assert sum(name.startswith("map-") and name.endswith(".npz") for name in kept) == 1
    assert sum(name.startswith("neighbours-") for name in kept) == 2
    assert run("fit-map", "--model", "demo", "--dimensions", "4") == 2
