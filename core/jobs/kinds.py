"""The table of job kinds: what each does and which lane it queues in.

Owns the step from a job's parameters (plain JSON; each function lists its own) to a call into the
rest of core. Importing this module is cheap: what a kind needs is imported when it runs.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import RunConfig, Settings, TrainConfig
from core.config.presets import build_config
from core.data.options import DataOptions, TrainingData, read_options
from core.errors import CoreError, JobError
from core.files.names import read_path
from core.files.processes import read_age
from core.jobs import state

_REPORT_EVERY_S = 0.3


class Work:
    """What a job's function receives: parameters, folder, progress reporting."""

    def __init__(self, folder: Path, params: Mapping[str, Any], settings: Settings) -> None:
        self.folder = folder
        self.params = params
        self.settings = settings
        self._last = 0.0

    def report(self, done: float, text: str) -> None:
        """Write the progress and a message, at most a few times per second."""
        if time.monotonic() - self._last < _REPORT_EVERY_S and done < 1.0:
            return
        self._last = time.monotonic()
        value = {"progress": round(float(done), 4), "message": text}
        state.write_json(self.folder / "progress.json", value)

    @property
    def options(self) -> DataOptions:
        """What was said about the data."""
        found = read_options(self.params.get("options") or {})
        old = self.params.get("disease_class")  # of jobs queued by version 0.1
        return dataclasses.replace(found, disease_class=old) if old else found

    def read_data(self, config: RunConfig, *, model: TrainingData | None = None) -> Any:
        """Read the data set ``data`` with the run's validation split; see ``read_dataset``."""
        from core.data.datasets import read_dataset

        return read_dataset(
            read_path(self.params["data"]),
            self.options,
            model=model,
            val_fraction=config.train.val_fraction,
            seed=config.train.seed,
        )


def _train(work: Work) -> dict[str, Any]:
    """Fine-tune. Parameters: data, name, preset, recipe, objective, seed, overrides, options,
    cache_trunk, is_synthetic; is_ensemble trains two models and their ensemble."""
    config = build_config(work.params)
    name = str(work.params["name"])
    if _is_complete(work, config):
        return {"model_id": name}
    dataset = work.read_data(config)  # before the slow imports, because it may be missing
    from core.jobs.metrics import MetricsWriter
    from core.training.ensemble import train_ensemble
    from core.training.live_metrics import build_watcher
    from core.training.run import train

    for logger_name in ("lightning.pytorch", "lightning.fabric"):  # the import sets its own level
        logging.getLogger(logger_name).setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:

        def watch(member: str, embedder: Any, cache: Any) -> Any:
            sink = stack.enter_context(MetricsWriter(work.folder, member=member))
            return build_watcher(embedder, cache, sink=sink)

        common: dict[str, Any] = {
            "name": name,
            "settings": work.settings,
            "resume": True,
            "cache_trunk": bool(work.params.get("cache_trunk", True)),
            "is_synthetic": bool(work.params.get("is_synthetic", False)),
            "progress": work.report,
        }
        if work.params.get("is_ensemble"):
            train_ensemble(dataset, config, **common, watch=watch)
        else:
            train(dataset, config, **common, watch=functools.partial(watch, ""))
    return {"model_id": name}


def _is_complete(work: Work, config: RunConfig) -> bool:
    """Whether this job's model is complete and only the job's result was lost.

    Raises:
        JobError: another model took its name, or a member's, while the job was not running.
    """
    from core.models.marks import is_model

    directory, name = work.settings.checkpoints_dir, str(work.params["name"])
    recipes = config.for_members(name) if work.params.get("is_ensemble") else {name: config}
    for model_id in dict.fromkeys((name, *recipes)):
        folder = directory / model_id
        if folder.exists() and not _is_own(work, folder, recipes):
            raise JobError(
                f"another model called {model_id!r} was made meanwhile; delete it, or train under "
                "another name."
                if is_model(folder)
                else f"{folder} is not a model and is left alone; train under another name.",
                code="job.name_taken",
                params={"name": model_id},
            )
    return (directory / name).exists()


def _is_own(work: Work, folder: Path, recipes: Mapping[str, RunConfig]) -> bool:
    """Whether a model has this job's recipe and data; training checks members more strictly."""
    from core.models.ensemble import read_record
    from core.training.ensemble import read_if_of_recipe

    if folder.name not in recipes:
        try:
            return {member.model_id for member in read_record(folder).members} == set(recipes)
        except CoreError:
            return False
    found = read_if_of_recipe(folder, recipes[folder.name])
    if found is None:
        return False
    disease = found.class_names[found.disease_index]
    return (
        found.training_data.is_at(read_path(work.params["data"]))
        and (work.options.disease_class or disease) == disease
    )


