"""Are two systems different, or is it luck? Paired tests and intervals over seeds and images.

Owns the statistics of a comparison: arrays in, frozen results out. Conventions as in
core.evaluation: ``is_disease`` (N,) truth, probabilities (N,), a call is disease when p > 0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata

from core.errors import DataError, check_shape

_N_BOOTSTRAP = 2000
_NO_VARIANCE = 1e-15  # of an AUROC: rounding


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of two systems' calls on the same images."""

    n_only_first: int  # images that only the first calls right
    n_only_second: int
    p_value: float  # two-sided


@dataclass(frozen=True)
class DeLong:
    """Test of two correlated AUROCs."""

    auroc_first: float
    auroc_second: float
    difference: float  # first minus second
    p_value: float | None  # two-sided; None where the images tell no variance


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval over seeds and test images."""

    mean: float
    low: float
    high: float


def compare_calls(
    is_disease: NDArray[np.bool_], first: NDArray[np.floating], second: NDArray[np.floating]
) -> McNemar:
    """Compare the calls of two systems.

    Args:
        is_disease: (N,) truth.
        first: (N,) probability of disease by the first system; ``second`` alike.

    Reference: McNemar 1947, Psychometrika 12, 153-157; the exact binomial form.
    """
    check_shape("first", first, is_disease.shape)
    check_shape("second", second, is_disease.shape)
    right_first, right_second = (first > 0.5) == is_disease, (second > 0.5) == is_disease
    n_first = int((right_first & ~right_second).sum())
    n_second = int((right_second & ~right_first).sum())
    n = n_first + n_second
    p_value = float(binomtest(n_first, n, 0.5).pvalue) if n else 1.0
    return McNemar(n_first, n_second, p_value)


def write_p(p_value: float | None) -> str:
    """A p-value in two digits, a dash where the test is undefined."""
    return "–" if p_value is None else f"{p_value:.2g}"


def compare_aurocs(
    is_disease: NDArray[np.bool_], first: NDArray[np.floating], second: NDArray[np.floating]
) -> DeLong:
    """Compare the AUROCs of two systems on the same images.

    The test is undefined, its ``p_value`` None, where a class has one image only or no image's rank
    differs from the others' (a perfect system against one that says the same of all).

    Raises:
        DataError: one class only.

    Reference: DeLong, DeLong, Clarke-Pearson 1988, Biometrics 44, 837-845; computed by ranks as
    in Sun & Xu 2014, IEEE Signal Processing Letters 21(11), 1389-1393.
    """
    truth = np.asarray(is_disease, dtype=bool)
    if truth.all() or not truth.any():
        raise DataError("DeLong's test needs images of both classes.", code="evaluation.one_class")
    placed = [_place(truth, np.asarray(probs, dtype=np.float64)) for probs in (first, second)]
    positive = np.stack([p for p, _ in placed])  # (2, n_disease)
    negative = np.stack([n for _, n in placed])  # (2, n_other)
    aurocs = positive.mean(axis=1)
    difference = float(aurocs[0] - aurocs[1])
    variance = 0.0
    if min(positive.shape[1], negative.shape[1]) > 1:
        covariance = np.cov(positive) / positive.shape[1] + np.cov(negative) / negative.shape[1]
        variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if np.array_equal(positive[0], positive[1]) and np.array_equal(negative[0], negative[1]):
        p_value: float | None = 1.0
    elif variance <= _NO_VARIANCE:
        p_value = None
    else:
        p_value = float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
    return DeLong(float(aurocs[0]), float(aurocs[1]), difference, p_value)


def _place(
    truth: NDArray[np.bool_], probs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the other class that each image is ranked on the right side of; ties count half."""
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
    """Percentile bootstrap that draws seeds and patients anew, both with replacement.

    Args:
        measure: given seed indices (S,) and image rows (N,), the figure over them; may return
            NaN where it cannot be computed (one class only), such draws are left out.
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
