"""The gate, the recorded history, roll-back, and the comparison that the gate relies on."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock

from core.assessment import activation_gate
from core.assessment.activation_gate import (
    activate,
    check_gate,
    find_previous,
    read_history,
    roll_back,
)
from core.assessment.model_comparison import (
    Comparison,
    ImageRow,
    compare_models,
    compare_subgroups,
    find_comparison,
    read_subgroups,
    save_comparison,
)
from core.config import Settings
from core.data.datasets import read_dataset
from core.errors import CheckpointError, ConfigError
from core.gallery.corrections import Change
from core.gallery.corrections_db import open_store
from core.models import registry
from core.models.registry import find_model, load_bundle
from core.models.seal import write_seal
from core.stats.paired_tests import DeLong, McNemar

SETTINGS = Settings(device="cpu")


@pytest.fixture
def models(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """Two models; demo-triplet is in use."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("demo-triplet", "demo-metric"):
        shutil.copytree(tiny_checkpoints / name, folder / name)
    registry.activate(folder, "demo-triplet")
    return folder


def set_answers(folder: Path, p_disease: list[float]) -> None:
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    truth = [True, True, True, False, False]
    metrics["validation_answers"] = {
        "keys": list("abcde"), "groups": [""] * 5, "is_disease": truth, "p_disease": p_disease,
    }  # fmt: skip
    path.write_text(json.dumps(metrics), encoding="utf-8")
    write_seal(folder)


GOOD, BAD = [0.9, 0.8, 0.7, 0.2, 0.1], [0.9, 0.3, 0.7, 0.4, 0.1]


def test_a_model_that_is_not_worse_passes_and_is_written_down(models: Path) -> None:
    set_answers(models / "demo-triplet", BAD)
    set_answers(models / "demo-metric", GOOD)
    verdict = check_gate(models, "demo-metric")
    assert (verdict.passed, verdict.code, verdict.evidence, verdict.n) == (
        True, "passed", "validation", 5,
    )  # fmt: skip
    assert verdict.accuracy_change == pytest.approx(0.2)
    assert verdict.auroc_change == pytest.approx(1 - 5 / 6)
    entry = activate(models, "demo-metric")
    assert registry.active_model_id(models) == "demo-metric"
    assert (entry.action, entry.previous) == ("activate", "demo-triplet")
    assert read_history(models) == [entry]
    assert roll_back(models, reason="it felt wrong").model_id == "demo-triplet"
    assert registry.active_model_id(models) == "demo-triplet"
    assert [e.action for e in read_history(models)] == ["activate", "roll-back"]
    assert find_previous(models) is None
    with pytest.raises(CheckpointError, match="no earlier model"):
        roll_back(models)


def test_a_worse_model_needs_a_reason_that_is_written_down(models: Path) -> None:
    set_answers(models / "demo-triplet", GOOD)
    set_answers(models / "demo-metric", BAD)
    assert check_gate(models, "demo-metric").code == "worse"
    assert check_gate(models, "demo-metric", limit=0.5).passed
    for reason in ("", "  because  "):
        with pytest.raises(ConfigError, match="the gate does not pass"):
            activate(models, "demo-metric", reason=reason)
    assert registry.active_model_id(models) == "demo-triplet"
    assert read_history(models) == []
    entry = activate(models, "demo-metric", reason="It is far faster on our scanner.")
    assert (entry.action, entry.gate) == ("override", "worse")
    assert read_history(models)[0].reason == "It is far faster on our scanner."


def test_without_common_images_nothing_is_assumed(models: Path) -> None:
    set_answers(models / "demo-triplet", GOOD)
    path = models / "demo-metric" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["validation_answers"]["keys"] = ["other"]
    path.write_text(json.dumps(metrics), encoding="utf-8")
    verdict = check_gate(models, "demo-metric")
    assert (verdict.passed, verdict.code) == (False, "incomparable")
    assert check_gate(models, "demo-triplet").code == "same"
    with pytest.raises(CheckpointError, match="no model"):
        check_gate(models, "ghost")


