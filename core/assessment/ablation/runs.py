"""Train and measure each system of the report on one data folder.

Owns the list of systems and the folders of their runs. Every finished run is a file, so a killed
ablation continues where it stopped, and a run whose recipe has changed is repeated. All systems
with the same seed share the trunk cache.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from core.assessment.ablation.baselines import Frozen, measure_floors
from core.assessment.ablation.summary import compare_pairs, summarise
from core.assessment.predict_split import SplitReading, describe_reading, read_split
from core.config import RunConfig, Settings, build_preset
from core.data.datasets import Dataset, read_dataset
from core.data.options import DataOptions
from core.errors import ConfigError
from core.files.names import show_name
from core.files.whole import write_text
from core.models.bundle_files import read_bundle_config
from core.models.ensemble import Model, build_ensemble
from core.models.registry import load_bundle
from core.network.embedder import Progress
from core.training.run import train

_T = TypeVar("_T")
_SMALLER = {448: 384, 288: 224}  # the input size that each preset is compared with


@dataclass(frozen=True)
class System:
    """One row of the table."""

    key: str
    label: str
    overrides: tuple[str, ...] = ()
    preset: str | None = None  # replaces the ablation's preset
    members: tuple[str, ...] = ()  # keys of the members, if the system is a vote


SYSTEMS = {
    system.key: system
    for system in (
        System("1", "cross-entropy classifier", ("objective.name=cross-entropy",)),
        System("2", "Swin + EfficientNetV2, triplet + KNN", preset="swin-effnetv2"),
        System("3", "ConvNeXtV2 + BEiT, triplet + KNN", preset="convnextv2-beit"),
        System("4", "triplet + KNN", ("objective.name=triplet",)),
        System("5", "metric ensemble + KNN", ("objective.name=metric-ensemble",)),
        System("6", "soft vote of 4 and 5", members=("4", "5")),
        System("4-small", "4 at the smaller input size", ("objective.name=triplet",)),
        System("4-one-view", "4 without test-time views", ("embedder.tta=false",)),
        System(
            "weak",
            "a weak model: 1, hardly trained, no views",
            (
                "objective.name=cross-entropy",
                "train.epochs=1",
                "train.adapter_lr=1e-5",
                "train.tail_lr=0",
                "embedder.tta=false",
            ),
        ),
        System("6-weak", "6 with the weak model, gate off", members=("4", "5", "weak")),
    )
}


@dataclass(frozen=True, eq=False)
class _Bench:
    """State shared by all runs of one ablation."""

    data: Path
    preset: str
    settings: Settings  # their checkpoints folder holds the ablation's models
    options: DataOptions | None
    overrides: tuple[str, ...]
    frozen: dict[str, Frozen | None] = field(default_factory=dict)  # memo, by image


def run_ablation(
    data: Path,
    *,
    preset: str,
    systems: Sequence[str],
    n_seeds: int,
    settings: Settings,
    options: DataOptions | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure each system with seeds 0 .. n_seeds - 1.

    Args:
        data: folder with a test split; validation images are drawn with the run's seed.
        preset: for the systems that do not have their own.
        systems: keys of SYSTEMS; missing members of a vote are added.
        n_seeds: training runs per system.
        settings: results are kept in ``.ablation`` in its checkpoints folder.
        options: what a person says about the data.
        overrides: ``section.key=value`` for every system; a system's own overrides take precedence.
        progress: called with the fraction done and a message.

    Returns:
        ``runs`` (each run's evaluate JSON with system, seed, recipe, seconds), ``floors`` (the same
        for plain KNN and logistic regression on frozen features), ``summary`` (mean and 95 %
        interval over seeds and test images) and ``tests`` (paired, against system 1 and floors).

    Raises:
        ConfigError: a system is unknown, or there is no seed.
        CoreError: what training or reading the data raises.
    """
    chosen = _choose_systems(systems)
    if n_seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {n_seeds}.")
    data_id = read_dataset(data, options).data_id
    changed = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8] if overrides else ""
    kind = "-".join(part for part in (data_id, preset, changed) if part)
    folder = settings.checkpoints_dir / ".ablation" / kind
    folder.mkdir(parents=True, exist_ok=True)
    own = dataclasses.replace(settings, checkpoints_dir=folder)
    bench = _Bench(data, preset, own, options, tuple(overrides))
    runs, floors = [], []
    n_parts, n_done = n_seeds * (len(chosen) + 1), 0
    for seed in range(n_seeds):
        for system in chosen:
            _report(progress, n_done / n_parts, f"seed {seed}, system {system.key}")
            runs.append(_run_system(bench, system, seed=seed))
            n_done += 1
        _report(progress, n_done / n_parts, f"seed {seed}, frozen floors")
        floors += _run_floors(bench, seed=seed)
        n_done += 1
        for cache in folder.glob(f".cache-{seed}-*"):
            shutil.rmtree(cache)
    _report(progress, 1.0, "done")
    return {
        "data": data_id,
        "data_name": show_name(data.name),
        "preset": preset,
        "overrides": list(overrides),
        "n_seeds": n_seeds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "floors": floors,
        "summary": summarise([*runs, *floors]),
        "tests": compare_pairs(runs, floors),
    }


def _report(progress: Progress | None, done: float, text: str) -> None:
    if progress:
        progress(done, text)


def _choose_systems(keys: Sequence[str]) -> list[System]:
    unknown = [key for key in keys if key not in SYSTEMS]
    if unknown or not keys:
        raise ConfigError(
            f"unknown system {', '.join(unknown) or '(none given)'}; choose among "
            f"{', '.join(SYSTEMS)}."
        )
    wanted = set(keys)
    for key in keys:
        wanted |= set(SYSTEMS[key].members)
    singles = [s for s in SYSTEMS.values() if s.key in wanted and not s.members]
    return [*singles, *(s for s in SYSTEMS.values() if s.key in wanted and s.members)]


