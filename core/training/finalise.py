"""Finalise a training run: embed the gallery, choose K, calibrate, write the bundle.

Owns the choice of K, the calibration on validation, and the model's card.
"""

import dataclasses
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from core.config import RunConfig
from core.data.datasets import Dataset
from core.data.options import DataOptions
from core.files.names import escape_markdown, write_path
from core.gallery import novelty, projection
from core.gallery.k_search import KSearch, search_k
from core.gallery.search import Gallery
from core.gallery.voting import cast_votes, read_shares
from core.models.bundle import BundleConfig, Contents
from core.network.embedder import Embedded, Embedder
from core.stats import metrics
from core.stats.calibration import fit_calibration
from core.training import copy_distances
from core.training.fitting import Log, compute_separation, compute_spread, find_collapse
from core.training.trunk_cache import TrunkCache

_EMBED_ROWS = 32


def _embed_split(embedder: Embedder, cache: TrunkCache, rows: NDArray[np.int64]) -> Embedded:
    """Embed cached rows with the same views as a query."""
    starts = range(0, len(rows), _EMBED_ROWS)
    return embedder.embed_cached(cache.read_clean(rows[i : i + _EMBED_ROWS]) for i in starts)


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


def finish(embedder: Embedder, cache: TrunkCache, dataset: Dataset, *, log: Log) -> Contents:
    """Embed the gallery, choose K on validation, calibrate, fit the map; the card is left empty.

    Args:
        embedder: as it will be used for prediction (see ``freeze_trained``).
        cache: complete; unreadable images are listed in the metrics.
        dataset: the data set that defines the classes.
        log: receives the validation metrics.
    """
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
        found = KSearch(0, ())  # a classifier: no vote, no K
        scores = held_out.class_probs[:, dataset.disease_index].astype(np.float64)
    else:
        found, scores = _vote_on_validation(
            cache, dataset, gallery, queries, val_rows, labels, config=config
        )
    groups = [cache.records[row].group or "" for row in val_rows]
    calibration = fit_calibration(is_disease, scores, k=found.k, groups=groups)
    p_disease = calibration.apply(scores)
    report = metrics.compute_metrics(is_disease, p_disease, groups=groups)
    spread = compute_spread(embeddings)
    separation = compute_separation(queries, labels)
    collapse = find_collapse(spread, separation)
    log(f"validation: accuracy {report.accuracy:.4f}, AUROC {report.auroc:.4f}, K {found.k}")
    mapped = projection.fit(embeddings, seed=config.train.seed)
    copies = copy_distances.measure(embedder, cache, train_rows, known.descriptors)
    return Contents(
        gallery=gallery,
        novelty=novelty.fit(known.descriptors, copy_distances=copies),
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
                "sha256": [cache.compute_sha256(int(row)) for row in val_rows],
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
    """Choose K, and compute the disease share of the vote on every validation image."""
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
    return found, read_shares(ballots, gallery.labels, class_index=dataset.disease_index)


def describe(
    embedder: Embedder, dataset: Dataset, *, name: str, is_synthetic: bool
) -> BundleConfig:
    """The bundle's configuration; the weights' hash is filled in when it is written."""
    return BundleConfig(
        model_id=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=embedder.config,
        class_names=dataset.class_names,
        disease_index=dataset.disease_index,
        data_id=dataset.data_id,
        data_root=write_path(dataset.root),
        is_synthetic=is_synthetic,
        backbones=tuple(backbone.info for backbone in embedder.backbones),
        precision=embedder.precision,
        weights_sha256="",
        data_options=dataset.plan.options if dataset.plan else DataOptions(),
        disease_reason=dataset.plan.disease_reason if dataset.plan else "",
    )


def write_card(config: BundleConfig, contents: Contents) -> str:
    """The model's card in Markdown: how it was trained and its validation metrics."""
    report = contents.metrics["validation"]
    low, high = report["accuracy_ci95"]
    names = ", ".join(map(escape_markdown, config.class_names))
    disease = escape_markdown(config.class_names[config.disease_index])
    backbones = "\n".join(
        f"- {info.name}: {info.source_kind} ({info.source_location}), licence {info.licence}"
        for info in config.backbones
    )
    k = contents.metrics["k"]
    vote = f"K = {k}" if k else "no vote: a linear classifier answers"
    kind = "SYNTHETIC demo images" if config.is_synthetic else "images"
    return f"""# {config.model_id}

Research use, not a diagnosis.

- Made {config.created[:16].replace("T", " ")} UTC, preset {config.run.preset}, recipe
  {config.run.recipe}, objective {config.run.objective.name}
- Data {config.data_id}: {len(contents.gallery)} {kind} that vote; classes
  {names}
- The class that counts as disease: {disease}. {escape_markdown(config.disease_reason)}
- Validation, {report["n"]} images: accuracy {report["accuracy"]:.3f} (95 % CI {low:.3f} to
  {high:.3f}), AUROC {report["auroc"]:.3f}, {vote}
- {config.run.train.epochs} epochs, seed {config.run.train.seed}; gallery and queries embedded with
  {config.run.embedder.n_test_views} views, trunks in {config.precision}

Backbones, frozen but for their last stages:

{backbones}

The figures are from a validation split of the training data: another hospital's images will do
worse. Measure on your own with `python -m core evaluate`.
"""
