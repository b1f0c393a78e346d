"""Paired tests of two systems, and intervals over seeds and images.

Owns the statistics of a comparison: arrays in, frozen results out. Conventions as in
core.stats.metrics: ``is_disease`` (N,) true labels, probabilities (N,), disease if p > 0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata

from core.errors import DataError, check_shape
from core.stats.proportions import find_clusters

_N_BOOTSTRAP = 2000
_NO_VARIANCE = 1e-15  # variance of an AUROC; less is rounding error
_Number = TypeVar("_Number", np.int64, np.float64)


@dataclass(frozen=True)
class McNemar:
    """Exact test of two systems' calls on the same images: McNemar's, or clustered by patient."""

    n_only_first: int  # images that only the first system gets right
    n_only_second: int
    p_value: float  # two-sided


@dataclass(frozen=True)
class DeLong:
    """Test of two correlated AUROCs."""

    auroc_first: float
    auroc_second: float
    difference: float  # first minus second
    p_value: float | None  # two-sided; None if the variance cannot be estimated


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval over seeds and test images."""

    mean: float
    low: float
    high: float


def compare_calls(
    is_disease: NDArray[np.bool_],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
) -> McNemar:
    """Compare the calls of two systems.

    Images of one patient are not independent. For each patient, the number of images that only the
    first system gets right minus the number that only the second does is one value, whose sign is
    equally likely either way under the null hypothesis. All sign combinations are counted, so the
    test is exact. With one image per patient it is McNemar's exact test.

    Args:
        is_disease: (N,) true labels.
        first: (N,) probability of disease by the first system; ``second`` likewise.
        groups: (N,) patient of each image; an image with an empty value counts as its own patient.

    Reference: McNemar 1947, Psychometrika 12, 153-157; the exact binomial form. By patient: Fisher
    1935, The Design of Experiments, section 21, on the sums of Durkalski et al. 2003, Statistics in
    Medicine 22, 2417-2428.
    """
    check_shape("first", first, is_disease.shape)
    check_shape("second", second, is_disease.shape)
    right_first, right_second = (first > 0.5) == is_disease, (second > 0.5) == is_disease
    n_first = int((right_first & ~right_second).sum())
    n_second = int((right_second & ~right_first).sum())
    gains = right_first.astype(np.int64) - right_second.astype(np.int64)
    clusters = find_clusters(groups, len(gains))
    return McNemar(n_first, n_second, _flip_signs(_sum_by(clusters, gains)))


def _sum_by(clusters: Sequence[NDArray[np.int64]], values: NDArray[_Number]) -> NDArray[_Number]:
    """Sum over each patient's images."""
    rows = np.concatenate(clusters)
    starts = np.cumsum([0, *(len(cluster) for cluster in clusters[:-1])])
    sums: NDArray[_Number] = np.add.reduceat(values[rows], starts)
    return sums


def _flip_signs(sums: NDArray[np.int64]) -> float:
    """Fraction of all sign combinations whose total is at least as far from 0 as observed."""
    sizes = np.abs(sums[sums != 0])
    if not len(sizes):
        return 1.0
    if sizes.max() == 1:
        return float(binomtest(int((sums > 0).sum()), len(sizes), 0.5).pvalue)
    shares = np.ones(1)  # probability of each total so far, from the smallest in steps of 1
    for size in sizes.tolist():
        wider = np.zeros(len(shares) + 2 * size)
        wider[: len(shares)] += shares / 2
        wider[2 * size :] += shares / 2
        shares = wider
    totals = np.arange(len(shares)) - int(sizes.sum())
    return min(1.0, float(shares[np.abs(totals) >= abs(int(sums.sum()))].sum()))


def write_p(p_value: float | None) -> str:
    """Format a p-value with two digits, or a dash if the test is undefined."""
    return "–" if p_value is None else f"{p_value:.2g}"


