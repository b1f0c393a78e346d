"""Metrics computed during training: validation by K, embedding spread, the map as it forms.

Owns the metrics that a live page shows. They are measured on a sample of the images with one view
each, so they are less precise than those of the finished model, and take at most a tenth of the
time.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.gallery.k_search import search_k
from core.gallery.search import Gallery
from core.network.embedder import Embedded, Embedder
from core.stats.metrics import rank_auroc
from core.training.fitting import Watch, compute_spread
from core.training.trunk_cache import TrunkCache

_N_SAMPLED = 192  # images from training, and from validation
_ROWS = 32
_MAX_SHARE = 0.1  # of the time, at most, spent on live metrics

Sink = Callable[[dict[str, Any]], None]


def build_watcher(embedder: Embedder, cache: TrunkCache, *, sink: Sink) -> Watch:
    """Return a function for ``fitting.fit`` that measures and hands each record to ``sink``.

    A record holds the step's own metrics (step, n_steps, loss, spread, separation, active,
    adapter_lr, tail_lr) and, when time allows and at the end, ``validation``: accuracy, auroc,
    k_scores, spread, and ``map`` with xy (N, 2) and is_disease (N,).
    """
    watcher = _Watcher(embedder, cache)

    def observe(figures: dict[str, float]) -> None:
        record: dict[str, Any] = {key: round(value, 8) for key, value in figures.items()}
        if watcher.may_measure or figures["step"] >= figures["n_steps"]:
            record["validation"] = watcher.measure()
        sink(record)

    return observe


class _Watcher:
    """Embeds the sample again and keeps the last map, so that the next one does not jump."""

    def __init__(self, embedder: Embedder, cache: TrunkCache) -> None:
        self.embedder = embedder
        self.cache = cache
        self.train_rows = _sample(cache, "train")
        self.val_rows = _sample(cache, "val")
        self.axes: NDArray[np.float64] | None = None
        self.cost = 0.0
        self.last_end = -np.inf

    @property
    def may_measure(self) -> bool:
        """Whether the time spent on live metrics so far allows another measurement."""
        return self.cost <= _MAX_SHARE * (time.monotonic() - self.last_end)

    def measure(self) -> dict[str, Any]:
        """Validation metrics of the net in its current state."""
        began = time.monotonic()
        val = self._embed(self.val_rows)
        labels = self._labels(self.val_rows)
        if val.class_probs is not None:
            p_disease = val.class_probs[:, 1]
            scores = []
            accuracy = float(np.mean((p_disease > 0.5) == (labels == 1)))
            auroc = rank_auroc(labels == 1, p_disease.astype(np.float64))
        else:
            found = self._search(val.embeddings, labels)
            scores = [{"k": s.k, "accuracy": s.accuracy, "auroc": s.auroc} for s in found.scores]
            best = next(s for s in found.scores if s.k == found.k)
            accuracy, auroc = best.accuracy, best.auroc
        measured = {
            "accuracy": accuracy,
            "auroc": auroc,
            "k_scores": scores,
            "n": len(labels),
            "spread": compute_spread(val.embeddings),
            "map": {
                "xy": self._place(val.embeddings).round(4).tolist(),
                "is_disease": (labels == 1).tolist(),
            },
        }
        self.last_end = time.monotonic()
        self.cost = self.last_end - began
        return measured

    def _search(self, queries: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
        known = self._embed(self.train_rows).embeddings
        n = len(known)
        gallery = Gallery(
            embeddings=known,
            labels=self._labels(self.train_rows),
            keys=tuple(map(str, range(n))),
            splits=("train",) * n,
            groups=("",) * n,
            sha256=tuple(map(str, range(n))),
            n_parts=max(1, self.embedder.config.objective.n_adapters),
        )
        candidates = [k for k in self.embedder.config.knn.k_candidates if k <= n] or [n]
        return search_k(gallery, queries, labels, candidates=candidates, disease_index=1)

    def _labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.cache.records[row].label for row in rows], dtype=np.int64)

    def _embed(self, rows: NDArray[np.int64]) -> Embedded:
        parts = (rows[start : start + _ROWS].tolist() for start in range(0, len(rows), _ROWS))
        return self.embedder.embed_cached(
            [a[None] for a in self.cache.read_views(part, [0] * len(part))] for part in parts
        )

    def _place(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Project onto the two directions of largest variance, aligned with the last map."""
        centred = embeddings.astype(np.float64) - embeddings.mean(axis=0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        if self.axes is not None and self.axes.shape == axes.shape:
            u, _, vt = np.linalg.svd(self.axes @ axes.T)
            axes = u @ vt @ axes
        self.axes = axes
        placed: NDArray[np.float64] = centred @ axes.T
        return placed


def _sample(cache: TrunkCache, split: str) -> NDArray[np.int64]:
    """A fixed stratified sample of at most _N_SAMPLED rows."""
    rows = cache.find_rows(split)
    if len(rows) <= _N_SAMPLED:
        return rows
    labels = np.array([cache.records[row].label for row in rows])
    order = np.argsort(labels, kind="stable")
    chosen = order[np.linspace(0, len(rows) - 1, _N_SAMPLED).round().astype(int)]
    return np.sort(rows[chosen])
