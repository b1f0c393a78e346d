"""Classification metrics with confidence intervals.

Conventions: class "disease" is positive; ``is_disease`` is (N,) bool, the true label, and
``p_disease`` (N,) a probability; an image is called disease if p > 0.5, which is the argmax with
ties going to normal. Knows nothing of models, images or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    roc_auc_score,
)

from core.errors import DataError, check_shape
from core.stats.proportions import bound_figure, find_clusters, measure_share

_N_BOOTSTRAP = 2000
_N_ECE_BINS = 10


@dataclass(frozen=True)
class Report:
    """The metrics of a model on one split."""

    n: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    balanced_accuracy: float
    auroc: float
    auroc_ci95: tuple[float, float]
    average_precision: float
    sensitivity: float
    specificity: float
    brier: float
    ece: float
    confusion: dict[str, int]  # tn, fp, fn, tp


def compute_metrics(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Compute the metrics of probabilities against true labels.

    Args:
        is_disease: (N,) true labels; both classes must occur.
        p_disease: (N,) probability of disease.
        groups: patient of each image. If given, intervals resample patients instead of images.
        seed: of the bootstrap.

    Returns:
        The report. The accuracy interval is from ``measure_share``; the AUROC interval is the
        percentile bootstrap (2000 resamples), bounded as in ``proportions.bound_figure``.

    Raises:
        ShapeError: lengths differ.
        DataError: no images, or only one class.

    Reference: Efron & Tibshirani 1993, ch. 13 (the bootstrap);
    Naeini et al. 2015 (ECE, 10 equal-width bins of the predicted class's probability).
    """
    truth = np.asarray(is_disease, dtype=bool)
    probs = np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", probs, truth.shape)
    if len(np.unique(truth)) < 2:
        raise DataError(
            "this split holds one class only (or nothing); sensitivity, specificity and AUROC need "
            "images of both. Choose another split.",
            code="evaluation.one_class",
        )
    called = probs > 0.5
    tn, fp, fn, tp = (int(v) for v in confusion_matrix(truth, called).ravel())
    clusters = find_clusters(groups, len(truth))
    aurocs = _bootstrap(truth, probs, clusters, seed=seed)
    auroc = float(roc_auc_score(truth, probs))
    right = measure_share(called == truth, groups=groups, seed=seed)
    return Report(
        n=len(truth),
        accuracy=(tn + tp) / len(truth),
        accuracy_ci95=(right.low, right.high),
        balanced_accuracy=float(balanced_accuracy_score(truth, called)),
        auroc=auroc,
        auroc_ci95=bound_figure(auroc, aurocs, truth=truth, groups=groups),
        average_precision=float(average_precision_score(truth, probs)),
        sensitivity=tp / (tp + fn),
        specificity=tn / (tn + fp),
        brier=float(brier_score_loss(truth, probs)),
        ece=compute_ece(truth, probs),
        confusion={"tn": tn, "fp": fp, "fn": fn, "tp": tp},
    )


def compute_ece(is_disease: NDArray[np.bool_], p_disease: NDArray[np.floating]) -> float:
    """Expected calibration error of the predicted class, 10 equal-width bins over 0.5..1."""
    called = p_disease > 0.5
    confidence = np.where(called, p_disease, 1.0 - p_disease)
    right = called == is_disease
    bins = np.minimum(((confidence - 0.5) * 2 * _N_ECE_BINS).astype(int), _N_ECE_BINS - 1)
    gaps = [
        abs(float(right[bins == b].mean() - confidence[bins == b].mean()))
        * float(np.mean(bins == b))
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def _bootstrap(
    truth: NDArray[np.bool_],
    probs: NDArray[np.float64],
    clusters: list[NDArray[np.int64]],
    *,
    seed: int,
) -> NDArray[np.float64]:
    """AUROC of resampled patients; resamples with only one class are redrawn."""
    rng = np.random.default_rng(seed)
    aurocs = list[float]()
    while len(aurocs) < _N_BOOTSTRAP:
        drawn = rng.integers(0, len(clusters), len(clusters))
        rows = np.concatenate([clusters[i] for i in drawn])
        if truth[rows].all() or not truth[rows].any():
            continue
        aurocs.append(rank_auroc(truth[rows], probs[rows]))
    return np.array(aurocs)


def rank_auroc(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    """AUROC by the Mann-Whitney statistic: fast, because the bootstrap needs it 2000 times."""
    if np.isnan(probs).any():
        return float("nan")
    disease, other = probs[truth], np.sort(probs[~truth])
    below = np.searchsorted(other, disease, side="left").sum()
    not_above = np.searchsorted(other, disease, side="right").sum()
    return float((below + not_above) / 2 / (len(disease) * len(other)))  # a tie counts half
