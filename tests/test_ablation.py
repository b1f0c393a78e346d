"""The ablation end to end on phantoms: rows, floors, tests, table, and going on after a kill."""

import dataclasses
import json
from pathlib import Path

import pytest

from core.ablation import SYSTEMS, run_ablation, write_table
from core.config import Settings
from core.errors import ConfigError

SETTINGS = Settings(device="cpu")


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

    monkeypatch.setattr("core.ablation.runs.train", fail)
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


def test_every_system_of_the_report_is_there() -> None:
    assert {"1", "2", "3", "4", "5", "6"} <= set(SYSTEMS)
    for system in SYSTEMS.values():
        assert set(system.members) <= set(SYSTEMS)
