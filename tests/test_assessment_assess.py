"""A full evaluation: its parts saved, the heatmap study's results, saved ablations found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from core.assessment.ablation.saved import list_ablations
from core.assessment.assess import assess
from core.assessment.heatmap_study import find_checked_method, study_heatmaps
from core.assessment.store import load_study
from core.config import Settings
from core.data.datasets import read_dataset
from core.data.options import DataOptions
from core.errors import ConfigError
from core.exploring.other_splits import list_guests
from core.models.ensemble import Ensemble
from core.models.registry import load_bundle


def test_every_part_is_kept_and_the_progress_reaches_its_end(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoints"
    shutil.copytree(tiny_checkpoints, directory, ignore=shutil.ignore_patterns("evaluations"))
    settings = Settings(checkpoints_dir=directory, device="cpu")
    told: list[float] = []
    evaluation = assess(
        "demo-triplet",
        directory / ".demo-data",
        split="test",
        settings=settings,
        parts=("explanations",),
        progress=lambda done, _text: told.append(done),
    )
    assert told == sorted(told)
    assert told[-1] > 0.9
    study = load_study(directory, evaluation, "explanations")
    assert study is not None
    assert study["n"] == 8
    with pytest.raises(ConfigError, match="unknown part magic"):
        assess("demo", tmp_path, split="test", settings=settings, parts=("magic",))


def test_a_model_says_itself_which_class_is_disease(unsaid_checkpoints: Path) -> None:
    settings = Settings(checkpoints_dir=unsaid_checkpoints, device="cpu")
    data = unsaid_checkpoints / ".demo-data"
    evaluation = assess("demo-triplet", data, split="test", settings=settings)
    assert evaluation.disease_class == "spotted"
    assert evaluation.is_internal, "the same images as in training, with the same id"
    model = load_bundle(unsaid_checkpoints, "demo-triplet", settings=settings)
    assert [one.name for one in list_guests(unsaid_checkpoints, model)] == [evaluation.name]
    turned = read_dataset(data, DataOptions(disease_class="plain"), val_fraction=0.25)
    study = study_heatmaps(model, turned, split="test", n_images=1, n_faithful=0)
    assert study["n"] == 1


def test_the_study_has_a_row_per_backbone_method_and_baseline(tiny_ensemble: Ensemble) -> None:
    data = Path(tiny_ensemble.lead.config.data_root)
    study = study_heatmaps(
        tiny_ensemble,
        read_dataset(data, val_fraction=0.25),
        split="test",
        methods=("integrated", "grad-cam"),
        n_images=3,
        n_faithful=2,
    )
    assert (study["n"], study["n_masks"]) == (3, 3)
    assert find_checked_method(study) == "integrated"
    rows = {(row["backbone"], row["method"]): row for row in study["rows"]}
    backbones = ("convnext_atto", "vit_tiny_patch16_224", "mean")
    assert set(rows) == {
        *((b, m) for b in backbones for m in ("integrated", "grad-cam")),
        ("-", "random"),
        ("-", "centre"),
    }
    for row in rows.values():
        assert row["n_masks"] == 3
        assert row["pointing_game"] in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
        assert row["pointing_ci95"][0] <= row["pointing_game"] <= row["pointing_ci95"][1]
        assert 0.0 <= row["energy_in_mask"] <= 1.0
        assert 0.0 < row["deletion_auc"] < 1.0
        assert 0.0 < row["insertion_auc"] < 1.0
        assert row["n_faithful"] == 2
        for name in ("energy_in_mask", "deletion_auc", "insertion_auc"):
            low, high = row[f"{name.split('_')[0]}_ci95"]
            assert low <= row[name] <= high
    assert set(study["randomisation"]) == {"convnext_atto", "vit_tiny_patch16_224"}
    assert all(-1.0 <= v <= 1.0 for v in study["randomisation"].values())
    assert -1.0 <= study["agreement"] <= 1.0
    json.dumps(study)  # plain values


def test_saved_ablations_are_found_and_others_passed_over(tmp_path: Path) -> None:
    result = {
        "data_name": "cxr", "preset": "offline", "n_seeds": 3, "created": "2026-01-01",
        "summary": [{"system": "1"}], "tests": [],
    }  # fmt: skip
    (tmp_path / "ablation_cxr.json").write_text(json.dumps(result), encoding="utf-8")
    (tmp_path / "ablation_bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "ablation_other.json").write_text("[]", encoding="utf-8")
    (found,) = list_ablations(tmp_path, tmp_path / "none")
    assert (found.name, found.data_name, found.n_seeds) == ("ablation_cxr", "cxr", 3)
    assert list_ablations(tmp_path / "none", tmp_path / "none") == []
    assert np.size(found.summary) == 1
    assert found.preset == "offline"
    changed = {**result, "overrides": ["preprocess.input_size=128"]}
    (tmp_path / "ablation_cxr.json").write_text(json.dumps(changed), encoding="utf-8")
    (found,) = list_ablations(tmp_path, tmp_path / "none")
    assert found.preset == "offline preprocess.input_size=128"
