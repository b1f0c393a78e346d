"""Curves: ROC, precision-recall, operating points, reliability, coverage.

Arrays in, frozen records out; conventions as in core.stats.metrics. Knows nothing of models, images
or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from core.errors import DataError, ShapeError, check_shape
from core.stats.proportions import Share, measure_share

_N_BINS = 10


@dataclass(frozen=True)
class OperatingPoint:
    """Performance at a threshold: an image is called disease if p exceeds it."""

    threshold: float
    sensitivity: Share
    specificity: Share
    accuracy: Share
    prevalence: float  # assumed for the two values below
    ppv: float | None  # None: nothing is called disease
    npv: float | None
    n_called: int


@dataclass(frozen=True)
class Curves:
    """ROC and precision-recall, one point per threshold."""

    thresholds: tuple[float, ...]  # of the ROC points, descending; the first is above every p
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    recall: tuple[float, ...]  # descending
    precision: tuple[float, ...]


@dataclass(frozen=True)
class Bin:
    """Images with similar probabilities, and how many of them have the disease."""

    low: float
    high: float
    mean_p: float
    observed: Share


@dataclass(frozen=True)
class Coverage:
    """Accuracy and coverage when only the most confident images are answered."""

    margin: float  # an image is answered if |p - 0.5| is at least this
    coverage: float  # fraction of all images answered, 0..1
    n: int
    accuracy: float | None  # of the answered images; None if there are none


def compute_curves(is_disease: NDArray[np.bool_], p_disease: NDArray[np.floating]) -> Curves:
    """Compute the ROC and precision-recall curves of (N,) probabilities at every threshold.

    Raises:
        DataError: only one class.
    """
    truth, probs = _check(is_disease, p_disease)
    fpr, tpr, thresholds = roc_curve(truth, probs, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, probs)
    finite = np.where(np.isfinite(thresholds), thresholds, 1.0)
    return Curves(
        *(tuple(float(v) for v in values) for values in (finite, fpr, tpr, recall, precision))
    )


def compute_operating_point(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    threshold: float,
    prevalence: float,
    groups: Sequence[str] | None = None,
) -> OperatingPoint:
    """Compute sensitivity, specificity, PPV and NPV at a threshold and a prevalence.

    Args:
        is_disease: (N,) true labels; both classes must occur.
        p_disease: (N,) probability of disease.
        threshold: an image is called disease if p > threshold, 0..1.
        prevalence: fraction of patients with the disease in the intended population, 0..1.
        groups: patient of each image, for the intervals.

    Raises:
        ShapeError: lengths differ, or threshold or prevalence out of range.
        DataError: only one class.
    """
    truth, probs = _check(is_disease, p_disease)
    if not (0.0 <= threshold <= 1.0 and 0.0 <= prevalence <= 1.0):
        raise ShapeError(
            f"threshold and prevalence: expected 0..1, got {threshold} and {prevalence}."
        )
    called = probs > threshold
    sensitivity = measure_share(called, among=truth, groups=groups)
    specificity = measure_share(~called, among=~truth, groups=groups)
    assert sensitivity.share is not None
    assert specificity.share is not None
    true_positive = sensitivity.share * prevalence
    false_positive = (1 - specificity.share) * (1 - prevalence)
    true_negative = specificity.share * (1 - prevalence)
    false_negative = (1 - sensitivity.share) * prevalence
    return OperatingPoint(
        threshold=threshold,
        sensitivity=sensitivity,
        specificity=specificity,
        accuracy=measure_share(called == truth, groups=groups),
        prevalence=prevalence,
        ppv=_divide(true_positive, true_positive + false_positive),
        npv=_divide(true_negative, true_negative + false_negative),
        n_called=int(called.sum()),
    )


def _divide(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def find_threshold(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    min_sensitivity: float | None = None,
) -> float:
    """Find the threshold with the largest Youden index, or the largest that reaches a sensitivity.

    Thresholds are halfway between neighbouring probabilities, so that rounding changes no call. If
    diseased images with probability 0 make the sensitivity unreachable, the threshold is 0.

    Args:
        is_disease: (N,) true labels.
        p_disease: (N,) probability of disease.
        min_sensitivity: 0..1; None for Youden's index.

    Reference: Youden 1950, Cancer 3, 32-35.
    """
    truth, probs = _check(is_disease, p_disease)
    values = np.unique(probs)
    cuts = np.concatenate([[values[0] / 2], (values[:-1] + values[1:]) / 2, [values[-1]]])
    called = probs[None] > cuts[:, None]
    sensitivity = (called & truth).sum(axis=1) / truth.sum()
    if min_sensitivity is not None:
        fitting = np.flatnonzero(sensitivity >= min_sensitivity)
        return float(cuts[fitting[-1]]) if len(fitting) else 0.0
    specificity = (~called & ~truth).sum(axis=1) / (~truth).sum()
    return float(cuts[int(np.argmax(sensitivity + specificity))])


def compute_reliability(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    n_bins: int = _N_BINS,
) -> tuple[Bin, ...]:
    """Compute observed frequency against predicted probability, in non-empty equal-width bins.

    Args:
        is_disease: (N,) true labels.
        p_disease: (N,) probability of disease.
        groups: patient of each image, for the intervals.
        n_bins: over 0..1.

    Reference: DeGroot & Fienberg 1983, The Statistician 32, 12-22.
    """
    truth, probs = np.asarray(is_disease, dtype=bool), np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", probs, truth.shape)
    place = np.minimum((probs * n_bins).astype(int), n_bins - 1)
    return tuple(
        Bin(
            low=index / n_bins,
            high=(index + 1) / n_bins,
            mean_p=float(probs[place == index].mean()),
            observed=measure_share(truth, among=place == index, groups=groups),
        )
        for index in np.unique(place).tolist()
    )


def compute_coverage(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    margins: Sequence[float] = tuple(np.round(np.arange(0.0, 0.5, 0.02), 2).tolist()),
    may_answer: NDArray[np.bool_] | None = None,
) -> tuple[Coverage, ...]:
    """Compute coverage and accuracy as the abstain zone around 0.5 widens.

    Args:
        is_disease: (N,) true labels.
        p_disease: (N,) probability of disease.
        margins: half-widths of the abstain zone around 0.5.
        may_answer: (N,) False if the image is refused anyway (out of distribution).

    Reference: El-Yaniv & Wiener 2010, JMLR 11, 1605-1641 (risk-coverage curve).
    """
    truth, probs = np.asarray(is_disease, dtype=bool), np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", probs, truth.shape)
    open_to = np.ones(len(truth), dtype=bool) if may_answer is None else may_answer
    right = (probs > 0.5) == truth
    rows = []
    for margin in margins:
        answered = open_to & (np.abs(probs - 0.5) >= margin)
        n = int(answered.sum())
        rows.append(
            Coverage(float(margin), n / len(truth), n, float(right[answered].mean()) if n else None)
        )
    return tuple(rows)


def _check(
    is_disease: NDArray[np.bool_], p_disease: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, probs = np.asarray(is_disease, dtype=bool), np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", probs, truth.shape)
    if len(np.unique(truth)) < 2:
        raise DataError(
            "this split holds one class only; these figures need images of both.",
            code="evaluation.one_class",
        )
    return truth, probs
