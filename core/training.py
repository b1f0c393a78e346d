"""Fine-tuning from data to model bundle: run folder, trunk cache, fitting, choice of K, writing.

Owns what a run is. It lives in a hidden folder beside the models until its bundle is written
whole; killed at any moment, it is resumed from there.
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

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from core import evaluation, novelty, projection
from core.backbones import BackboneInfo
from core.bundle import (
    BundleConfig,
    Contents,
    check_model_id,
    freeze_trained,
    save_bundle,
    write_text,
)
from core.config import RunConfig, Settings
from core.datasets import Dataset
from core.embedder import Embedded, Embedder, Progress, build_embedder, join_embedded
from core.errors import CheckpointError, ConfigError, DataError, JobError
from core.fitting import Log, Watch, compute_separation, compute_spread, find_collapse, fit
from core.knn import Gallery, KSearch, cast_votes, search_k
from core.starting_point import average_with_start, begin_with_pca
from core.trunk_cache import TrunkCache

logger = logging.getLogger(__name__)

_EMBED_ROWS = 32
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
        name: of the new model; must be free.
        settings: where checkpoints go, device, threads.
        resume: go on with an interrupted run of this name; begins anew if there is none.
        cache_trunk: keep trunk activations on disk while training.
        cache_folder: where; given, it is kept for the next run on the same data and views.
        is_synthetic: marks models of the drawn demo images.
        progress: told the share done and a sentence with the time left.
        watch: makes the watcher of the fitting (see ``core.watching``).

    Returns:
        The bundle's folder.

    Raises:
        CheckpointError: the name is taken.
        JobError: an interrupted run of this name exists, or one is running now.
        ConfigError: the interrupted run had other settings or data.
        DataError: too few images, or the disk is too small.
    """
    final = settings.checkpoints_dir / check_model_id(name)
    if final.exists():
        raise CheckpointError(
            f"model {name!r} exists; choose another --name or delete it first.",
            code="checkpoint.exists",
            params={"model_id": name},
        )
    with _open_run(settings.checkpoints_dir / ".runs" / name, resume=resume) as folder:
        log = _open_log(folder / "train.log")
        _check_same_run(folder, config, dataset, cache_trunk=cache_trunk)
        log(f"run {name}: preset {config.preset}, {len(dataset.records)} images")
        embedder = build_embedder(config, settings)
        records = [*dataset.subset("train"), *dataset.subset("val")]
        cache = TrunkCache(
            cache_folder or folder / "cache", embedder, records, is_stored=cache_trunk
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
        seconds["fit"] = time.monotonic() - began  # of this process; a resumed run's was longer
        if progress:
            progress(0.97, "choosing K, fitting the map, writing the model")
        contents = _finish(freeze_trained(embedder), cache, dataset, log=log)
        contents = dataclasses.replace(
            contents,
            metrics={**contents.metrics, "seconds": seconds},
            log=(folder / "train.log").read_text(encoding="utf-8"),
        )
        bundle_config = _describe(embedder, dataset, name=name, is_synthetic=is_synthetic)
        contents = dataclasses.replace(contents, card=_write_card(bundle_config, contents))
        written = save_bundle(settings.checkpoints_dir, bundle_config, embedder, contents)
        if cache_folder is None:
            cache.delete()
    shutil.rmtree(folder, ignore_errors=True)
    if progress:
        progress(1.0, f"model {name} is ready")
    return written


@contextmanager
def _open_run(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Hold the run's folder for this process alone; the lock dies with the process."""
    had_run = (folder / "run.json").is_file()
    if had_run and not resume:
        raise JobError(
            f"an interrupted run lies in {folder}. Add --resume to go on with it, or delete that "
            "folder to begin anew.",
            code="job.interrupted",
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise JobError(
            f"another process is training this model now (lock {folder / 'lock'}). Wait for it "
            "or stop it.",
            code="job.busy",
        ) from err
    try:
        yield folder
    finally:
        lock.release()


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
    before = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key, value in now.items() if before.get(key) != value]
    if different:
        raise ConfigError(
            f"the interrupted run in {folder} had another {' and '.join(different)}. Resume it "
            "with the settings and data it began with (run.json there), or delete that folder.",
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
    """Map a stage's share onto the whole run's and add the time it still needs."""
    if progress is None:
        return None
    began = time.monotonic()
    first: float | None = None  # a resumed stage does not begin at zero

    def report(done: float, text: str) -> None:
        nonlocal first
        elapsed = time.monotonic() - began
        if first is None:
            first = done
        gained = done - first
        left = elapsed * (1.0 - done) / gained if gained > 0 else None
        eta = f", about {_say_duration(left)} left in this stage" if left is not None else ""
        progress(start + share * done, f"{stage}: {text}{eta}")

    return report


def _say_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _embed_split(embedder: Embedder, cache: TrunkCache, rows: NDArray[np.int64]) -> Embedded:
    """Embed cached rows with the views a query would get."""
    batches = []
    for start in range(0, len(rows), _EMBED_ROWS):
        activations = cache.read_clean(rows[start : start + _EMBED_ROWS])
        batches.append(embedder.embed_activations(activations).without_tensors())
    return join_embedded(batches)


def _build_gallery(
    cache: TrunkCache, rows: NDArray[np.int64], embeddings: NDArray[np.float32], *, n_parts: int
) -> Gallery:
    records = [cache.records[row] for row in rows]
    return Gallery(
        embeddings=embeddings,
        labels=np.array([record.label for record in records], dtype=np.int64),
        keys=tuple(record.key for record in records),
        splits=tuple(record.split for record in records),
        groups=tuple(record.group or "" for record in records),
        sha256=tuple(cache.compute_sha256(int(row)) for row in rows),
        n_parts=n_parts,
    )


def _finish(embedder: Embedder, cache: TrunkCache, dataset: Dataset, *, log: Log) -> Contents:
    config = embedder.config
    train_rows, val_rows = cache.find_rows("train"), cache.find_rows("val")
    known = _embed_split(embedder, cache, train_rows)
    held_out = _embed_split(embedder, cache, val_rows)
    embeddings, queries = known.embeddings, held_out.embeddings
    n_parts = max(1, config.objective.n_adapters)
    gallery = _build_gallery(cache, train_rows, embeddings, n_parts=n_parts)
    labels = np.array([cache.records[row].label for row in val_rows], dtype=np.int64)
    is_disease = labels == dataset.disease_index
    if held_out.class_probs is not None:
        found = KSearch(0, ())  # nobody votes
        scores = held_out.class_probs[:, dataset.disease_index].astype(np.float64)
    else:
        found, scores = _vote_on_validation(
            cache, dataset, gallery, queries, val_rows, labels, config=config
        )
    groups = [cache.records[row].group or "" for row in val_rows]
    calibration = evaluation.fit_calibration(is_disease, scores, k=found.k, groups=groups)
    p_disease = calibration.apply(scores)
    report = evaluation.evaluate(is_disease, p_disease, groups=groups)
    spread = compute_spread(embeddings)
    separation = compute_separation(queries, labels)
    collapse = find_collapse(spread, separation)
    log(f"validation: accuracy {report.accuracy:.4f}, AUROC {report.auroc:.4f}, K {found.k}")
    mapped = projection.fit(embeddings, seed=config.train.seed)
    return Contents(
        gallery=gallery,
        novelty=novelty.fit(known.descriptors),
        gallery_xy=mapped.gallery_xy,
        projection_key=mapped.cache_key,
        calibration=calibration,
        metrics={
            "k": found.k,
            "n_gallery": len(gallery),
            "validation": dataclasses.asdict(report),
            "validation_answers": {
                "keys": [cache.records[row].key for row in val_rows],
                "groups": groups,
                "is_disease": is_disease.tolist(),
                "p_disease": [round(float(p), 6) for p in p_disease],
            },
            "k_search": [dataclasses.asdict(score) for score in found.scores],
            "spread": spread,
            "separation": separation,
            "warnings": [collapse] if collapse else [],
            "left_out": cache.skipped,
        },
        thumbnails=tuple(cache.read_thumbnail(int(row)) for row in train_rows),
        card="",
    )


def _vote_on_validation(
    cache: TrunkCache,
    dataset: Dataset,
    gallery: Gallery,
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    config: RunConfig,
) -> tuple[KSearch, NDArray[np.float64]]:
    """Choose K, and the share of the vote for disease of every validation image."""
    related = [
        gallery.find_related(
            sha256=cache.compute_sha256(int(row)), group=cache.records[row].group or ""
        )
        for row in rows
    ]
    excluded = [np.array(sorted(barred), dtype=np.int64) for barred in related]
    found = search_k(
        gallery,
        queries,
        labels,
        candidates=config.knn.k_candidates,
        disease_index=dataset.disease_index,
        excluded=excluded,
        rule=config.knn.k_rule,
    )
    ballots = cast_votes(gallery, queries, found.k, excluded=excluded)
    n_classes = len(dataset.class_names)
    shares = [ballot.sum_by_class(gallery.labels, n_classes=n_classes) for ballot in ballots]
    return found, np.array(shares)[:, dataset.disease_index]


def _describe(
    embedder: Embedder, dataset: Dataset, *, name: str, is_synthetic: bool
) -> BundleConfig:
    return BundleConfig(
        model_id=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=embedder.config,
        class_names=dataset.class_names,
        disease_index=dataset.disease_index,
        data_id=dataset.data_id,
        data_root=str(dataset.root.resolve()),
        is_synthetic=is_synthetic,
        backbones=tuple(
            BackboneInfo(
                name=backbone.name,
                trunk_hash=backbone.trunk_hash,
                source_kind=backbone.source.kind,
                source_location=backbone.source.location,
                licence=backbone.source.licence,
            )
            for backbone in embedder.backbones
        ),
        precision=embedder.precision,
        weights_sha256="",
    )


def _write_card(config: BundleConfig, contents: Contents) -> str:
    report = contents.metrics["validation"]
    low, high = report["accuracy_ci95"]
    backbones = "\n".join(
        f"- {info.name}: {info.source_kind} ({info.source_location}), licence {info.licence}"
        for info in config.backbones
    )
    k = contents.metrics["k"]
    vote = f"K = {k}" if k else "no vote: a linear classifier answers"
    kind = "SYNTHETIC demo images" if config.is_synthetic else "images"
    return f"""# {config.model_id}

Research use, not a diagnosis.

- Made {config.created}, preset {config.run.preset}, recipe {config.run.recipe}, objective
  {config.run.objective.name}
- Data {config.data_id}: {len(contents.gallery)} {kind} vote; classes
  {", ".join(config.class_names)}; disease is {config.class_names[config.disease_index]}
- Validation, {report["n"]} images: accuracy {report["accuracy"]:.3f} (95 % CI {low:.3f} to
  {high:.3f}), AUROC {report["auroc"]:.3f}, {vote}
- {config.run.train.epochs} epochs, seed {config.run.train.seed}; gallery and queries embedded with
  {config.run.embedder.n_test_views} views, trunks in {config.precision}

Backbones, frozen but for their last stages:

{backbones}

The figures are from a validation split of the training data: another hospital's images will do
worse. Measure on your own with `python -m core evaluate`.
"""