def comparison_of(models: Path, *, harmed: bool) -> Comparison:
    rows = tuple(ImageRow(f"i{i}", i < 10, 0.9 if i < 10 else 0.1, 0.8, "same") for i in range(20))
    groups = compare_subgroups(
        rows, {"sex": {f"i{i}": "f" if i < 10 else "m" for i in range(20)}}, limit=0.02
    )
    data_id = find_model(models, "demo-metric").data_id
    hashes = [find_model(models, n).weights_sha256 for n in ("demo-triplet", "demo-metric")]
    return Comparison(
        "demo-triplet", "demo-metric", *hashes, "data", "test", "now", 20, 0.9, 0.9,
        McNemar(1, 1, 1.0), DeLong(0.9, 0.9, 0.0, 1.0), rows, groups if harmed else (), 0,
        first_gallery=data_id, second_gallery=data_id, n_known=0,
    )  # fmt: skip


def test_a_kept_comparison_counts_and_a_harmed_subgroup_fails(models: Path) -> None:
    set_answers(models / "demo-triplet", GOOD)
    set_answers(models / "demo-metric", BAD)
    kept = comparison_of(models, harmed=False)
    save_comparison(models, kept)
    verdict = check_gate(models, "demo-metric")
    assert (verdict.passed, verdict.evidence, verdict.n) == (True, "comparison", 20)
    save_comparison(models, comparison_of(models, harmed=True))
    verdict = check_gate(models, "demo-metric")
    assert (verdict.passed, verdict.code, verdict.harmed) == (False, "harmed", "sex=m")
    save_comparison(models, dataclasses.replace(kept, second_sha256="of a namesake"))
    assert check_gate(models, "demo-metric").evidence == "validation"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"split": "val"}, "split"),
        ({"n_known": 1}, "known"),
        ({"n_known": None}, "older"),
        ({"second_gallery": "corrected"}, "gallery"),
    ],
)
def test_a_comparison_that_is_no_evidence_does_not_count(
    models: Path, changes: dict, why: str
) -> None:
    set_answers(models / "demo-triplet", GOOD)
    set_answers(models / "demo-metric", BAD)
    clean = comparison_of(models, harmed=False)
    leaky = dataclasses.replace(clean, **changes)
    save_comparison(models, leaky)
    verdict = check_gate(models, "demo-metric")
    assert (verdict.code, verdict.evidence, verdict.set_aside) == ("worse", "validation", why)
    assert "The kept comparison does not count" in verdict.message
    save_comparison(models, clean)
    assert check_gate(models, "demo-metric").passed
    if why != "gallery":  # it counted as evidence when it was made
        save_comparison(models, leaky)
        assert check_gate(models, "demo-metric").passed, "the clean one is still there"


def test_a_corrected_gallery_makes_a_comparison_old(models: Path) -> None:
    set_answers(models / "demo-triplet", GOOD)
    set_answers(models / "demo-metric", BAD)
    save_comparison(models, comparison_of(models, harmed=False))
    assert check_gate(models, "demo-metric").evidence == "comparison"
    settings = dataclasses.replace(SETTINGS, checkpoints_dir=models)
    bundle = load_bundle(models, "demo-metric", settings=settings)
    given, names = bundle.gallery, bundle.class_names
    labels = {k: names[i] for k, i in zip(given.keys, given.labels.tolist(), strict=True)}
    key = given.keys[0]
    other = next(name for name in names if name != labels[key])
    with contextlib.closing(open_store(settings)) as store:
        store.apply(
            bundle.lead.config.data_id, [Change(key, "label", other)], given_labels=labels,
            expected_version=0,
        )  # fmt: skip
    assert check_gate(models, "demo-metric").set_aside == "gallery"


