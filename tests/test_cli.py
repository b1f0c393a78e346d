"""The command line: exit codes, one clear line on bad input, the agreed JSON."""

import errno
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from core.cli import terminal
from core.explanations.methods import list_offered
from core.export.formats import CASE_FORMATS
from core.images.decode import decode

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def test_predict_answers_good_files_and_names_the_bad_one(
    run, tiny_checkpoints: Path, tmp_path: Path
) -> None:
    eyes = sorted((tiny_checkpoints / ".demo-data" / "test").rglob("*.png"))[:2]
    (tmp_path / "note.png").write_text("not a picture", encoding="utf-8")
    files = [*map(str, eyes), str(PYDICOM_FILES / "CT_small.dcm"), str(tmp_path / "note.png")]
    out, table, maps = tmp_path / "out.json", tmp_path / "out.csv", tmp_path / "maps"
    code = run(
        "predict", "--model", "demo", *files,
        "--json", str(out), "--csv", str(table), "--explain", str(maps),
    )  # fmt: skip
    assert code == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["status"] for row in rows][-1] == "rejected"
    assert "text" in rows[-1]["error"]
    assert all(row["error"] is None for row in rows[:3])
    assert sum(n["share"] for n in rows[0]["neighbours"]) == pytest.approx(1.0, abs=1e-5)
    for file in rows[0]["heatmaps"].values():
        assert decode(Path(file).read_bytes()).pixels.shape == (96, 96, 3)
    assert len(table.read_text(encoding="utf-8").splitlines()) == 5


def test_heatmaps_of_files_with_long_names_are_written_each_under_its_own(
    run, tiny_checkpoints: Path, tmp_path: Path
) -> None:
    eye = next((tiny_checkpoints / ".demo-data" / "test").rglob("*.png"))
    files = [tmp_path / f"{'图' * 80}{end}.png" for end in "ab"]
    for file in files:
        shutil.copy2(eye, file)
    out, maps = tmp_path / "out.json", tmp_path / "maps"
    arguments = ["predict", "--model", "demo-triplet", *map(str, files), "--json", str(out)]
    assert run(*arguments, "--explain", str(maps)) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    written = [file for row in rows for file in row["heatmaps"].values()]
    assert len(set(written)) == len(written) > 2
    assert sorted(written) == sorted(str(path) for path in maps.iterdir())


