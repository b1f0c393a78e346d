"""Two models of one data set and their ensemble, in one go: the report's systems 4, 5 and 6.

Owns the pair and its shared trunk cache; every step is one of training's or ensemble's own.
"""

import dataclasses
import shutil
from pathlib import Path

from core.bundle import check_model_id
from core.config import RunConfig, Settings
from core.datasets import Dataset
from core.embedder import Progress
from core.ensemble import build_ensemble
from core.errors import CheckpointError
from core.training import train

OBJECTIVE_OF = {"triplet": "triplet", "metric": "metric-ensemble"}  # member's suffix: objective


def train_ensemble(
    dataset: Dataset,
    config: RunConfig,
    *,
    name: str,
    settings: Settings,
    resume: bool = False,
    is_synthetic: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train ``NAME-triplet`` and ``NAME-metric`` and write their ensemble ``NAME``.

    Args:
        dataset: with training and validation images.
        config: the recipe of both but for the objective.
        name: of the ensemble; must be free.
        settings: where checkpoints go, device, threads.
        resume: go on with an interrupted run; finished members are kept.
        is_synthetic: marks models of the drawn demo images.
        progress: told the share done and a sentence.

    Returns:
        The ensemble's folder.

    Raises:
        CheckpointError: a name is taken.
        ConfigError: a member's validation accuracy is under the gate; the members stay.
        CoreError: what training raises.
    """
    directory = settings.checkpoints_dir
    members = [f"{check_model_id(name)}-{suffix}" for suffix in OBJECTIVE_OF]
    taken = [one for one in (name, *members) if (directory / one).exists()]
    if name in taken or (taken and not resume):
        raise CheckpointError(
            f"model {taken[0]!r} exists; choose another --name or delete it first.",
            code="checkpoint.exists",
            params={"model_id": taken[0]},
        )
    cache = directory / ".runs" / f"{name}-cache"
    for index, (member, objective) in enumerate(zip(members, OBJECTIVE_OF.values(), strict=True)):
        if member in taken:
            continue
        own = dataclasses.replace(
            config, objective=dataclasses.replace(config.objective, name=objective)
        )
        train(
            dataset,
            own,
            name=member,
            settings=settings,
            resume=resume,
            cache_folder=cache,
            is_synthetic=is_synthetic,
            progress=map_progress(progress, index / len(members), 1.0 / len(members)),
        )
    shutil.rmtree(cache, ignore_errors=True)
    gate = config.ensemble.min_val_accuracy
    return build_ensemble(directory, name, members, min_val_accuracy=gate)


def map_progress(progress: Progress | None, start: float, share: float) -> Progress | None:
    """Map a part's share done onto the whole's."""
    if progress is None:
        return None

    def report(done: float, text: str) -> None:
        progress(start + share * done, text)

    return report
