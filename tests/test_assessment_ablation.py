"""The ablation end to end on phantoms: rows, baselines, tests, table, resuming after a kill."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from core.assessment.ablation import SYSTEMS, run_ablation, write_table
from core.assessment.ablation.baselines import Frozen, _embed_records, measure_floors
from core.assessment.ablation.runs import _Bench, _run_system
from core.config import RunConfig, Settings, build_preset
from core.data.datasets import Dataset, Record, load_record
from core.errors import ConfigError, ImageError
from core.images.decode import Image
from core.network.embedder import Embedded, Embedder

SETTINGS = Settings(device="cpu")


@pytest.mark.slow
def test_systems_are_measured_and_compared_and_kept(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, checkpoints_dir=tmp_path)
    options = {"preset": "tiny-random", "n_seeds": 2, "settings": settings}
    result = run_ablation(phantom_folder, systems=["1", "6"], **options)
    runs = [(row["system"], row["seed"]) for row in result["runs"]]
    assert runs == [(s, seed) for seed in (0, 1) for s in ("1", "4", "5", "6")]
    for row in result["runs"]:
        assert row["n"] == 16
        assert row["seconds_train"]["fit"] > 0
        assert len(row["predictions"]["p_disease"]) == 16
        assert row["recipe"]
    assert [row["system"] for row in result["floors"]] == ["knn_frozen", "logreg_frozen"] * 2
    pairs = {(t["system"], t["against"]) for t in result["tests"]}
    assert ("6", "1") in pairs
    assert ("1", "logreg_frozen") in pairs
    assert all(len(t["mcnemar"]) == len(t["delong"]) == 2 for t in result["tests"])
    vote = next(r for r in result["runs"] if r["system"] == "6")
    assert vote["agreement"]["agree"] + vote["agreement"]["disagree"] == 16
    table = write_table(json.loads(json.dumps(result)))
    assert "| 6: soft vote of 4 and 5 |" in table
    assert "6 against knn_frozen" in table
    assert not list(tmp_path.rglob(".cache-*"))

    def fail(*_args: object, **_options: object) -> None:
        raise AssertionError("nothing is trained twice")

    monkeypatch.setattr("core.assessment.ablation.runs.train", fail)
    again = run_ablation(phantom_folder, systems=["1", "6"], **options)
    assert again["runs"] == result["runs"]
    assert again["summary"] == result["summary"]


def test_bad_requests_are_refused(phantom_folder: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, checkpoints_dir=tmp_path)
    for systems, n_seeds, message in (
        (["9"], 1, "unknown system 9; choose among 1, 2, 3"),
        ([], 1, "none given"),
        (["1"], 0, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_ablation(
                phantom_folder,
                preset="tiny-random",
                systems=systems,
                n_seeds=n_seeds,
                settings=settings,
            )


def test_overrides_reach_every_run_and_have_a_folder_of_their_own(
    phantom_folder: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, checkpoints_dir=tmp_path)
    result = run_ablation(
        phantom_folder,
        preset="tiny-random",
        systems=["4"],
        n_seeds=1,
        settings=settings,
        overrides=["train.epochs=1", "embedder.tta=false"],
    )
    (recipe,) = result["runs"][0]["recipe"].values()
    assert recipe["train"]["epochs"] == 1
    assert recipe["embedder"]["tta"] is False
    assert result["overrides"] == ["train.epochs=1", "embedder.tta=false"]
    assert "tiny-random train.epochs=1" in write_table(result).splitlines()[0]
    (folder,) = (tmp_path / ".ablation").iterdir()
    assert folder.name.count("-") == 3  # data, preset of two words, overrides


def test_a_changed_recipe_is_run_again_and_rows_of_before_still_count(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dict[Path, RunConfig]()
    trained = list[int]()

    def note(_dataset: Dataset, config: RunConfig, **options: Any) -> None:
        folder = tmp_path / options["name"]
        folder.mkdir()
        made[folder] = config
        trained.append(config.train.epochs)

    module = "core.assessment.ablation.runs."
    monkeypatch.setattr(module + "train", note)
    monkeypatch.setattr(module + "read_bundle_config", lambda f: SimpleNamespace(run=made[f]))
    monkeypatch.setattr(module + "load_bundle", lambda *_args, **_options: None)
    monkeypatch.setattr(module + "_measure_system", lambda *_args: {"epochs": trained[-1]})
    settings = dataclasses.replace(SETTINGS, checkpoints_dir=tmp_path)
    bench = _Bench(phantom_folder, "tiny-random", settings, None, ())
    path = tmp_path / ".system-4-seed-0.json"

    def run(n_epochs: int) -> dict[str, Any]:
        overrides = ("objective.name=triplet", f"train.epochs={n_epochs}")
        monkeypatch.setitem(SYSTEMS, "4", dataclasses.replace(SYSTEMS["4"], overrides=overrides))
        row = _run_system(bench, SYSTEMS["4"], seed=0)
        assert row["epochs"] == n_epochs
        return row

    run(1)
    run(1)
    assert trained == [1]
    run(2)
    assert trained == [1, 2]
    path.unlink()  # killed before the row was written; the model still has this recipe
    row = run(2)
    assert trained == [1, 2]
    del row["recipe_id"]
    path.write_text(json.dumps(row), encoding="utf-8")
    assert run(2) == row


def test_copies_of_an_image_do_not_vote_in_the_floors() -> None:
    """Every tested image has a copy with the other label among the training images."""
    records, memo = list[Record](), dict[str, Frozen | None]()
    for i in range(12):
        angle = np.radians(90 * (i % 2) + i)
        point = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
        records.append(Record(f"copy/{i}", None, 1 - i % 2, "train"))
        memo[f"copy/{i}"] = Frozen(point, f"copied {i}")
        for split in ("train", "val", "test"):
            records.append(Record(f"{split}/{i}", None, i % 2, split))
            memo[f"{split}/{i}"] = Frozen(point, "own" if split == "train" else f"copied {i}")
    dataset = Dataset(Path(), ("normal", "disease"), 1, tuple(records), "data")
    knn, _ = measure_floors(dataset, build_preset("tiny-random"), settings=SETTINGS, memo=memo)
    assert knn["accuracy"] == 1.0


def test_frozen_features_are_read_image_by_image(
    phantom_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def load(records: Sequence[Record]) -> Iterator[tuple[Record, Image | ImageError]]:
        for record in records:
            read.append(record.key)
            yield record, load_record(record)

    class Counting:
        def embed(self, images: Iterable[np.ndarray]) -> Embedded:
            for number, _ in enumerate(images, start=1):
                assert len(read) == number
            return Embedded(np.ones((len(read), 2), np.float32), np.ones((len(read), 2)))

    monkeypatch.setattr("core.assessment.ablation.baselines.load_ahead", load)
    records = phantom_dataset.records[:5]
    found = _embed_records(cast(Embedder, Counting()), records)
    assert list(found) == [record.key for record in records]
    assert all(frozen and len(frozen.sha256) == 64 for frozen in found.values())


def test_every_system_of_the_report_is_there() -> None:
    assert {"1", "2", "3", "4", "5", "6"} <= set(SYSTEMS)
    for system in SYSTEMS.values():
        assert set(system.members) <= set(SYSTEMS)
