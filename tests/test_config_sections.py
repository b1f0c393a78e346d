"""Presets, range checks, JSON round trip, overrides, environment settings."""

import dataclasses
import json
from pathlib import Path

import pytest

from core.config import (
    OBJECTIVES,
    PRESETS,
    EmbedderConfig,
    KnnConfig,
    RunConfig,
    Settings,
    build_preset,
)
from core.config.settings import find_cache_dir
from core.errors import ConfigError


@pytest.mark.parametrize("name", [*PRESETS, "tiny-random"])
def test_a_preset_survives_the_round_trip(name: str) -> None:
    config = build_preset(name)
    assert RunConfig.from_json(config.to_json()) == config
    assert len(config.embedder.backbones) == 2


def test_the_paper_preset_is_the_reports() -> None:
    config = build_preset("paper", recipe="report")
    assert config.preprocess.input_size == 448
    assert config.recipe == "report"
    assert (config.objective.auxiliary_weight, config.knn.k_rule) == (0.0, "best")
    assert (config.embedder.hidden_dim, config.embedder.embedding_dim) == (512, 128)
    assert (config.train.adapter_lr, config.train.tail_lr) == (1e-3, 5e-6)
    assert config.train.weight_decay == 1e-3
    assert config.objective.margin == 0.5
    assert config.knn.k_candidates == (5, 9, 15, 20, 25, 30, 40, 50)


def test_the_robust_recipe_is_the_default_and_changes_no_backbone() -> None:
    for name in PRESETS:
        robust, report = build_preset(name), build_preset(name, recipe="report")
        assert (robust.recipe, robust.embedder.hidden_dim) == ("robust", 0)
        assert robust.embedder.backbones == report.embedder.backbones
        assert robust.preprocess.input_size == report.preprocess.input_size
    with pytest.raises(ConfigError, match=r"unknown recipe 'fast'.*robust, report"):
        build_preset("offline", recipe="fast")


def test_tiny_random_is_not_offered() -> None:
    assert "tiny-random" not in PRESETS
    assert not any(build_preset(name).embedder.random_weights for name in PRESETS)


def test_unknown_preset_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'huge'.*paper.*offline"):
        build_preset("huge")


def test_overrides_change_one_value() -> None:
    config = build_preset("offline").with_overrides(["train.epochs=3", "knn.k_candidates=[1,3]"])
    assert config.train.epochs == 3
    assert config.knn.k_candidates == (1, 3)
    assert build_preset("offline").train.epochs != 3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epochs", "expected section.key=value"),
        ("train.epoch=3", "unknown setting 'train.epoch'"),
        (
            "train.epochs=0",
            "config.train.epochs: Input should be greater than or equal to 1, got 0",
        ),
        ("train.epochs=many", "train.epochs: Input should be a valid integer, got 'many'"),
        ("embedder.dropout=1.5", "embedder.dropout: Input should be less than 1, got 1.5"),
        ("objective.name=magic", r"objective.name: Input should be 'triplet', .*, got 'magic'"),
    ],
)
def test_bad_overrides_say_why(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_preset("offline").with_overrides([assignment])


def test_unknown_keys_and_versions_are_refused() -> None:
    raw = json.loads(build_preset("offline").to_json())
    with pytest.raises(ConfigError, match="colour: Unexpected keyword argument, got 1"):
        RunConfig.from_json(json.dumps({**raw, "colour": 1}))
    with pytest.raises(ConfigError, match="schema_version: Input should be 1, got 9"):
        RunConfig.from_json(json.dumps({**raw, "schema_version": 9}))
    del raw["schema_version"]
    with pytest.raises(ConfigError, match="expected schema_version 1, got none"):
        RunConfig.from_json(json.dumps(raw))
    with pytest.raises(ConfigError, match="Invalid JSON"):
        RunConfig.from_json("{")


def test_ranges_are_checked_on_creation() -> None:
    with pytest.raises(ConfigError, match="k_candidates"):
        KnnConfig(k_candidates=())
    with pytest.raises(ConfigError, match="backbones"):
        EmbedderConfig()


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_preset("offline").preset = "x"  # type: ignore[misc]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", "/models")
    monkeypatch.setenv("NEIGHBORDX_MAX_FILES", "7")
    settings = Settings.from_env()
    assert (settings.checkpoints_dir, settings.max_files) == (Path("/models"), 7)
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "abacus")
    with pytest.raises(
        ConfigError, match=r"NEIGHBORDX_DEVICE: Input should be 'auto', .*, got 'abacus'"
    ):
        Settings.from_env()
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    monkeypatch.setenv("NEIGHBORDX_MAX_FILES", "lots")
    with pytest.raises(ConfigError, match="NEIGHBORDX_MAX_FILES: Input should be a valid integer"):
        Settings.from_env()


@pytest.mark.parametrize("value", ["", " ", "''", '" "'])
def test_an_empty_setting_is_unset(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CHECKPOINTS", "WEIGHTS_DIR", "THREADS", "DATABASE", "DEVICE", "CACHE"):
        monkeypatch.setenv(f"NEIGHBORDX_{name}", value)
    settings = Settings.from_env()
    expected = Settings(Path("checkpoints").absolute(), data_dir=Path("data").absolute())
    assert settings == expected
    assert find_cache_dir().name == "neighbordx"


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("~/data", "/home/anna/data"),
        ("~", "/home/anna"),
        (" /srv/x rays ", "/srv/x rays"),
        ("'/srv/data'", "/srv/data"),
        ('"~/data"', "/home/anna/data"),
        ("data", "/here/data"),
        ("./data/~", "/here/data/~"),
    ],
)
def test_paths_are_expanded_and_absolute(
    value: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child process may be started in another folder."""
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    for name in ("DATA", "CHECKPOINTS", "WEIGHTS_DIR", "CACHE"):
        monkeypatch.setenv(f"NEIGHBORDX_{name}", value)
    url = "sqlite:///" + value.strip(" '\"")
    monkeypatch.setenv("NEIGHBORDX_DATABASE", url)
    settings = Settings.from_env()
    assert str(settings.data_dir) == path
    assert str(settings.checkpoints_dir) == path
    assert str(settings.weights_dir) == path
    assert str(find_cache_dir()) == path
    assert settings.database_url == f"sqlite:///{path}"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://h/~", ""])
def test_other_databases_stay_as_they_are(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_DATABASE", url)
    assert Settings.from_env().database_url == url


def test_a_home_of_nobody_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_DATA", "~nobody-of-that-name/data")
    with pytest.raises(ConfigError, match="NEIGHBORDX_DATA: '~nobody-of-that-name/data'"):
        Settings.from_env()


def test_random_weights_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="is for tests and cannot be set"):
        build_preset("paper").with_overrides(["embedder.random_weights=true"])


def test_objectives_say_how_many_adapters_they_train() -> None:
    counts = {
        name: build_preset("paper").with_overrides([f"objective.name={name}"]).objective.n_adapters
        for name in OBJECTIVES
    }
    assert counts == {"triplet": 1, "cross-entropy": 0, "metric-ensemble": 3}