def test_images_that_a_model_knows_are_counted(tiny_checkpoints: Path, tmp_path: Path) -> None:
    home = tiny_checkpoints / ".demo-data"
    model = load_bundle(tiny_checkpoints, "demo-metric", settings=SETTINGS)
    data = read_dataset(home, val_fraction=0.25)
    found = compare_models(model, model, data, split="val", hashes=("h", "h"))
    assert (found.n_known, found.is_evidence) == (found.n, False), "it was validated on them"
    assert (found.first_gallery, found.second_gallery) == (data.data_id, data.data_id)
    for name in ("normal", "disease"):  # copies under other names in other data's test split
        for i, record in enumerate(data.subset("test")):
            if f"/{name}/" in record.key:
                copy(home / record.key, tmp_path / "train" / name / f"{i}.png")
        copies = [key for key in model.gallery.keys if f"/{name}/" in key][:2]
        copies += [r.key for r in data.subset("val") if f"/{name}/" in r.key][:1]
        for i, key in enumerate(copies):
            copy(home / key, tmp_path / "test" / name / f"copy{i}.png")
    away = read_dataset(tmp_path, val_fraction=0.25)
    found = compare_models(model, model, away, split="test", hashes=("h", "h"))
    assert (found.n_known, found.is_evidence) == (6, False)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def test_subgroups_by_hand() -> None:
    rows = [
        ImageRow("a", True, 0.9, 0.9, "same"),
        ImageRow("b", True, 0.9, 0.1, "broken"),
        ImageRow("c", False, 0.9, 0.1, "fixed"),
    ]
    one, two = compare_subgroups(rows, {"site": {"a": "x", "b": "x", "c": "y"}}, limit=0.02)
    assert (one.value, one.n, one.accuracy_first, one.accuracy_second) == ("x", 2, 1.0, 0.5)
    assert not one.is_harmed  # two images prove nothing
    assert (two.value, two.accuracy_second, two.p_value) == ("y", 1.0, 1.0)


def test_a_subgroups_test_counts_patients() -> None:
    rows = [ImageRow(f"i{i}", True, 0.9, 0.1, "broken", group="one") for i in range(12)]
    (found,) = compare_subgroups(rows, {"site": {r.key: "x" for r in rows}}, limit=0.02)
    assert (found.accuracy_second, found.p_value) == (0.0, 1.0), "12 images of one patient"


