"""Batches: one row a file whatever it is, kept as they come, resumed after any kill."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from odd_folder import fill

from core.answers import diagnose
from core.config import Settings
from core.export import batch
from core.files.names import show_name
from core.images.decode import encode_png
from core.models.registry import load_bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def eye(tiny_checkpoints: Path) -> Path:
    return next((tiny_checkpoints / ".demo-data" / "test").rglob("*.png"))


def test_a_folder_of_everything_odd_has_one_row_a_file(
    run, eye: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = fill(tmp_path / "odd", eye)
    out, table = tmp_path / "out.json", tmp_path / "out.csv"
    command = ["predict", "--model", "demo-triplet", str(tmp_path / "odd")]
    assert run(*command, "--json", str(out), "--csv", str(table)) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert sorted(row["file"] for row in rows) == sorted(map(show_name, files))
    by_name = {Path(row["file"]).name: row for row in rows}
    for name in ("empty.png", "text.png", "cut.png", "broken", "loop", "up", "pipe.png"):
        assert by_name[name]["status"] == "rejected", name
        assert by_name[name]["error"], name
    for name in ("M\\xfcller.png", "[red]x[-dr].png", "no-suffix", "im.png", "=1+1.png"):
        assert by_name[name]["error"] is None, name
    assert not any(row["error"] and "internal error" in row["error"] for row in rows)
    with table.open(newline="", encoding="utf-8") as handle:
        cells = list(csv.DictReader(handle))
    assert [cell["file"] for cell in cells] == [row["file"] for row in rows]
    shown = capsys.readouterr().err
    assert "2 hidden and system files are left out." in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert not out.with_name("out.json.part").exists()


def test_answers_are_kept_as_they_come_and_a_stopped_batch_goes_on(
    run, eye: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(6):
        shutil.copy2(eye, folder / f"{i}.png")
    out, table, maps = tmp_path / "out.json", tmp_path / "out.csv", tmp_path / "maps"
    command = ["predict", "--model", "demo-triplet", str(folder), "--json", str(out)]
    command += ["--csv", str(table), "--explain", str(maps)]
    answer, asked = batch._diagnose_file, []

    def stop(model, path, extras):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(path.name)
        return answer(model, path, extras)

    monkeypatch.setattr(batch, "_diagnose_file", stop)
    assert run(*command) == 2
    assert "stopped after 3 files: it was interrupted" in capsys.readouterr().err
    assert not out.exists()
    part = tmp_path / "out.json.part"
    kept = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    assert [Path(row["file"]).name for row in kept[1:]] == ["0.png", "1.png", "2.png"]
    with part.open("a", encoding="utf-8") as handle:
        handle.write('{"file": "torn')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(batch, "_diagnose_file", answer)
    assert run(*command) == 2
    assert "left 3 results in" in capsys.readouterr().err
    assert run(*command[:3], str(folder), "--json", str(out), "--resume") == 2
    assert "were made differently (heatmaps)" in capsys.readouterr().err
    seen: list[str] = []
    monkeypatch.setattr(
        batch, "_diagnose_file", lambda m, p, e: (seen.append(p.name), answer(m, p, e))[1]
    )
    shutil.copy2(eye, folder / "00-new.png")  # came while the batch was down
    assert run(*command, "--resume") == 0
    assert sorted(seen) == ["00-new.png", "3.png", "4.png", "5.png"]
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == 7
    pictures = [file for row in rows for file in row["heatmaps"].values()]
    assert len(set(pictures)) == len(pictures) == len(list(maps.iterdir()))
    assert len(table.read_text(encoding="utf-8").splitlines()) == 8
    assert not part.exists()
    written = out.read_bytes()
    assert run(*command, "--resume") == 0
    assert "is complete; nothing to resume" in capsys.readouterr().err
    assert out.read_bytes() == written


def test_an_unforeseen_error_costs_one_row(
    run, eye: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(diagnose, "find_text", fail)
    out = tmp_path / "out.json"
    assert run("predict", "--model", "demo-triplet", str(eye), str(eye), "--json", str(out)) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["status"] for row in rows] == ["rejected"] * 2
    assert "internal error (ZeroDivisionError)" in rows[0]["error"]


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "--model", "demo", "x.png", "--csv"),
        ("predict", "--model", "demo", "x.png", "--json"),
        ("audit", "--data", ".", "--json"),
        ("evaluate", "--model", "demo", "--data", ".", "--json"),
        ("compare", "--first", "a", "--second", "b", "--data", ".", "--json"),
        ("findings", "--model", "demo", "--csv"),
        ("report", "--model", "demo", "--pdf"),
        ("report", "--model", "demo", "--html"),
        ("ablation", "--data", ".", "--json"),
        ("export", "--model", "demo"),
    ],
)
def test_every_output_is_tried_before_work_begins(
    run, command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command, str(tmp_path)) == 2
    assert f"cannot write {tmp_path}: it is a folder; name a file in it." in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert run(*command, str(tmp_path / "file" / "out")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_two_batches_cannot_write_one_file(run, eye: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    about = {"a": 1}
    with batch_journal(out, about):
        assert run("predict", "--model", "demo-triplet", str(eye), "--json", str(out)) == 2
    assert "another process is writing" in capsys.readouterr().err


def batch_journal(out: Path, about: dict):
    from core.files.journal import Journal

    return Journal(out, about, resume=False)


@pytest.mark.slow
def test_data_of_no_utf8_name_go_all_the_way(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path / "ck"))
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnchen [dr x]"))
    rng = np.random.default_rng(0)
    for name, bright in (("normal", 0), ("flu", 90)):
        for i in range(24):
            path = root / name / os.fsdecode(b"M\xfcller %d.png" % i if i % 3 else b"a%d.png" % i)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (rng.integers(0, 120, (64, 64, 3)) + bright).astype(np.uint8)
            path.write_bytes(encode_png(pixels))
    out = tmp_path / "out.json"
    data, model = ("--data", str(root)), ("--model", "m")
    for command in (
        ("audit", *data, "--json", str(out)),
        ("train", *data, "--name", "m", "--preset", "tiny-random", "--set", "train.epochs=1"),
        ("predict", *model, str(root), "--json", str(out), "--csv", str(tmp_path / "out.csv")),
        ("evaluate", *model, *data, "--split", "val"),
        ("findings", *model, "--csv", str(tmp_path / "findings.csv")),
        ("report", *model, "--html", str(tmp_path / "r.html"), "--pdf", str(tmp_path / "r.pdf")),
        ("export", *model, str(tmp_path / "m.neighbordx")),
        ("import", str(tmp_path / "m.neighbordx"), "--name", "copy"),
        ("jobs", "evaluate", *model, *data, "--split", "val", "--wait"),
        ("jobs", "list"),
        ("models",),
    ):
        assert run(*command) == 0, (command[0], capsys.readouterr().err)
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == 48
    assert all(row["error"] is None for row in rows)
    assert "M\\xfcnchen [dr x]" in (tmp_path / "r.html").read_text(encoding="utf-8")
    model_of = load_bundle(tmp_path / "ck", "m", settings=Settings(tmp_path / "ck", device="cpu"))
    assert all(model_of.has_original(i) for i in range(len(model_of.gallery)))


@pytest.mark.slow
def test_a_batch_killed_again_and_again_ends_with_every_answer(
    tiny_checkpoints: Path, eye: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    n_files = 300
    for i in range(n_files):
        os.link(shutil.copy2(eye, tmp_path / "eye.png") if i == 0 else tmp_path / "eye.png",
                folder / f"{i:04d}.png")  # fmt: skip
    out = tmp_path / "out.json"
    command = [
        *(sys.executable, "-m", "core", "predict", "--model", "demo-triplet", str(folder)),
        *("--json", str(out), "--checkpoints", str(tiny_checkpoints), "--resume"),
    ]
    environment = {**os.environ, "NEIGHBORDX_DEVICE": "cpu"}
    rng, before, n_kills = random.Random(0), 0, 0
    while not out.exists():
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        part = out.with_name("out.json.part")
        deadline = time.monotonic() + 120
        target = before + rng.randint(10, 60)
        while process.poll() is None and time.monotonic() < deadline and n_kills < 4:
            time.sleep(0.05)
            n_lines = part.read_bytes().count(b"\n") - 1 if part.exists() else 0
            if n_lines >= target:
                process.send_signal(signal.SIGKILL)
                n_kills += 1
                break
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()[-2000:]
        if process.returncode:
            n_kept = part.read_bytes().count(b"\n") - 1
            assert n_kept >= target
            before = n_kept
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert n_kills == 4
    assert sorted(Path(row["file"]).name for row in rows) == [
        f"{i:04d}.png" for i in range(n_files)
    ]
    assert len({json.dumps(row["probabilities"]) for row in rows}) == 1
