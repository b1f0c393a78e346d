"""Probability calibration: temperature or isotonic, chosen by cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import (
    log_loss,
)
from sklearn.model_selection import StratifiedGroupKFold

from core.errors import check_shape
from core.stats.metrics import compute_ece
from core.stats.proportions import find_clusters

_TEMPERATURES = (0.05, 20.0)
_Z_95 = 1.96  # standard errors
_TINY = 1e-6
_N_FOLDS = 5
_MIN_PER_FOLD = 4  # patients of the rarer class; with fewer, folds are not informative


@dataclass(frozen=True)
class Calibration:
    """Maps vote scores to probabilities: fitted and chosen by cross-validation on validation.

    ``ece_after`` and the losses are from held-out folds: each image is scored by a fit that did not
    use it. Without folds (too few images) only the temperature is fitted, and ``ece_after`` is its
    error on the images it was fitted on.
    """

    temperature: float
    k: int  # K of the vote it was fitted for, which sets the smoothing; 0: no vote
    n: int = 0
    ece_before: float = 0.0
    ece_after: float = 0.0
    method: str = "temperature"  # or "isotonic"
    scores: tuple[float, ...] = ()  # isotonic: knots of the vote score, ascending ...
    probabilities: tuple[float, ...] = ()  # ... and the probability at each; linear in between
    n_folds: int = 0
    loss_temperature: float = 0.0  # mean log loss, held-out folds
    loss_isotonic: float = 0.0

    def apply(self, p_disease: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrate (N,) vote scores.

        A temperature preserves their order and the side of 0.5. Isotonic regression never reverses
        the order, but may make neighbouring scores equal, and moves the decision threshold to where
        the answer changed on validation.
        """
        if self.method == "isotonic":
            mapped: NDArray[np.float64] = np.interp(p_disease, self.scores, self.probabilities)
            return mapped
        scaled: NDArray[np.float64] = expit(_smoothed_logit(p_disease, self.k) / self.temperature)
        return scaled


def fit_calibration(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    k: int,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit a temperature or an isotonic curve on validation, whichever is better there.

    Better means a lower log loss on held-out folds that keep patients whole. The isotonic curve
    must be significantly better (by 1.96 standard errors of the per-image differences): a step
    caused by a few misclassified validation images moves the decision threshold and merges the
    ranks of other images, which a temperature, with one parameter, cannot do. Unanimous votes (0 or
    1) are first smoothed by half a neighbour of each class, and no isotonic probability is closer
    to certainty than one image in n + 2 allows.

    Args:
        is_disease: (N,) true labels.
        p_disease: (N,) uncalibrated vote share of disease.
        k: neighbours behind each vote; 0 if the probabilities are not from a vote.
        groups: patient of each image.
        seed: for the folds.

    Reference: Guo et al. 2017, arXiv:1706.04599 (temperature); Zadrozny & Elkan 2002, KDD
    (isotonic).
    """
    truth = np.asarray(is_disease, dtype=bool)
    scores = np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", scores, truth.shape)
    cooled = _fit_temperature(truth, scores, k)
    folds = _draw_folds(truth, groups, seed=seed)
    if not folds:
        ece = compute_ece(truth, cooled.apply(scores))
        return replace(cooled, n=len(truth), ece_before=compute_ece(truth, scores), ece_after=ece)
    held_out = {name: np.empty(len(truth)) for name in ("temperature", "isotonic")}
    for kept, judged in folds:
        for name, fit in (("temperature", _fit_temperature), ("isotonic", _fit_isotonic)):
            held_out[name][judged] = fit(truth[kept], scores[kept], k).apply(scores[judged])
    by_image = {name: _compute_log_loss(truth, p) for name, p in held_out.items()}
    losses = {name: float(loss.mean()) for name, loss in by_image.items()}
    gains = by_image["temperature"] - by_image["isotonic"]
    is_curved = gains.mean() > _Z_95 * gains.std(ddof=1) / np.sqrt(len(gains))
    chosen = _fit_isotonic(truth, scores, k) if is_curved else cooled
    return replace(
        chosen,
        n=len(truth),
        ece_before=compute_ece(truth, scores),
        ece_after=compute_ece(truth, held_out[chosen.method]),
        n_folds=len(folds),
        loss_temperature=losses["temperature"],
        loss_isotonic=losses["isotonic"],
    )


def _compute_log_loss(
    truth: NDArray[np.bool_], p_disease: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) log loss of each image, clipped so that a confident error is not infinite."""
    said = np.where(truth, p_disease, 1.0 - p_disease)
    losses: NDArray[np.float64] = -np.log(np.clip(said, _TINY, 1.0 - _TINY))
    return losses


def _fit_temperature(
    truth: NDArray[np.bool_], p_disease: NDArray[np.float64], k: int
) -> Calibration:
    """Fit one temperature by maximum likelihood."""
    scores = _smoothed_logit(p_disease, k)

    def loss(log_temperature: float) -> float:
        probs = expit(scores / np.exp(log_temperature))
        return float(log_loss(truth, probs, labels=[False, True]))  # clips them

    best = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return Calibration(float(np.exp(best.x)), k)


def _fit_isotonic(truth: NDArray[np.bool_], p_disease: NDArray[np.float64], k: int) -> Calibration:
    """Fit the best non-decreasing curve, kept away from 0 and 1."""
    least = 1.0 / (len(truth) + 2.0)
    curve = IsotonicRegression(y_min=least, y_max=1.0 - least, out_of_bounds="clip")
    curve.fit(p_disease, truth.astype(np.float64))
    return Calibration(
        temperature=1.0,
        k=k,
        method="isotonic",
        scores=tuple(curve.X_thresholds_.tolist()),
        probabilities=tuple(curve.y_thresholds_.tolist()),
    )


def _draw_folds(
    truth: NDArray[np.bool_], groups: Sequence[str] | None, *, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Draw stratified folds of whole patients; empty if a class has too few of them."""
    patients = np.empty(len(truth), dtype=np.int64)
    for index, rows in enumerate(find_clusters(groups, len(truth))):
        patients[rows] = index
    fewest = min(len(np.unique(patients[truth == side])) for side in (False, True))
    n_folds = min(_N_FOLDS, fewest // _MIN_PER_FOLD)
    if n_folds < 2:
        return []
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = list(splitter.split(truth, truth, patients))
    return [(a, b) for a, b in folds if len(np.unique(truth[a])) == 2 and len(b)]


def _smoothed_logit(p_disease: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    probs = np.asarray(p_disease, dtype=np.float64)
    smoothed = (probs * k + 0.5) / (k + 1.0) if k else np.clip(probs, _TINY, 1.0 - _TINY)
    values: NDArray[np.float64] = logit(smoothed)
    return values
