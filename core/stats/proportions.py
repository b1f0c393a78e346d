"""Proportions and means with intervals, clustered by patient.

Owns the interval of a proportion and of a mean, and corrections where a bootstrap fails. Arrays in,
frozen records out. Images of one patient are correlated: treated as independent, they would give
intervals that are too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from core.errors import ShapeError, check_shape

_N_BOOTSTRAP = 2000
_SAME = 1e-9  # smaller differences are rounding errors


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % interval; ``share`` is None if there is nothing to count."""

    n: int
    n_hit: int
    share: float | None
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval."""

    n: int
    mean: float
    low: float
    high: float


def find_clusters(groups: Sequence[str] | None, n: int) -> list[NDArray[np.int64]]:
    """Find the rows of each patient; an image without a patient is its own cluster."""
    names = [g or f"\0{i}" for i, g in enumerate(groups)] if groups else [str(i) for i in range(n)]
    _, inverse = np.unique(names, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def count_patients(groups: Sequence[str] | None, rows: NDArray[np.bool_]) -> int:
    """Count the patients among the (N,) marked images; an image without a patient counts as one."""
    if groups is None:
        return int(rows.sum())
    named = {groups[i] for i in np.flatnonzero(rows).tolist() if groups[i]}
    return len(named) + sum(not groups[i] for i in np.flatnonzero(rows).tolist())


def compute_share(n_hit: int, n: int) -> Share:
    """Compute a proportion of independent images with Wilson's 95 % interval.

    Reference: Wilson 1927, JASA 22, 209-212.
    """
    if n == 0:
        return Share(0, 0, None)
    interval = binomtest(n_hit, n).proportion_ci(0.95, method="wilson")
    return Share(n, n_hit, n_hit / n, float(interval.low), float(interval.high))


def measure_share(
    hits: NDArray[np.bool_],
    *,
    among: NDArray[np.bool_] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Share:
    """Measure a proportion of images with its 95 % interval over patients.

    If every image is from a different patient, the interval is Wilson's. Otherwise patients are
    resampled (2000 times, percentiles). If all images or none are hits, resampling shows no spread,
    so Wilson's interval is used with every patient counted once.

    Args:
        hits: (N,) whether each image counts.
        among: (N,) the images to consider; None for all.
        groups: (N,) patient of each image; empty string if unknown.
        seed: of the resampling.

    Returns:
        The share of the images; its interval is 0..1 if all are from one patient.

    Raises:
        ShapeError: lengths differ.

    Reference: Field & Welsh 2007, JRSS B 69(3), 369-390 (the cluster bootstrap).
    """
    if groups is not None and len(groups) != len(hits):
        raise ShapeError(f"groups: expected {len(hits)}, got {len(groups)}.")
    if among is not None:
        check_shape("among", among, hits.shape)
        groups = [groups[i] for i in np.flatnonzero(among).tolist()] if groups else None
        hits = hits[among]
    n, n_hit = len(hits), int(np.sum(hits))
    clusters = find_clusters(groups, n) if n else []
    if len(clusters) == n:
        return compute_share(n_hit, n)
    if len(clusters) == 1:
        return Share(n, n_hit, n_hit / n)
    if n_hit in (0, n):
        alone = compute_share(len(clusters) if n_hit else 0, len(clusters))
        return Share(n, n_hit, n_hit / n, alone.low, alone.high)
    sizes = np.array([len(rows) for rows in clusters])
    found = np.array([int(np.sum(hits[rows])) for rows in clusters])
    times = _draw_times(len(clusters), seed=seed)
    low, high = np.percentile((times @ found) / (times @ sizes), [2.5, 97.5])
    return Share(n, n_hit, n_hit / n, float(low), float(high))


def bound_figure(
    value: float,
    drawn: Sequence[float] | NDArray[np.float64],
    *,
    truth: NDArray[np.bool_],
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Compute a two-class metric's 95 % interval, within 0..1, from its resampled values.

    The interval is the percentiles of the resamples. A single patient gives no information about
    others: 0..1. If every resample gives 0 or every one gives 1, as with perfectly separated
    classes, the other bound is Wilson's, with each patient of the rarer class counted once.

    Args:
        value: the metric on all images.
        drawn: the metric on resampled patients.
        truth: (N,) class of each image; both must occur.
        groups: (N,) patient of each image; empty string if unknown.
    """
    if len(find_clusters(groups, len(truth))) < 2:
        return 0.0, 1.0
    low, high = (float(bound) for bound in np.percentile(drawn, [2.5, 97.5]))
    is_fixed = np.ptp(drawn) < _SAME
    if is_fixed and min(value, 1.0 - value) < _SAME:
        n = min(count_patients(groups, side) for side in (truth, ~truth))
        alone = compute_share(n if value > 0.5 else 0, n)
        return alone.low, alone.high
    return low, high


def measure_mean(
    values: Sequence[float], *, groups: Sequence[str] | None = None, seed: int = 0
) -> Mean:
    """Compute the mean of one value per image, with its 95 % interval from resampled patients.

    Args:
        values: (N,) one per image, at least one.
        groups: (N,) patient of each image; empty string if unknown.
        seed: of the resampling (2000 times, percentiles).

    Raises:
        ShapeError: there are no values, or lengths differ.

    Reference: Field & Welsh 2007, as above.
    """
    if not values or (groups is not None and len(groups) != len(values)):
        raise ShapeError(f"values and groups: expected as many of both, got {len(values)}.")
    numbers = np.asarray(values, dtype=np.float64)
    clusters = find_clusters(groups, len(numbers))
    sizes = np.array([len(rows) for rows in clusters])
    sums = np.array([float(numbers[rows].sum()) for rows in clusters])
    times = _draw_times(len(clusters), seed=seed)
    low, high = np.percentile((times @ sums) / (times @ sizes), [2.5, 97.5])
    return Mean(len(numbers), float(numbers.mean()), float(low), float(high))


def _draw_times(n: int, *, seed: int) -> NDArray[np.int64]:
    """(2000, n): how often each of n patients is drawn in every resample."""
    even = np.full(n, 1 / n)
    return np.random.default_rng(seed).multinomial(n, even, size=_N_BOOTSTRAP)
