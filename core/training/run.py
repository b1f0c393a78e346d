"""Fine-tune from data to model bundle: run folder, trunk cache, fitting, choice of K.

Owns what makes up a run. A run lives in a hidden folder beside the models until its bundle is
written atomically; if it is killed at any moment, it can be resumed from there.
"""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.errors import CheckpointError, ConfigError, DataError, JobError
from core.files.locks import hold_run
from core.files.whole import check_writable_folder, write_text
from core.models.bundle import check_model_id
from core.models.bundle_files import freeze_trained, save_bundle
from core.models.marks import check_free
from core.network.build import build_embedder
from core.network.embedder import Embedder, Progress
from core.training.finalise import describe, finish, write_card
from core.training.fitting import Log, Watch, fit
from core.training.initialisation import average_with_start, begin_with_pca
from core.training.trunk_cache import TrunkCache

logger = logging.getLogger(__name__)

_MIN_PER_CLASS = 2
_CACHE_SHARE = 0.7  # of the progress bar


def train(
    dataset: Dataset,
    config: RunConfig,
    *,
    name: str,
    settings: Settings,
    resume: bool = False,
    cache_trunk: bool = True,
    cache_folder: Path | None = None,
    is_synthetic: bool = False,
    progress: Progress | None = None,
    watch: Callable[[Embedder, TrunkCache], Watch] | None = None,
) -> Path:
    """Fine-tune a model and write its bundle.

    Args:
        dataset: with training and validation images.
        config: the whole recipe.
        name: of the new model; must not be taken.
        settings: where checkpoints go, device, threads.
        resume: continue an interrupted run of this name; starts a new one if there is none.
        cache_trunk: keep trunk activations on disk while training.
        cache_folder: where to keep them; if given, it is kept for later runs on the same data and
            views.
        is_synthetic: marks models trained on the synthetic demo images.
        progress: called with the fraction done and a message with the time left.
        watch: builds the watcher of the fit (see ``core.training.live_metrics``).
        watch: makes the watcher of the fitting (see ``core.training.live_metrics``).

    Returns:
        The bundle's folder.

    Raises:
        CheckpointError: the name is taken, or the files of an interrupted run cannot be read.
        JobError: an interrupted run of this name exists, or one is running.
        ConfigError: the interrupted run had other settings or data.
        DataError: too few images, or not enough disk space.
    """
    check_free(settings.checkpoints_dir, check_model_id(name))
    check_writable_folder(settings.checkpoints_dir)
    with _open_run(settings.checkpoints_dir / ".runs" / name, resume=resume) as folder:
        log = _open_log(folder / "train.log")
        _check_same_run(folder, config, dataset, cache_trunk=cache_trunk)
        log(f"run {name}: preset {config.preset}, {len(dataset.records)} images")
        embedder = build_embedder(config, settings)
        records = [*dataset.subset("train"), *dataset.subset("val")]
        cache = TrunkCache(
            cache_folder or folder / "cache",
            embedder,
            records,
            data_id=dataset.data_id,
            is_stored=cache_trunk,
        )
        began = time.monotonic()
        _build_cache(cache, log=log, progress=progress)
        seconds = {"trunk": time.monotonic() - began}
        _check_enough(dataset, cache)
        report = _with_eta(progress, "training", start=_CACHE_SHARE, share=0.96 - _CACHE_SHARE)
        began = time.monotonic()
        start = begin_with_pca(embedder, cache)
        observe = watch(embedder, cache) if watch else None
        fit(embedder, cache, folder, log=log, progress=report, watch=observe)
        if embedder.net.classifier is None:
            average_with_start(embedder.net, start, share=config.train.start_share)
        seconds["fit"] = time.monotonic() - began  # in this process; a resumed run took longer
        if progress:
            progress(0.97, "choosing K, fitting the map, writing the model")
        contents = finish(freeze_trained(embedder), cache, dataset, log=log)
        contents = dataclasses.replace(
            contents,
            metrics={**contents.metrics, "seconds": seconds},
            log=(folder / "train.log").read_text(encoding="utf-8"),
        )
        bundle_config = describe(embedder, dataset, name=name, is_synthetic=is_synthetic)
        contents = dataclasses.replace(contents, card=write_card(bundle_config, contents))
        written = save_bundle(settings.checkpoints_dir, bundle_config, embedder, contents)
        if cache_folder is None:
            cache.delete()
    shutil.rmtree(folder, ignore_errors=True)
    if progress:
        progress(1.0, f"model {name} is ready")
    return written


