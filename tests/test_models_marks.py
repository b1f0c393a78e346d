"""Only what bears a model's mark is a model; everything else beside it is left alone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.config import Settings
from core.errors import CheckpointError, ConfigError, DataError, JobError
from core.files import abandoned
from core.jobs import queue
from core.jobs.uploads import delete_upload
from core.models import marks, registry
from core.models.ensemble import build_ensemble
from core.models.exchange import export_model, import_model
from core.training.demo import build_demo

DEAD = 2**22 - 3  # above the largest process id in use
CPU = Settings(device="cpu")


def put_pictures(folder: Path) -> list[Path]:
    """A user's own folder of images."""
    paths = [folder / "normal" / "a.png", folder / "b.png"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(path)
    return paths


@pytest.fixture
def checkpoints(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """A model called eyes, and a folder of images called xrays."""
    shutil.copytree(tiny_checkpoints / "demo-triplet", tmp_path / "ck" / "eyes")
    put_pictures(tmp_path / "ck" / "xrays")
    return tmp_path / "ck"


def test_a_folder_of_images_is_no_model_and_nothing_touches_it(
    checkpoints: Path, tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in put_pictures(checkpoints / "xrays")}
    assert [m.model_id for m in registry.list_models(checkpoints)] == ["eyes"]
    assert marks.list_foreign(checkpoints) == ["xrays"]
    with pytest.raises(CheckpointError, match="is not a model and is left alone") as caught:
        registry.delete_model(checkpoints, "xrays")
    assert caught.value.code == "checkpoint.foreign"
    for refused in (
        lambda: registry.activate(checkpoints, "xrays"),
        lambda: export_model(checkpoints, "xrays", tmp_path / "x.neighbordx"),
        lambda: registry.load_bundle(checkpoints, "xrays", settings=CPU),
        lambda: marks.check_free(checkpoints, "xrays"),
        lambda: build_ensemble(checkpoints, "xrays", ["eyes"], min_val_accuracy=0.0),
    ):
        with pytest.raises(CheckpointError, match="is not a model and is left alone"):
            refused()
    with pytest.raises((CheckpointError, ConfigError), match="no model 'xrays'"):
        build_ensemble(checkpoints, "both", ["eyes", "xrays"], min_val_accuracy=0.0)
    assert run("delete", "--model", "xrays", "--yes") == 2
    assert "is not a model and is left alone" in capsys.readouterr().err
    assert run("models") == 0
    assert "Not a model: xrays; left alone." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_a_name_held_by_a_users_folder_is_not_said_to_be_a_model(
    checkpoints: Path, tmp_path: Path
) -> None:
    """The advice used to be to delete it."""
    put_pictures(checkpoints / "demo")
    settings = Settings(checkpoints, device="cpu")
    with pytest.raises(JobError, match="is not a model and is left alone"):
        queue.start("train", {"name": "xrays", "data": "/none"}, title="", settings=settings)
    with pytest.raises(CheckpointError, match="is not a model and is left alone"):
        build_demo(settings)
    path = export_model(checkpoints, "eyes", tmp_path / "eyes.neighbordx")
    with pytest.raises(CheckpointError, match="is not a model and is left alone"):
        import_model(checkpoints, path, settings=CPU, name="xrays")
    assert not (checkpoints / ".demo-data").exists()


@pytest.mark.parametrize(
    ("source", "damage"),
    [("demo-metric", "{"), ("demo-metric", "[]"), ("demo-metric", None), ("demo", "{")],
)
def test_a_damaged_model_stays_recognisable_and_deletable(
    tiny_checkpoints: Path, tmp_path: Path, source: str, damage: str | None
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoints / source, directory / "m")
    config = directory / "m" / "config.json"
    if damage is None:
        config.unlink()
    else:
        config.write_text(damage, encoding="utf-8")
    (summary,) = registry.list_models(directory)
    assert summary.problem is not None
    assert marks.list_foreign(directory) == []
    registry.delete_model(directory, "m")
    assert list(directory.iterdir()) == []


def test_a_model_of_another_program_is_foreign(checkpoints: Path) -> None:
    other = checkpoints / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["Bert"]}', encoding="utf-8")
    (other / "model.safetensors").write_bytes(b"x")
    (checkpoints / "notes.txt").write_text("mine", encoding="utf-8")
    assert marks.list_foreign(checkpoints) == ["bert", "notes.txt", "xrays"]


def test_a_model_with_a_users_files_in_its_folder_is_not_deleted(checkpoints: Path) -> None:
    (own,) = [p for p in put_pictures(checkpoints / "eyes" / "mine") if p.name == "b.png"]
    with pytest.raises(CheckpointError, match="no part of a model: mine") as caught:
        registry.delete_model(checkpoints, "eyes")
    assert caught.value.code == "checkpoint.strangers"
    assert own.is_file()
    (checkpoints / "eyes" / "mine").rename(checkpoints / "mine")
    registry.delete_model(checkpoints, "eyes")
    assert not (checkpoints / "eyes").exists()


def test_a_linked_model_loses_its_link_only(checkpoints: Path, tmp_path: Path) -> None:
    (checkpoints / "eyes").rename(tmp_path / "elsewhere")
    (checkpoints / "eyes").symlink_to(tmp_path / "elsewhere")
    assert [m.model_id for m in registry.list_models(checkpoints)] == ["eyes"]
    registry.delete_model(checkpoints, "eyes")
    assert not (checkpoints / "eyes").is_symlink()
    assert (tmp_path / "elsewhere" / "weights.safetensors").is_file()
    assert [p.name for p in checkpoints.iterdir()] == ["xrays"]


def test_tidying_removes_marked_folders_only(checkpoints: Path, tmp_path: Path) -> None:
    """A user's folder may have a name like a temporary one's, and a link leads elsewhere."""
    own = [
        *put_pictures(checkpoints / f".deleted-holiday-{DEAD}"),
        *put_pictures(checkpoints / f".writing-thesis-{DEAD}"),
    ]
    outside = put_pictures(tmp_path / "outside")
    (checkpoints / f".trial-{DEAD}").symlink_to(tmp_path / "outside")
    shutil.copytree(checkpoints / "eyes", checkpoints / f".deleted-eyes-{DEAD}")
    marked = checkpoints / f".importing-x-{DEAD}"
    put_pictures(marked)
    told = {"pid": DEAD, "started": 1.0}
    (marked / abandoned.MARK).write_text(json.dumps(told), encoding="utf-8")
    mine = checkpoints / f".importing-y-{DEAD}"
    mine.mkdir()
    abandoned.mark(mine)  # this process is alive, whatever the name says
    registry.clean_leftovers(checkpoints)
    assert all(path.is_file() for path in (*own, *outside))
    assert {p.name for p in checkpoints.glob(".*")} == {
        f".deleted-holiday-{DEAD}", f".writing-thesis-{DEAD}", f".trial-{DEAD}", mine.name,
    }  # fmt: skip


def test_a_removal_that_was_cut_off_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = abandoned.mark(tmp_path)
    put_pictures(folder)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            abandoned.remove(folder)
    assert abandoned.is_ours(folder)
    abandoned.remove(folder)
    assert not folder.exists()


def test_a_folder_that_no_upload_made_is_not_deleted(tmp_path: Path) -> None:
    own = put_pictures(tmp_path / ".data" / "my-images")
    with pytest.raises(DataError, match="left alone") as caught:
        delete_upload(tmp_path, "my-images")
    assert caught.value.code == "data.not_upload"
    outside = put_pictures(tmp_path / "outside")
    (tmp_path / ".data" / "linked-0123456789").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="left alone"):
        delete_upload(tmp_path, "linked-0123456789")
    assert all(path.is_file() for path in (*own, *outside))


def test_a_run_linked_elsewhere_is_not_deleted(tmp_path: Path) -> None:
    outside = put_pictures(tmp_path / "outside")
    (tmp_path / ".runs").mkdir()
    (tmp_path / ".runs" / "m").symlink_to(tmp_path / "outside")
    queue._delete_runs(tmp_path, ["m"])
    assert all(path.is_file() for path in outside)
    assert os.path.lexists(tmp_path / ".runs" / "m")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_gallery": []}, {"n_gallery": "many"}, {"k": 1.5}, {"validation": []},
        {"validation": {"accuracy": "high"}}, {"validation": None},
    ],
)  # fmt: skip
def test_odd_figures_are_a_problem_of_their_model_alone(
    tiny_checkpoints: Path, tmp_path: Path, changes: dict
) -> None:
    for name in ("demo-triplet", "demo-metric"):
        shutil.copytree(tiny_checkpoints / name, tmp_path / name)
    path = tmp_path / "demo-triplet" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    odd, sound = sorted(registry.list_models(tmp_path), key=lambda model: model.problem is None)
    assert odd.problem is not None
    assert "demo-triplet/metrics.json" in odd.problem
    assert sound.problem is None
