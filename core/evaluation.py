"""Metrics, confidence intervals and calibration: arrays in, frozen report out.

Conventions: class "disease" is the positive one; ``is_disease`` is (N,) bool truth and
``p_disease`` (N,) a probability; an image counts as called disease when p > 0.5, which is the
argmax with ties going to normal. Knows nothing of models, images or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedGroupKFold

from core.errors import DataError, check_shape
from core.proportions import bound_figure, find_clusters, measure_share

_N_BOOTSTRAP = 2000
_N_ECE_BINS = 10
_TEMPERATURES = (0.05, 20.0)
_Z_95 = 1.96  # standard errors
_TINY = 1e-6
_N_FOLDS = 5
_MIN_PER_FOLD = 4  # patients of the rarer class; with fewer, folds say nothing


@dataclass(frozen=True)
class Report:
    """What a model is worth on one split."""

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


@dataclass(frozen=True)
class Calibration:
    """How vote scores become probabilities: fitted on validation, chosen by cross-validation there.

    ``ece_after`` and the losses are of held-out folds: each image is judged by a fit that did not
    see it. Without folds (too few images) only the temperature is fitted and ``ece_after`` is its
    error on the very images it was fitted on.
    """

    temperature: float
    k: int  # the vote it was fitted for; sets the smoothing of unanimous votes; 0: no vote
    n: int = 0
    ece_before: float = 0.0
    ece_after: float = 0.0
    method: str = "temperature"  # or "isotonic"
    scores: tuple[float, ...] = ()  # isotonic: knots of the vote score, ascending ...
    probabilities: tuple[float, ...] = ()  # ... and what each becomes; straight lines between
    n_folds: int = 0
    loss_temperature: float = 0.0  # mean log loss, held-out folds
    loss_isotonic: float = 0.0

    def apply(self, p_disease: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrate (N,) vote scores.

        A temperature keeps their order and the side of 0.5. Isotonic regression never reverses
        their order, but may make neighbouring scores equal, and moves the point where the answer
        changes to where it did on validation.
        """
        if self.method == "isotonic":
            mapped: NDArray[np.float64] = np.interp(p_disease, self.scores, self.probabilities)
            return mapped
        scaled: NDArray[np.float64] = expit(_smoothed_logit(p_disease, self.k) / self.temperature)
        return scaled


def evaluate(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Measure probabilities against the truth.

    Args:
        is_disease: (N,) truth; both classes must occur.
        p_disease: (N,) probability of disease.
        groups: patient of each image. Given, intervals resample patients, not images.
        seed: of the bootstrap.

    Returns:
        The report. The accuracy interval is that of ``measure_share``; the AUROC interval is the
        percentile bootstrap (2000 resamples), bounded as ``proportions.bound_figure`` says.

    Raises:
        ShapeError: lengths differ.
        DataError: no image, or only one class.

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
    """Expected calibration error of the called class, 10 equal-width bins over 0.5..1."""
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


def fit_calibration(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    k: int,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit a temperature or an isotonic curve on validation, whichever is better there.

    Better is the lower log loss on held-out folds, whole patients together. The curve must be
    better beyond chance (1.96 standard errors of the images' differences): a step through a few
    mistaken validation images moves the limit between the classes and merges the ranks of the
    others, which a temperature, with its one parameter, cannot do. Unanimous votes (0 or 1) are
    first smoothed by half a neighbour of each class, and no isotonic probability is nearer to
    certainty than one image in n + 2 allows.

    Args:
        is_disease: (N,) truth.
        p_disease: (N,) uncalibrated vote share of disease.
        k: neighbours behind each vote; 0 for probabilities that no vote stands behind.
        groups: patient of each image.
        seed: of the folds.

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
    """(N,) log loss of each image; a certainty that was wrong costs much, not everything."""
    said = np.where(truth, p_disease, 1.0 - p_disease)
    losses: NDArray[np.float64] = -np.log(np.clip(said, _TINY, 1.0 - _TINY))
    return losses


def _fit_temperature(
    truth: NDArray[np.bool_], p_disease: NDArray[np.float64], k: int
) -> Calibration:
    """One temperature by maximum likelihood."""
    scores = _smoothed_logit(p_disease, k)

    def loss(log_temperature: float) -> float:
        probs = expit(scores / np.exp(log_temperature))
        return float(log_loss(truth, probs, labels=[False, True]))  # which clips them

    best = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return Calibration(float(np.exp(best.x)), k)


def _fit_isotonic(truth: NDArray[np.bool_], p_disease: NDArray[np.float64], k: int) -> Calibration:
    """The best non-decreasing curve, away from certainty."""
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
    """Stratified folds of whole patients; none where a class has too few of them."""
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


def _bootstrap(
    truth: NDArray[np.bool_],
    probs: NDArray[np.float64],
    clusters: list[NDArray[np.int64]],
    *,
    seed: int,
) -> NDArray[np.float64]:
    """AUROC of resampled patients; draws with one class only are drawn again."""
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
    """AUROC by the Mann-Whitney statistic: the bootstrap needs it 2000 times."""
    if np.isnan(probs).any():
        return float("nan")
    disease, other = probs[truth], np.sort(probs[~truth])
    below = np.searchsorted(other, disease, side="left").sum()
    not_above = np.searchsorted(other, disease, side="right").sum()
    return float((below + not_above) / 2 / (len(disease) * len(other)))  # a tie counts half