@contextmanager
def _open_run(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Create the run's folder, or reopen it, and hold its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_run(folder, called=f"model {folder.name!r}"):
        if (folder / "run.json").is_file() and not resume:
            raise JobError(
                f"an interrupted run lies in {folder}, and no process is training in it. Add "
                "--resume to go on with it, or delete that folder to begin anew.",
                code="job.interrupted",
            )
        yield folder


def _open_log(path: Path) -> Log:
    def log(text: str) -> None:
        logger.info("%s", text)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with path.open("a", encoding="utf-8") as handle:
            handle.write(f"{stamp} {text}\n")

    return log


def _check_same_run(
    folder: Path, config: RunConfig, dataset: Dataset, *, cache_trunk: bool
) -> None:
    """Write run.json before anything else; refuse to mix two recipes in one run."""
    path = folder / "run.json"
    now = {
        "run": json.loads(config.to_json()),
        "data_id": dataset.data_id,
        "class_names": list(dataset.class_names),
        "cache_trunk": cache_trunk,
    }
    if not path.is_file():
        write_text(path, json.dumps(now, indent=2))
        return
    before = _read_run(path)
    different = [key for key, value in now.items() if before.get(key) != value]
    if different:
        raise ConfigError(
            f"the interrupted run in {folder} had another {' and '.join(different)}. Resume it "
            "with the settings and data it began with (run.json there), or delete that folder.",
            code="config.resume",
        )


def _read_run(path: Path) -> dict[str, Any]:
    """Read ``run.json``; a power cut may have left it empty or truncated."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(before, dict):
            return before
        reason = "expected an object"
    except (OSError, ValueError) as err:
        reason = str(err)
    raise CheckpointError(
        f"the interrupted run in {path.parent} cannot be resumed: its {path.name} cannot be read "
        f"({reason}), so nobody knows with what settings it began. Delete that folder to begin "
        "anew, or train under another name.",
        code="config.resume",
    )


def _build_cache(cache: TrunkCache, *, log: Log, progress: Progress | None) -> None:
    if not cache.is_complete:
        log("running the trunks")
    report = _with_eta(progress, "running the trunks", start=0.0, share=_CACHE_SHARE)
    cache.build(progress=report)
    for reason in cache.skipped.values():
        log(f"left out: {reason}")


def _check_enough(dataset: Dataset, cache: TrunkCache) -> None:
    for split in ("train", "val"):
        labels = [cache.records[row].label for row in cache.find_rows(split)]
        for label, class_name in enumerate(dataset.class_names):
            n = labels.count(label)
            if n < _MIN_PER_CLASS:
                raise DataError(
                    f"class {class_name!r} has {n} readable images in {split}; at least "
                    f"{_MIN_PER_CLASS} are needed. Add images, or run audit to see which fail.",
                    code="data.too_few",
                    params={"class_name": class_name, "n": n, "split": split},
                )


def _with_eta(
    progress: Progress | None, stage: str, *, start: float, share: float
) -> Progress | None:
    """Map a stage's progress onto the whole run's and add the estimated time left."""
    if progress is None:
        return None
    began = time.monotonic()
    first: float | None = None  # a resumed stage does not start at zero

    def report(done: float, text: str) -> None:
        nonlocal first
        elapsed = time.monotonic() - began
        if first is None:
            first = done
        gained = done - first
        left = elapsed * (1.0 - done) / gained if gained > 0 else None
        eta = f", about {_format_duration(left)} left in this stage" if left is not None else ""
        progress(start + share * done, f"{stage}: {text}{eta}")

    return report


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