def _configure(bench: _Bench, system: System, *, seed: int) -> RunConfig:
    config = build_preset(system.preset or bench.preset).with_overrides(bench.overrides)
    overrides = [*system.overrides, f"train.seed={seed}"]
    if system.key == "4-small":
        size = config.preprocess.input_size
        overrides.append(f"preprocess.input_size={_SMALLER.get(size, size // 2)}")
    return config.with_overrides(overrides)


def _read_data(bench: _Bench, config: RunConfig) -> Dataset:
    return read_dataset(
        bench.data,
        bench.options,
        val_fraction=config.train.val_fraction,
        seed=config.train.seed,
    )


def _run_system(bench: _Bench, system: System, *, seed: int) -> dict[str, Any]:
    directory = bench.settings.checkpoints_dir
    name = f"system-{system.key}-seed-{seed}"
    path = directory / f".{name}.json"
    keys = system.members or (system.key,)
    recipe_id = _identify([_configure(bench, SYSTEMS[key], seed=seed) for key in keys])
    kept = _read_kept(path, recipe_id)
    if kept:
        return kept[0]
    config = _configure(bench, system, seed=seed)
    dataset = _read_data(bench, config)
    if system.members:
        shutil.rmtree(directory / name, ignore_errors=True)  # may refer to earlier members
        members = [f"system-{key}-seed-{seed}" for key in system.members]
        build_ensemble(directory, name, members, min_val_accuracy=0.0)
    else:
        _train_system(bench, dataset, config, name=name)
    measured = _measure_system(load_bundle(directory, name, settings=bench.settings), dataset)
    row = {**measured, **_name_run(system.key, system.label, seed), "recipe_id": recipe_id}
    return _keep(path, row)


def _measure_system(model: Model, dataset: Dataset) -> dict[str, Any]:
    began = time.monotonic()
    reading = read_split(model, dataset, split="test")
    seconds = (time.monotonic() - began) / max(1, len(reading.keys))
    return {
        **describe_reading(model, reading, data=dataset.data_id, split="test"),
        "recipe": _describe_recipe(model),
        "seconds_train": _sum_seconds(model),
        "seconds_per_image": seconds,
        "val_accuracy": model.metrics.get("validation", {}).get("accuracy"),
        "k_curve": model.metrics.get("k_search", []),
        "predictions": _list_predictions(reading),
    }


def _train_system(bench: _Bench, dataset: Dataset, config: RunConfig, *, name: str) -> None:
    """Train a model, or reuse one that an interrupted ablation trained with the same recipe."""
    folder = bench.settings.checkpoints_dir / name
    if folder.is_dir():
        if read_bundle_config(folder).run == config:
            return
        shutil.rmtree(folder)
    shape = f"{config.preset}-{config.preprocess.input_size}-{config.embedder.n_test_views}"
    train(
        dataset,
        config,
        name=name,
        settings=bench.settings,
        resume=True,
        cache_folder=folder.parent / f".cache-{config.train.seed}-{shape}",
    )


def _identify(configs: Sequence[RunConfig]) -> str:
    """Short hash of the recipes behind a row."""
    text = "\n".join(config.to_json() for config in configs)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_kept(path: Path, recipe_id: str) -> list[dict[str, Any]]:
    """Rows saved by an earlier ablation with the same recipe; empty otherwise.

    Rows without a ``recipe_id`` predate that field and are assumed to match.
    """
    if not path.is_file():
        return []
    kept = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = kept if isinstance(kept, list) else [kept]
    return rows if all(row.get("recipe_id", recipe_id) == recipe_id for row in rows) else []


def _keep(path: Path, outcome: _T) -> _T:
    """Write an outcome and return it as a later run will read it."""
    text = json.dumps(outcome)
    write_text(path, text)
    kept: _T = json.loads(text)
    return kept


def _name_run(key: str, label: str, seed: int) -> dict[str, Any]:
    return {"system": key, "label": label, "seed": seed}


def _describe_recipe(model: Model) -> dict[str, Any]:
    runs = {m.bundle.model_id: m.bundle.config.run for m in model.members}
    return {name: json.loads(run.to_json()) for name, run in runs.items()}


def _sum_seconds(model: Model) -> dict[str, float]:
    """Seconds of training (without the trunks) and of running the trunks, over all members."""
    parts = [member.bundle.metrics["seconds"] for member in model.members]
    return {key: float(sum(part[key] for part in parts)) for key in parts[0]}


def _list_predictions(reading: SplitReading) -> dict[str, Any]:
    return {
        "keys": list(reading.keys),
        "groups": list(reading.groups),
        "is_disease": reading.truth.tolist(),
        "p_disease": [round(float(p), 6) for p in reading.p_disease],
    }


def _run_floors(bench: _Bench, *, seed: int) -> list[dict[str, Any]]:
    """The baselines' rows, to which every system with this seed is compared."""
    path = bench.settings.checkpoints_dir / f".floors-seed-{seed}.json"
    config = _configure(bench, SYSTEMS["1"], seed=seed)
    recipe_id = _identify([config])
    rows = _read_kept(path, recipe_id)
    if rows:
        return rows
    dataset = _read_data(bench, config)
    rows = measure_floors(dataset, config, settings=bench.settings, memo=bench.frozen)
    return _keep(path, [{**row, "seed": seed, "recipe_id": recipe_id} for row in rows])