def compare_aurocs(
    is_disease: NDArray[np.bool_],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
) -> DeLong:
    """Compare the AUROCs of two systems on the same images.

    The test is undefined (``p_value`` None) if a class has only one patient or the images' ranks
    show no variance (a perfect system against one that gives every image the same probability).

    Args:
        is_disease: (N,) true labels.
        first: (N,) probability of disease by the first system; ``second`` likewise.
        groups: (N,) patient of each image; the variance is clustered by patient. With one image
            each, or without groups, it is DeLong's.

    Raises:
        DataError: only one class.

    Reference: DeLong, DeLong, Clarke-Pearson 1988, Biometrics 44, 837-845; computed by ranks as
    in Sun & Xu 2014, IEEE Signal Processing Letters 21(11), 1389-1393. By patient: Obuchowski 1997,
    Biometrics 53, 567-578.
    """
    truth = np.asarray(is_disease, dtype=bool)
    if truth.all() or not truth.any():
        raise DataError("DeLong's test needs images of both classes.", code="evaluation.one_class")
    placed = [_place(truth, np.asarray(probs, dtype=np.float64)) for probs in (first, second)]
    positive = np.stack([p for p, _ in placed])  # (2, n_disease)
    negative = np.stack([n for _, n in placed])  # (2, n_other)
    aurocs = positive.mean(axis=1)
    difference = float(aurocs[0] - aurocs[1])
    gaps = np.empty(len(truth))
    gaps[truth], gaps[~truth] = positive[0] - positive[1], negative[0] - negative[1]
    variance = _estimate_variance(truth, gaps - difference, find_clusters(groups, len(truth)))
    if np.array_equal(positive[0], positive[1]) and np.array_equal(negative[0], negative[1]):
        p_value: float | None = 1.0
    elif variance <= _NO_VARIANCE:
        p_value = None
    else:
        p_value = float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
    return DeLong(float(aurocs[0]), float(aurocs[1]), difference, p_value)


def _estimate_variance(
    truth: NDArray[np.bool_], centred: NDArray[np.float64], clusters: Sequence[NDArray[np.int64]]
) -> float:
    """Obuchowski's variance of a difference of AUROCs; 0 if a class has only one patient.

    Args:
        truth: (N,) true label of each image.
        centred: (N,) difference of placements between the systems, minus that of the AUROCs.
        clusters: rows of each patient.
    """
    sides = (truth, ~truth)
    n_patients = [int((_sum_by(clusters, side.astype(np.int64)) > 0).sum()) for side in sides]
    if min(n_patients) < 2:
        return 0.0
    by_class = [_sum_by(clusters, centred * side) / side.sum() for side in sides]
    own = [n / (n - 1) * (sums @ sums) for n, sums in zip(n_patients, by_class, strict=True)]
    n = len(clusters)
    return float(sum(own) + 2 * n / (n - 1) * (by_class[0] @ by_class[1]))


def _place(
    truth: NDArray[np.bool_], probs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fraction of the other class that each image is ranked correctly against; ties half."""
    ranks = rankdata(probs)
    own_disease, own_other = rankdata(probs[truth]), rankdata(probs[~truth])
    n_disease, n_other = len(own_disease), len(own_other)
    return (ranks[truth] - own_disease) / n_other, 1.0 - (ranks[~truth] - own_other) / n_disease


def compute_interval(
    measure: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
    *,
    n_seeds: int,
    clusters: Sequence[NDArray[np.int64]],
    seed: int = 0,
) -> Interval:
    """Compute a percentile bootstrap that resamples both seeds and patients.

    Args:
        measure: given seed indices (S,) and image rows (N,), returns the metric; may return
            NaN if it cannot be computed (only one class); such resamples are dropped.
        n_seeds: number of training runs.
        clusters: image rows of each patient.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    every = measure(np.arange(n_seeds), np.concatenate(clusters))
    drawn = []
    for _ in range(_N_BOOTSTRAP):
        patients = rng.integers(0, len(clusters), len(clusters))
        rows = np.concatenate([clusters[i] for i in patients])
        drawn.append(measure(rng.integers(0, n_seeds, n_seeds), rows))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(float(every), float(low), float(high))
