"""Two models and their ensemble in one run; the robust recipe's parts in a real, tiny run."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.errors import CheckpointError, ConfigError
from core.models import registry
from core.models.bundle_files import read_bundle_config
from core.training.ensemble import train_ensemble
from core.training.run import train


@pytest.fixture
def robust_config(tiny_config: RunConfig) -> RunConfig:
    return tiny_config.with_overrides(
        [
            "embedder.hidden_dim=0",
            "objective.auxiliary_weight=1.0",
            "train.start_share=0.5",
            "train.epochs=1",
            "knn.k_rule=one-standard-error",
            "preprocess.stretch=0.2",
            "preprocess.shift=0.1",
        ]
    )


@pytest.mark.slow
def test_both_members_and_the_vote_are_written_and_a_resumed_run_keeps_what_is_done(
    robust_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    settings = Settings(checkpoints_dir=tmp_path, device="cpu")
    seen: list[float] = []
    folder = train_ensemble(
        phantom_dataset,
        robust_config,
        name="eyes",
        settings=settings,
        progress=lambda done, _text: seen.append(done),
    )
    assert seen == sorted(seen)
    assert folder == tmp_path / "eyes"
    names = [
        m.model_id for m in registry.load_bundle(tmp_path, "eyes", settings=settings).record.members
    ]
    assert names == ["eyes-triplet", "eyes-metric"]
    objectives = [read_bundle_config(tmp_path / name).run.objective.name for name in names]
    assert objectives == ["triplet", "metric-ensemble"]
    assert not (tmp_path / ".runs" / "eyes-cache").exists()

    with pytest.raises(CheckpointError, match="'eyes' exists"):
        train_ensemble(phantom_dataset, robust_config, name="eyes", settings=settings)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="'eyes-triplet' exists"):
        train_ensemble(phantom_dataset, robust_config, name="eyes", settings=settings)
    before = (tmp_path / "eyes-triplet" / "weights.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "eyes-metric")
    train_ensemble(phantom_dataset, robust_config, name="eyes", settings=settings, resume=True)
    assert (tmp_path / "eyes-triplet" / "weights.safetensors").read_bytes() == before
    assert registry.load_bundle(tmp_path, "eyes", settings=settings).members


def test_models_that_only_have_the_members_names_are_not_taken_for_members(
    robust_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    settings = Settings(checkpoints_dir=tmp_path, device="cpu")
    members = robust_config.for_members("e")
    train(phantom_dataset, members["e-triplet"], name="e-triplet", settings=settings)
    shutil.copytree(tmp_path / "e-triplet", tmp_path / "e-metric")  # of another objective
    elsewhere = dataclasses.replace(phantom_dataset, data_id="other")
    other_seed = robust_config.with_overrides(["train.seed=5"])
    for data, config, name in (
        (phantom_dataset, robust_config, "e-metric"),
        (elsewhere, robust_config, "e-triplet"),
        (phantom_dataset, other_seed, "e-triplet"),
    ):
        with pytest.raises(ConfigError, match=f"model '{name}' was trained with other") as caught:
            train_ensemble(data, config, name="e", settings=settings, resume=True)
        assert (caught.value.code, caught.value.params) == ("config.resume", {"name": name})
    assert not (tmp_path / "e").exists()


def test_members_under_the_gate_stay_but_do_not_vote(
    robust_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    settings = Settings(checkpoints_dir=tmp_path, device="cpu")
    config = robust_config.with_overrides(["ensemble.min_val_accuracy=1.0"])
    with pytest.raises(ConfigError, match="below the minimum"):
        train_ensemble(phantom_dataset, config, name="weak", settings=settings)
    assert (tmp_path / "weak-triplet").is_dir()
    assert not (tmp_path / "weak").exists()
    lower = robust_config.with_overrides(["ensemble.min_val_accuracy=0.0"])
    folder = train_ensemble(phantom_dataset, lower, name="weak", settings=settings, resume=True)
    assert folder == tmp_path / "weak"