def test_columns_of_a_manifest_make_subgroups(tmp_path: Path) -> None:
    lines = ["file,split,label,sex,note"]
    lines += [f"i{i}.png,test,normal,{'fm'[i % 2]},{i}" for i in range(20)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    keys = [f"i{i}.png" for i in range(20)]
    columns = read_subgroups(tmp_path, keys)
    assert set(columns) == {"sex"}  # notes are different for every image
    assert columns["sex"]["i3.png"] == "m"
    assert read_subgroups(tmp_path / "none", keys) == {}


def test_two_models_image_by_image(tiny_checkpoints: Path, tmp_path: Path) -> None:
    data = read_dataset(tiny_checkpoints / ".demo-data", val_fraction=0.25)
    one, two = (
        load_bundle(tiny_checkpoints, name, settings=SETTINGS)
        for name in ("demo-triplet", "demo-metric")
    )
    told: list[float] = []
    found = compare_models(
        one, two, data, split="test", hashes=("h1", "h2"), pictures=tmp_path / "p",
        progress=lambda done, _: told.append(done),
    )  # fmt: skip
    assert found.n == len(found.rows) == 16
    broken = [r for r in found.rows if r.change == "broken"]
    fixed = [r for r in found.rows if r.change == "fixed"]
    assert (found.mcnemar.n_only_first, found.mcnemar.n_only_second) == (len(broken), len(fixed))
    assert found.accuracy_second - found.accuracy_first == pytest.approx(
        (len(fixed) - len(broken)) / 16
    )
    assert all((tmp_path / "p" / r.picture).is_file() for r in (*broken, *fixed))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert found.data_root == str((tiny_checkpoints / ".demo-data").resolve())
    assert (found.n_known, found.is_evidence) == (0, True)
    save_comparison(tmp_path, found)
    assert find_comparison(tmp_path, ("demo-triplet", "h1"), ("demo-metric", "h2")) == found
    assert find_comparison(tmp_path, ("demo-triplet", "h1"), ("demo-metric", "h3")) is None
    same = compare_models(one, one, data, split="test", hashes=("h1", "h1"))
    assert {row.change for row in same.rows} == {"same"}
    assert same.mcnemar.p_value == 1.0
    assert np.isclose(same.delong.difference, 0.0)


def test_a_way_back_that_fails_leaves_history_and_model_as_they_are(models: Path) -> None:
    activate(models, "demo-metric", reason="It is far faster on our scanner.")
    place = models / "demo-triplet" / "config.json"
    good = place.read_text(encoding="utf-8")

    def fail(match: str) -> str:
        with pytest.raises(CheckpointError, match=match) as caught:
            roll_back(models)
        assert registry.active_model_id(models) == "demo-metric"
        assert len(read_history(models)) == 1
        assert find_previous(models) == "demo-triplet"
        return str(caught.value.code)

    place.write_text("{", encoding="utf-8")
    assert fail("was in use before, but cannot be loaded") == "checkpoint.damaged"
    anew = json.loads(good) | {"weights_sha256": "0" * 64}
    place.write_text(json.dumps(anew), encoding="utf-8")
    assert fail("was made anew under this name") == "checkpoint.replaced"
    path = models / activation_gate._FILE  # an entry from an older version without it
    past = json.loads(path.read_text(encoding="utf-8"))
    del past[0]["previous_sha256"]
    used = {**past[0], "model_id": "demo-triplet", "previous": "", "weights_sha256": "then"}
    path.write_text(json.dumps([used, *past]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="was made anew"):
        roll_back(models)
    place.write_text(good, encoding="utf-8")
    path.write_text(json.dumps(past), encoding="utf-8")
    assert roll_back(models).model_id == "demo-triplet"


def test_what_cannot_be_made_is_not_written_down(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_directory: Path, _model_id: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(registry, "activate", fail)
    with pytest.raises(OSError, match="no space"):
        activate(models, "demo-metric", reason="It is far faster on our scanner.")
    assert read_history(models) == []


def test_a_damaged_history_is_said_and_not_overwritten(models: Path) -> None:
    (models / activation_gate._FILE).write_text("[{]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is damaged"):
        activate(models, "demo-metric", reason="It is far faster on our scanner.")
    assert registry.active_model_id(models) == "demo-triplet"


def test_two_at_once_are_told_to_wait(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_gate, "_PATIENCE_S", 0.0)
    with FileLock(models / ".activation.lock"):
        with pytest.raises(CheckpointError, match="is putting a model to use") as caught:
            activate(models, "demo-metric", reason="It is far faster on our scanner.")
        assert caught.value.code == "checkpoint.busy"
        with pytest.raises(CheckpointError, match="is putting a model to use"):
            roll_back(models)
    assert read_history(models) == []


def test_what_killed_writers_left_is_removed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = f".writing-x-{os.getpid()}"
    gone = (".writing-m-4194302", ".deleted-m-4194302", ".importing-a1-4194302")
    for name in (*gone, mine, ".runs-of-x"):
        (models / name).mkdir()
    registry.clean_leftovers(models)
    assert {p.name for p in models.glob(".*")} == {".runs-of-x", mine}
    # a restarted container: its first process has the writer's id
    monkeypatch.setattr(psutil.Process, "create_time", lambda _process: time.time() + 60.0)
    registry.clean_leftovers(models)
    assert [p.name for p in models.glob(".*")] == [".runs-of-x"]