def _evaluate(work: Work) -> dict[str, Any]:
    """Evaluate a model and save the result with its bundle. Parameters: model, data, split, parts,
    options."""
    from core.assessment.assess import assess
    from core.assessment.record import to_json

    evaluation = assess(
        str(work.params["model"]),
        read_path(work.params["data"]),
        split=str(work.params.get("split", "test")),
        settings=work.settings,
        parts=list(work.params.get("parts", [])),
        options=work.options,
        progress=work.report,
    )
    return to_json(evaluation)


def _audit(work: Work) -> dict[str, Any]:
    """Audit data before training. Parameters: data, options, val_fraction, seeds (of the
    validation split; each is judged, the images are read once)."""
    from core.data.audit import audit, restate
    from core.data.datasets import split_plan
    from core.data.plan import make_plan
    from core.data.readiness import combine, judge
    from core.jobs.pictures import save_pictures

    default = TrainConfig()
    plan = make_plan(read_path(work.params["data"]), work.options)
    splits = split_plan(
        plan,
        seeds=work.params.get("seeds", [default.seed]),
        val_fraction=work.params.get("val_fraction", default.val_fraction),
    )
    dataset = next(iter(splits.values()))
    report = audit(dataset, progress=lambda done, text: work.report(0.95 * done, text))
    reports = {seed: restate(report, mine) for seed, mine in splits.items()}
    judged = {seed: judge(mine) for seed, mine in reports.items()}
    pictures = save_pictures(dataset, combine(judged.values()), work.folder / "pictures")
    return {
        "report": report.to_json(),
        "counts": {str(seed): mine.counts for seed, mine in reports.items()},
        "plan": [decision.to_json() for decision in plan.decisions],
        "class_names": list(dataset.class_names),
        "disease_class": dataset.class_names[dataset.disease_index],
        "findings": {
            str(seed): [dataclasses.asdict(finding) for finding in findings]
            for seed, findings in judged.items()
        },
        **pictures,
    }


def _trial(work: Work) -> dict[str, Any]:
    """Estimate the cost of a run. Parameters: as for train, without the name."""
    config = build_config(work.params)
    dataset = work.read_data(config)
    from core.training.cost_estimate import run_trial

    for logger_name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger_name).setLevel(logging.ERROR)
    found = run_trial(
        dataset,
        config,
        settings=work.settings,
        cache_trunk=bool(work.params.get("cache_trunk", True)),
        is_ensemble=bool(work.params.get("is_ensemble", False)),
        process_s=read_age(),
        progress=work.report,
    )
    return {
        **dataclasses.asdict(found),
        "total_s": found.total_s,
        "has_disk": found.has_disk,
        "has_memory": found.has_memory,
        "has_gpu_memory": found.has_gpu_memory,
    }


def _compare(work: Work) -> dict[str, Any]:
    """Compare two models. Parameters: first, second, data, split, options."""
    from core.assessment.model_comparison import compare_models, save_comparison
    from core.models.registry import find_model, load_bundle

    directory = work.settings.checkpoints_dir
    names = [str(work.params[key]) for key in ("first", "second")]
    first, second = (load_bundle(directory, n, settings=work.settings) for n in names)
    hashes = [find_model(directory, name).weights_sha256 for name in names]
    found = compare_models(
        first,
        second,
        work.read_data(first.lead.config.run, model=first.lead.training_data),
        split=str(work.params.get("split", "test")),
        hashes=(hashes[0], hashes[1]),
        pictures=work.folder / "pictures",
        progress=work.report,
    )
    save_comparison(directory, found)
    return dataclasses.asdict(found)


@dataclass(frozen=True)
class Kind:
    """One kind of job."""

    run: Callable[[Work], dict[str, Any]]  # returns the result, plain JSON
    lane: str  # jobs in a lane run one at a time; an audit must not wait for training
    makes_model: bool = False  # whether it trains the model given by parameter ``name``


KINDS: Mapping[str, Kind] = {
    "train": Kind(_train, "model", makes_model=True),
    "evaluate": Kind(_evaluate, "model"),
    "compare": Kind(_compare, "model"),
    "audit": Kind(_audit, "look"),
    "trial": Kind(_trial, "look"),
}


def lane_of(kind: str) -> str | None:
    """The queue that jobs of a kind wait in; None for a kind from a later version."""
    return KINDS[kind].lane if kind in KINDS else None


def makes_model(kind: str) -> bool:
    """Whether jobs of a kind train the model given by their parameter ``name``."""
    return kind in KINDS and KINDS[kind].makes_model
