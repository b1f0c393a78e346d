"""Train two models on one data set and build their ensemble.

Owns the pair and its shared trunk cache; the steps themselves are in ``run`` and ``models``.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

from core.config import MEMBERS, RunConfig, Settings
from core.data.datasets import Dataset
from core.errors import ConfigError, CoreError
from core.models.bundle import BundleConfig, check_model_id
from core.models.bundle_files import read_bundle_config
from core.models.ensemble import build_ensemble
from core.models.marks import check_free, is_model
from core.network.embedder import Embedder, Progress
from core.training.fitting import Watch
from core.training.run import train
from core.training.trunk_cache import TrunkCache

WatchMember = Callable[[str, Embedder, TrunkCache], Watch]  # the member's name first


def name_members(name: str) -> list[str]:
    """List the models that an ensemble of this name consists of.

    Raises:
        ConfigError: the name, or a member's, is not a valid model name.
    """
    return [check_model_id(f"{check_model_id(name)}-{suffix}") for suffix in MEMBERS]


def train_ensemble(
    dataset: Dataset,
    config: RunConfig,
    *,
    name: str,
    settings: Settings,
    resume: bool = False,
    cache_trunk: bool = True,
    is_synthetic: bool = False,
    progress: Progress | None = None,
    watch: WatchMember | None = None,
) -> Path:
    """Train ``NAME-triplet`` and ``NAME-metric`` and write their ensemble ``NAME``.

    Args:
        dataset: with training and validation images.
        config: the recipe of both, except the objective.
        name: of the ensemble; must not be taken.
        settings: where checkpoints go, device, threads.
        resume: continue an interrupted run; finished members are kept.
        cache_trunk: keep trunk activations on disk while training.
        is_synthetic: marks models trained on the synthetic demo images.
        progress: called with the fraction done and a message.
        watch: builds the watcher for the member whose name it is given.

    Returns:
        The ensemble's folder.

    Raises:
        CheckpointError: a name is taken.
        ConfigError: a finished member has another recipe or other data, or a member's validation
            accuracy is below the threshold (the members are kept).
        CoreError: any error from training.
    """
    directory = settings.checkpoints_dir
    members = name_members(name)
    taken = [one for one in (name, *members) if (directory / one).exists()]
    if name in taken or (taken and not resume):
        check_free(directory, taken[0])
    recipes = config.for_members(name)
    for member in taken:
        if not is_model(directory / member):
            check_free(directory, member)
        _check_own(directory / member, recipes[member], dataset)
    cache = directory / ".runs" / f"{name}-cache"
    for index, (member, own) in enumerate(recipes.items()):
        if member in taken:
            continue
        train(
            dataset,
            own,
            name=member,
            settings=settings,
            resume=resume,
            cache_trunk=cache_trunk,
            cache_folder=cache,
            is_synthetic=is_synthetic,
            progress=map_progress(progress, index / len(members), 1.0 / len(members)),
            watch=functools.partial(watch, member) if watch else None,
        )
    shutil.rmtree(cache, ignore_errors=True)
    gate = config.ensemble.min_val_accuracy
    return build_ensemble(directory, name, members, min_val_accuracy=gate)


def read_if_of_recipe(folder: Path, run: RunConfig) -> BundleConfig | None:
    """A bundle's configuration, if it was trained with this recipe (except the threshold).

    None if it was not, or cannot be read.
    """
    try:
        found = read_bundle_config(folder)
    except CoreError:
        return None
    return found if dataclasses.replace(found.run, ensemble=run.ensemble) == run else None


def _check_own(folder: Path, run: RunConfig, dataset: Dataset) -> None:
    """Check that the model really is a member: one of the same name may be from any data."""
    found = read_if_of_recipe(folder, run)
    classes = (dataset.data_id, dataset.class_names, dataset.disease_index)
    if found and (found.data_id, found.class_names, found.disease_index) == classes:
        return
    raise ConfigError(
        f"model {folder.name!r} was trained with other settings or on other data than this run "
        "(or cannot be read). Resume with what it was made with, delete it, or choose another "
        "--name.",
        code="config.resume",
        params={"name": folder.name},
    )


def map_progress(progress: Progress | None, start: float, share: float) -> Progress | None:
    """Map the progress of one part onto the progress of the whole."""
    if progress is None:
        return None

    def report(done: float, text: str) -> None:
        progress(start + share * done, text)

    return report
