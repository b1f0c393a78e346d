"""95 % intervals of the headline metrics, by resampling patients.

Owns the choice of headline metrics. Arrays in, frozen figures out; conventions as in
core.stats.metrics, whose own two intervals (accuracy, AUROC) are used unchanged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from core.stats.metrics import compute_ece, compute_metrics
from core.stats.proportions import bound_figure, find_clusters, measure_share

_N_BOOTSTRAP = 1000
Measure = Callable[[NDArray[np.bool_], NDArray[np.float64]], float]


@dataclass(frozen=True)
class Figure:
    """One metric with its interval, 0..1."""

    key: str
    value: float
    low: float
    high: float


def _measure_sensitivity(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    return float((probs[truth] > 0.5).mean())


def _measure_specificity(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    return float((probs[~truth] <= 0.5).mean())


def _measure_balanced(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    return (_measure_sensitivity(truth, probs) + _measure_specificity(truth, probs)) / 2


def _measure_precision(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    return float(average_precision_score(truth, probs))


def _measure_brier(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    return float(np.mean((probs - truth) ** 2))


_MEASURES: dict[str, Measure] = {
    "balanced_accuracy": _measure_balanced,
    "average_precision": _measure_precision,
    "brier": _measure_brier,
    "ece": compute_ece,
}


def compute_headlines(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Figure, ...]:
    """Compute accuracy, AUROC and the metrics above, each with its interval.

    Args:
        is_disease: (N,) true labels; both classes must occur.
        p_disease: (N,) probability of disease.
        groups: patient of each image. If given, patients are resampled instead of images.
        seed: of the bootstrap (1000 resamples, percentiles; resamples with one class are redrawn).
            Sensitivity and specificity have the intervals of ``proportions.measure_share``, the
            others those of ``proportions.bound_figure``.

    Raises:
        ShapeError, DataError: as ``metrics.compute_metrics``.

    Reference: Efron & Tibshirani 1993, ch. 13.
    """
    report = compute_metrics(is_disease, p_disease, groups=groups, seed=seed)
    truth, probs = np.asarray(is_disease, dtype=bool), np.asarray(p_disease, dtype=np.float64)
    drawn = _resample(truth, probs, groups, seed=seed)
    figures = [
        Figure("accuracy", report.accuracy, *report.accuracy_ci95),
        Figure("auroc", report.auroc, *report.auroc_ci95),
    ]
    called = probs > 0.5
    for key, hits, chosen in (("sensitivity", called, truth), ("specificity", ~called, ~truth)):
        share = measure_share(hits, among=chosen, groups=groups, seed=seed)
        figures.append(Figure(key, share.share or 0.0, share.low, share.high))
    for key, measure in _MEASURES.items():
        value = measure(truth, probs)
        low, high = bound_figure(value, drawn[key], truth=truth, groups=groups)
        figures.append(Figure(key, value, low, high))
    return tuple(figures)


def _resample(
    truth: NDArray[np.bool_],
    probs: NDArray[np.float64],
    groups: Sequence[str] | None,
    *,
    seed: int,
) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    clusters = find_clusters(groups, len(truth))
    drawn: dict[str, list[float]] = {key: [] for key in _MEASURES}
    while len(drawn["ece"]) < _N_BOOTSTRAP:
        picked = rng.integers(0, len(clusters), len(clusters))
        rows = np.concatenate([clusters[i] for i in picked])
        if truth[rows].all() or not truth[rows].any():
            continue
        for key, measure in _MEASURES.items():
            drawn[key].append(measure(truth[rows], probs[rows]))
    return drawn