def test_a_folder_that_cannot_hold_heatmaps_is_refused_before_the_first_image(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "maps"
    taken.write_text("a file", encoding="utf-8")
    monkeypatch.setattr("core.images.decode.load", lambda _path: pytest.fail("an image was read"))
    assert run("predict", "--model", "demo", str(taken), "--explain", str(taken)) == 2
    assert f"Error: cannot write {taken} (File exists)" in capsys.readouterr().err


def test_heatmaps_are_drawn_by_the_method_asked_for(
    run, tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = next((tiny_checkpoints / ".demo-data" / "test").rglob("*.png"))
    command = ["predict", "--model", "demo-triplet", str(eye), "--explain"]
    for method in list_offered():
        assert run(*command, str(tmp_path / method), "--heatmap-method", method) == 0
    first, second = (
        [p.read_bytes() for p in sorted((tmp_path / m).iterdir())] for m in list_offered()
    )
    assert len(first) == len(second) > 0
    assert first != second
    capsys.readouterr()
    assert run(*command, str(tmp_path / "x"), "--heatmap-method", "guess") == 2
    assert "unknown method 'guess'; choose one of grad-cam" in capsys.readouterr().err


def test_cases_are_exported_in_every_format_asked_for(
    run, tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = next((tiny_checkpoints / ".demo-data" / "test").rglob("*.png"))
    (tmp_path / "note.png").write_text("not a picture", encoding="utf-8")
    command = ["predict", "--model", "demo-triplet", str(eye), str(tmp_path / "note.png")]
    formats = [part for key in CASE_FORMATS for part in ("--export", key)]
    folder = tmp_path / "cases"
    assert run(*command, *formats, "--to", str(folder)) == 0
    expected = {f"0000-{eye.stem}{export.suffix}" for export in CASE_FORMATS.values()}
    assert {path.name for path in folder.iterdir()} == expected
    report = pydicom.dcmread(folder / f"0000-{eye.stem}-report.dcm")
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    capsys.readouterr()
    assert run(*command, "--export", "docx") == 2
    assert (
        f"unknown format 'docx'; choose among {', '.join(CASE_FORMATS)}." in capsys.readouterr().err
    )


def test_undefined_numbers_are_null_in_json(tmp_path: Path) -> None:
    terminal.write_json(tmp_path / "x.json", {"p": float("nan"), "rows": ({"loss": math.inf}, 0.5)})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"p": None, "rows": [{"loss": None}, 0.5]}


def test_without_json_the_result_goes_to_standard_output(
    run, tiny_checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = next((tiny_checkpoints / ".demo-data" / "test").rglob("*.png"))
    assert run("predict", "--model", "demo", str(eye)) == 0
    assert json.loads(capsys.readouterr().out)[0]["model_id"] == "demo"


def test_evaluate_models_audit_and_demo(
    run, tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_checkpoints / ".demo-data"
    out = tmp_path / "out.json"
    assert run("evaluate", "--model", "demo", "--data", str(data), "--json", str(out)) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["n"] == 16
    assert run("models", "--json", str(out)) == 0
    listed = json.loads(out.read_text(encoding="utf-8"))
    assert [m["model_id"] for m in listed] == ["demo", "demo-metric", "demo-triplet"]
    assert [m["is_active"] for m in listed] == [True, False, False]
    assert run("audit", "--data", str(data), "--json", str(out)) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["n_images"] == 64
    before = (tiny_checkpoints / "demo" / "config.json").stat().st_mtime_ns
    assert run("demo") == 0
    assert (tiny_checkpoints / "demo" / "config.json").stat().st_mtime_ns == before
    assert "exists" in capsys.readouterr().err


def test_evaluate_says_which_images_the_model_was_trained_on(
    run,
    tiny_checkpoints: Path,
    seen_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    arguments = ["evaluate", "--model", "demo-triplet", "--json", str(out), "--data"]
    assert run(*arguments, str(seen_folder)) == 0
    assert (
        "Warning: The model was trained or calibrated on 6 of these 8 images"
        in capsys.readouterr().err
    )
    value = json.loads(out.read_text(encoding="utf-8"))
    assert (value["n_in_gallery"], value["n_in_validation"], value["is_fitted_on"]) == (4, 2, True)
    data = str(tiny_checkpoints / ".demo-data")
    assert run(*arguments, data, "--split", "val") == 0
    assert "Warning: These are images that the model was trained on" in capsys.readouterr().err
    assert run(*arguments, data) == 0
    assert "Warning" not in capsys.readouterr().err
    value = json.loads(out.read_text(encoding="utf-8"))
    assert (value["n_in_gallery"], value["is_fitted_on"]) == (0, False)


def test_ensemble_of_two_models_and_its_refusals(
    run, tiny_checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ("ensemble", "--members", "demo-triplet,demo-metric", "--name")
    assert run(*pair, "gated", "--min-val-accuracy", "1.0") == 2
    assert "below the minimum of 1.00 for voting" in capsys.readouterr().err
    assert not (tiny_checkpoints / "gated").exists()
    assert run(*pair, "demo", "--min-val-accuracy", "0") == 2
    assert "exists" in capsys.readouterr().err


def test_train_then_resume_of_a_finished_model(run, tiny_checkpoints: Path, tmp_path: Path) -> None:
    data = str(tiny_checkpoints / ".demo-data")
    arguments = ["train", "--data", data, "--preset", "tiny-random", "--name", "mine"]
    arguments += ["--checkpoints", str(tmp_path), "--set", "train.epochs=1"]
    assert run(*arguments) == 0
    assert run(*arguments, "--resume") == 0
    assert run(*arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "--model", "ghost", "x.png"), "no model 'ghost'"),
        (("train", "--data", "/nowhere", "--name", "m"), "there is no data at /nowhere"),
        (
            ("train", "--data", ".", "--name", "m", "--preset", "huge"),
            "unknown preset 'huge'; choose one of paper",
        ),
        (
            ("train", "--data", ".", "--name", "m", "--objective", "luck"),
            "Input should be 'triplet', 'cross-entropy' or 'metric-ensemble', got 'luck'",
        ),
        (("evaluate", "--model", "demo", "--data", "/nowhere"), "there is no data at /nowhere"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(*arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("Error: ")
    assert message in errors[-1]


def test_paths_that_do_not_exist_have_a_row_unless_none_exists(
    run, tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = str(next((tiny_checkpoints / ".demo-data" / "test").rglob("*.png")))
    out = tmp_path / "out.json"
    arguments = ["predict", "--model", "demo-triplet", "--json", str(out)]
    missing = [str(tmp_path / "typo.png"), str(tmp_path / f"{'x' * 300}.png")]
    assert run(*arguments, *missing) == 2
    assert "there is nothing at" in capsys.readouterr().err
    assert not out.exists()
    assert run(*arguments, eye, *missing) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["file"] for row in rows] == [eye, *missing]
    assert [row["status"] for row in rows[1:]] == ["rejected"] * 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y.png"),
         "Permission denied: /x/y.png"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/none/a"), "the disk is full: "),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full. Free some space"),
        (TimeoutError(), "TimeoutError"),
    ],
)  # fmt: skip
def test_errors_of_the_file_system_are_one_line_and_exit_code_2(
    run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    said: str,
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("core.data.plan.make_plan", refuse)
    assert run("audit", "--data", ".") == 2
    assert capsys.readouterr().err.strip().startswith(f"Error: {said}")


@pytest.mark.slow
def test_predict_on_real_films(run, shared_data: Path, tmp_path: Path) -> None:
    films = sorted((shared_data / "kermany_cxr_1639").rglob("*test*/**/*.*"))[:20]
    files = [str(path) for path in films if path.suffix in (".png", ".jpg", ".jpeg")]
    files += [str(PYDICOM_FILES / n) for n in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm")]
    out = tmp_path / "out.json"
    assert run("predict", "--model", "demo", *files, "--json", str(out)) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == len(files)
    assert np.all([row["error"] is None for row in rows])


def test_what_a_file_is_and_how_it_was_read_is_said(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = pydicom.dcmread(PYDICOM_FILES / "CT_small.dcm")
    raw.PresentationIntentType = "FOR PROCESSING"
    raw.save_as(tmp_path / "raw.dcm")
    out = tmp_path / "out.json"
    files = [str(tmp_path / "raw.dcm"), str(PYDICOM_FILES / "liver_1frame.dcm")]
    assert run("predict", "--model", "demo-triplet", *files, "--json", str(out)) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [n["code"] for n in rows[0]["notices"]] == ["image.for_processing"]
    assert rows[1]["error"].startswith("this DICOM file is a segmentation, not an image")
    told = " ".join(capsys.readouterr().err.split())
    assert "raw.dcm: This is raw detector data (FOR PROCESSING)" in told
