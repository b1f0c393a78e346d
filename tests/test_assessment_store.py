"""Evaluations stored with the bundle: lossless round trip, cells, disputes, robustness."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.assessment.predict_split import SplitReading, evaluate, read_split
from core.assessment.record import Evaluation, order_pair, say_seen, to_json
from core.assessment.robustness import measure_robustness
from core.assessment.run import run_evaluation
from core.assessment.store import (
    list_evaluations,
    load_evaluation,
    load_study,
    save_evaluation,
    save_study,
)
from core.config import Settings
from core.data.datasets import Dataset, read_dataset
from core.errors import CheckpointError
from core.gallery.corrections import Change
from core.gallery.corrections_db import CurationStore, default_url
from core.models.ensemble import Ensemble
from core.models.registry import load_bundle


@pytest.fixture(scope="module")
def directory(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("evaluated") / "checkpoints"
    shutil.copytree(tiny_checkpoints, copy, ignore=shutil.ignore_patterns("evaluations"))
    return copy


@pytest.fixture(scope="module")
def data(directory: Path) -> Dataset:
    return read_dataset(directory / ".demo-data", val_fraction=0.25)


@pytest.fixture(scope="module")
def model(directory: Path) -> Ensemble:
    model = load_bundle(directory, "demo", settings=Settings(device="cpu"))
    assert isinstance(model, Ensemble)
    return model


@pytest.fixture(scope="module")
def evaluation(model: Ensemble, data: Dataset) -> Evaluation:
    return run_evaluation(model, data, split="test")


def test_the_command_and_the_kept_record_agree(
    model: Ensemble, data: Dataset, evaluation: Evaluation
) -> None:
    assert evaluation.result == evaluate(model, data, split="test")
    confusion = evaluation.result["confusion"]
    for cell, n in confusion.items():
        assert len(evaluation.find_cell(cell)) == n
    assert len(evaluation.find_disputed()) == evaluation.result["agreement"]["disagree"]
    rows = evaluation.find_cell("tp")
    assert all(evaluation.is_disease[rows])
    surest = np.abs(evaluation.p_disease[rows] - 0.5)
    assert list(surest) == sorted(surest, reverse=True)


def test_a_saved_evaluation_comes_back_whole(directory: Path, evaluation: Evaluation) -> None:
    columns = {"site": ("a", "b") * 8}
    evaluation = dataclasses.replace(evaluation, columns={**columns, "group": ("1",) * 16})
    save_evaluation(directory, evaluation)
    evaluation = dataclasses.replace(evaluation, columns=columns)  # a patient is not a subgroup
    (summary,) = list_evaluations(directory, "demo")
    assert (summary.n, summary.split, summary.is_current) == (16, "test", True)
    back = load_evaluation(directory, "demo", summary.name)
    for field in dataclasses.fields(Evaluation):
        was, now = getattr(evaluation, field.name), getattr(back, field.name)
        if field.name == "embeddings":
            for a, b in zip(was, now, strict=True):
                np.testing.assert_array_equal(a, b)
        elif isinstance(was, np.ndarray):
            np.testing.assert_array_equal(was, now)
        else:
            assert json.dumps(was, default=str) == json.dumps(now, default=str), field.name
    assert back.thumbnail(0).shape == (96, 96, 3)


def test_the_newest_evaluation_is_the_last_one_made_whatever_the_clock_said(
    directory: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    own = tmp_path / "ck"
    shutil.copytree(directory, own, ignore=shutil.ignore_patterns(".demo-data", "evaluations"))
    result = {**evaluation.result, "split": "val"}
    early = "2001-01-01T00:00:00+00:00"
    second = dataclasses.replace(evaluation, created=early, result=result)
    for made in (evaluation, second):
        save_evaluation(own, made)
    names = [summary.name for summary in list_evaluations(own, "demo")]
    assert names == [second.name, evaluation.name]
    save_evaluation(own, dataclasses.replace(evaluation, created=early))  # it replaces the first
    names = [summary.name for summary in list_evaluations(own, "demo")]
    assert names == [evaluation.name, second.name]


DEAD = 2**22 - 3  # no process has this id


def test_a_writer_killed_between_two_renames_loses_nothing(
    directory: Path, evaluation: Evaluation
) -> None:
    folder = save_evaluation(directory, evaluation)
    kept = folder.rename(folder.with_name(f".old-{folder.name}-{DEAD}"))
    for left in (f".writing-{folder.name}-{DEAD}", f".old-other-test-{os.getpid()}"):
        folder.with_name(left).mkdir()
    assert [s.name for s in list_evaluations(directory, "demo")] == [folder.name]
    assert load_evaluation(directory, "demo", folder.name).keys == evaluation.keys
    shutil.copytree(folder, kept)
    list_evaluations(directory, "demo")
    mine = folder.with_name(f".old-other-test-{os.getpid()}")  # its writer is alive
    assert {p.name for p in folder.parent.iterdir()} == {folder.name, mine.name}
    mine.rmdir()


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_full_disk_leaves_the_earlier_evaluation_and_nothing_else(
    step: str, directory: Path, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_evaluation(directory, evaluation)
    rename = Path.rename

    def write_half(path: Path, **_arrays: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    def rename_old_only(path: Path, target: Path) -> Path:
        if path.name.startswith(".writing-"):
            raise OSError(errno.ENOSPC, "no space left")
        return rename(path, target)

    if step == "write":
        monkeypatch.setattr(np, "savez", write_half)
    else:
        monkeypatch.setattr(Path, "rename", rename_old_only)
    with pytest.raises(OSError, match="no space left"):
        save_evaluation(directory, evaluation)
    assert list(folder.parent.iterdir()) == [folder]
    assert load_evaluation(directory, "demo", folder.name).keys == evaluation.keys


def test_the_members_embeddings_keep_their_order(directory: Path, evaluation: Evaluation) -> None:
    many = tuple(np.full((2, 3), i, np.float32) for i in range(12))
    folder = save_evaluation(directory, dataclasses.replace(evaluation, embeddings=many))
    back = load_evaluation(directory, "demo", folder.name)
    assert [rows[0, 0] for rows in back.embeddings] == list(range(12))


DEAD = 2**22 - 3  # no process has this id


@pytest.mark.parametrize("changed", ["weights_sha256", "gallery_id"])
def test_studies_stay_with_the_same_parameters_and_gallery_only(
    directory: Path, evaluation: Evaluation, changed: str
) -> None:
    save_evaluation(directory, evaluation)
    assert load_study(directory, evaluation, "robustness") is None
    save_study(directory, evaluation, "robustness", {"rows": []})
    folder = save_evaluation(directory, evaluation)
    study = load_study(directory, evaluation, "robustness")
    assert study is not None
    assert study["rows"] == []
    assert study["made"]["gallery_id"] == evaluation.gallery_id
    other = dataclasses.replace(evaluation, **{changed: "other"})
    assert load_study(directory, other, "robustness") is None
    (folder / "explanations.json").write_text("{", encoding="utf-8")  # damaged: not carried over
    save_evaluation(directory, other)
    assert not list(folder.glob("*ns.json"))
    assert not (folder / "robustness.json").exists()
    assert not list_evaluations(directory, "demo")[0].is_current
    save_evaluation(directory, evaluation)
    assert load_study(directory, evaluation, "robustness") is None


def test_a_corrected_gallery_makes_an_evaluation_old(
    directory: Path, model: Ensemble, evaluation: Evaluation, tmp_path: Path
) -> None:
    copy = tmp_path / "checkpoints"
    shutil.copytree(directory, copy)
    save_evaluation(copy, evaluation)
    assert list_evaluations(copy, "demo")[0].is_current
    lead = model.lead
    store = CurationStore(default_url(copy))
    given = {
        key: lead.class_names[label]
        for key, label in zip(
            lead.contents.gallery.keys, lead.contents.gallery.labels.tolist(), strict=True
        )
    }
    store.apply(
        lead.config.data_id,
        [Change(lead.contents.gallery.keys[0], "excluded", "yes")],
        given_labels=given,
        expected_version=0,
    )
    store.close()
    assert not list_evaluations(copy, "demo")[0].is_current
    again = load_bundle(copy, "demo", settings=Settings(device="cpu", checkpoints_dir=copy))
    save_evaluation(copy, dataclasses.replace(evaluation, gallery_id=again.data_id))
    assert list_evaluations(copy, "demo")[0].is_current


def test_the_training_datas_own_split_is_home(evaluation: Evaluation) -> None:
    assert evaluation.is_internal
    foreign = dataclasses.replace(evaluation, result={**evaluation.result, "data": "other"})
    assert not foreign.is_internal
    assert order_pair(foreign, evaluation) == (evaluation, foreign)
    assert order_pair(evaluation, foreign) == (evaluation, foreign)
    assert order_pair(foreign, foreign) == (foreign, foreign)


def test_training_images_in_other_data_are_counted_and_are_no_external_test(
    directory: Path, model: Ensemble, evaluation: Evaluation, seen_folder: Path
) -> None:
    assert evaluation.n_known == 0
    assert not evaluation.is_fitted_on
    assert say_seen(evaluation) == ""
    assert to_json(evaluation) == {**evaluation.result, "is_fitted_on": False}
    other = run_evaluation(model, read_dataset(seen_folder, val_fraction=0.25), split="test")
    assert (other.n_known, len(other.keys)) == (6, 8)
    assert other.is_internal
    assert other.is_fitted_on
    assert not other.is_own_split
    assert "trained or calibrated on 6 of these 8 images" in say_seen(other)
    assert (to_json(other)["n_in_gallery"], to_json(other)["n_in_validation"]) == (4, 2)
    assert order_pair(other, evaluation) == (evaluation, other)
    folder = save_evaluation(directory, other)
    assert load_evaluation(directory, "demo", folder.name).n_known == 6
    shutil.rmtree(folder)
    older = {key: value for key, value in other.result.items() if not key.startswith("n_in_")}
    assert dataclasses.replace(other, result=older).n_known == 0


def test_what_is_not_there_or_damaged_says_so(directory: Path, evaluation: Evaluation) -> None:
    with pytest.raises(CheckpointError, match="has no evaluation"):
        load_evaluation(directory, "demo-triplet", evaluation.name)
    with pytest.raises(CheckpointError, match="no model"):
        list_evaluations(directory, "nobody")
    folder = save_evaluation(directory, evaluation)
    (folder / "arrays.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_evaluation(directory, "demo", evaluation.name)


def test_the_curve_of_k_is_the_vote_at_that_k(model: Ensemble, evaluation: Evaluation) -> None:
    member = next(m.bundle for m in model.members if m.bundle.has_vote)
    index = [m.bundle for m in model.members].index(member)
    curve = {int(s["k"]): s["accuracy"] for s in evaluation.k_curves[member.model_id]}
    k = member.contents.calibration.k
    calls = evaluation.member_p[index] > 0.5  # calibration preserves the side of 0.5
    assert curve[k] == pytest.approx(np.mean(calls == evaluation.is_disease))


def test_robustness_counts_the_same_images_at_every_level(model: Ensemble, data: Dataset) -> None:
    told: list[float] = []
    result = measure_robustness(
        model,
        data,
        split="test",
        n_images=8,
        kinds=("noise",),
        progress=lambda d, _t: told.append(d),
    )
    rows = result["rows"]
    assert [(r["kind"], r["level"]) for r in rows] == [
        ("none", 0), ("noise", 1), ("noise", 2), ("noise", 3)
    ]  # fmt: skip
    assert {r["n"] for r in rows} == {8}
    assert told[-1] == 1.0
    keys = [r.key for r in data.subset("test")]
    part = dataclasses.replace(data, records=tuple(r for r in data.subset("test") if r.key in keys))
    clean = measure_robustness(model, part, split="test", n_images=16, kinds=())["rows"][0]
    assert clean["accuracy"] == pytest.approx(evaluate(model, data, split="test")["accuracy"])


def test_damaged_copies_of_gallery_images_do_not_vote_on_themselves(
    model: Ensemble, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[SplitReading] = []

    def read(*arguments: Any, **options: Any) -> SplitReading:
        readings.append(read_split(*arguments, **options))
        return readings[-1]

    monkeypatch.setattr("core.assessment.robustness.read_split", read)
    loose = [dataclasses.replace(r, group=None) for r in data.records]  # without patients
    part = dataclasses.replace(data, records=tuple(loose))
    measure_robustness(model, part, split="train", n_images=4, kinds=("noise",))
    assert len(readings) == 4
    for reading in readings:
        for member, barred in zip(model.members, reading.barred, strict=True):
            own = [member.bundle.gallery.keys.index(key) for key in reading.keys]
            assert all(row in rows for row, rows in zip(own, barred, strict=True))
