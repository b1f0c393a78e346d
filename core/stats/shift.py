"""Distribution shift between two hospitals, and recalibration on a small labelled sample.

Owns the comparison of two evaluations of one model and the recalibration. Arrays in, frozen
records out; conventions as in core.stats.metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression

from core.errors import DataError, check_shape
from core.stats.headlines import Figure, compute_headlines
from core.stats.metrics import compute_ece, rank_auroc
from core.stats.proportions import find_clusters

_N_DRAWS = 100
_TINY = 1e-6
_MIN_REST = 4  # images of either class that must remain for testing


@dataclass(frozen=True, eq=False)
class Answers:
    """One model's answers on one set of images, one row each."""

    is_disease: NDArray[np.bool_]
    p_disease: NDArray[np.float64]
    distance: NDArray[np.float64]  # mean embedding distance to the nearest gallery images
    is_novel: NDArray[np.bool_]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Shift:
    """Distances to the gallery on internal ("home") and external ("away") images."""

    median_home: float
    median_away: float
    separation: float  # fraction of pairs in which the external image is farther; 0.5: no shift
    p_value: float  # Kolmogorov-Smirnov, two-sided
    novel_home: float  # fraction of images that are out of distribution
    novel_away: float


@dataclass(frozen=True)
class Gain:
    """One metric on the remaining images, before and after; means over the draws."""

    key: str
    before: float
    after: float
    gain_low: float  # 2.5th percentile of the improvement over the draws (positive is better)
    gain: float
    gain_high: float


@dataclass(frozen=True)
class Recalibration:
    """The effect of recalibrating on a small labelled sample."""

    n_sample: int
    n_draws: int
    slope: float  # median over the draws; slope 1, intercept 0: no change
    intercept: float
    gains: tuple[Gain, ...]  # accuracy, balanced_accuracy, brier, ece


@dataclass(frozen=True)
class Comparison:
    """A model on internal and external data."""

    home: tuple[Figure, ...]
    away: tuple[Figure, ...]
    shift: Shift
    recalibration: Recalibration


def compare(home: Answers, away: Answers, *, n_sample: int, seed: int = 0) -> Comparison:
    """Compare internal and external metrics, the shift, and the gain from recalibration.

    Args:
        home: answers on data from the model's own source; ``away`` on external data.
        n_sample: labelled images of ``away`` to recalibrate on.
        seed: for all draws.

    Raises:
        DataError: only one class, or the sample is too small or too large.
    """
    return Comparison(
        home=compute_headlines(home.is_disease, home.p_disease, groups=home.groups, seed=seed),
        away=compute_headlines(away.is_disease, away.p_disease, groups=away.groups, seed=seed),
        shift=measure_shift(
            home.distance, away.distance, novel_home=home.is_novel, novel_away=away.is_novel
        ),
        recalibration=measure_recalibration(
            away.is_disease, away.p_disease, n_sample=n_sample, groups=away.groups, seed=seed
        ),
    )


def measure_shift(
    home: NDArray[np.floating],
    away: NDArray[np.floating],
    *,
    novel_home: NDArray[np.bool_],
    novel_away: NDArray[np.bool_],
) -> Shift:
    """Compare distances to the nearest gallery images, (N,) and (M,)."""
    is_away = np.concatenate([np.zeros(len(home), dtype=bool), np.ones(len(away), dtype=bool)])
    distances = np.concatenate([home, away]).astype(np.float64)
    return Shift(
        median_home=float(np.median(home)),
        median_away=float(np.median(away)),
        separation=rank_auroc(is_away, distances),
        p_value=float(ks_2samp(home, away).pvalue),
        novel_home=float(novel_home.mean()),
        novel_away=float(novel_away.mean()),
    )


def recalibrate(
    p_disease: NDArray[np.floating], slope: float, intercept: float
) -> NDArray[np.float64]:
    """Recalibrate probabilities by ``slope * logit(p) + intercept``."""
    scores = slope * _to_logit(p_disease) + intercept
    moved: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-scores))
    return moved


def fit_recalibration(
    is_disease: NDArray[np.bool_], p_disease: NDArray[np.floating]
) -> tuple[float, float]:
    """Fit slope and intercept of a logistic regression on the logit of p.

    Uses scikit-learn's default ridge penalty, since small separable samples would diverge.

    Reference: Platt 1999, Advances in Large Margin Classifiers, 61-74.
    """
    model = LogisticRegression(C=1.0)
    model.fit(_to_logit(p_disease)[:, None], np.asarray(is_disease, dtype=bool))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def measure_recalibration(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    *,
    n_sample: int,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Recalibration:
    """Fit on small random samples and test on all other images, many times.

    Args:
        is_disease: (N,) true labels of external images.
        p_disease: (N,) the model's probabilities.
        n_sample: labelled images to fit on; whole patients are drawn until this number is reached.
        groups: patient of each image.
        seed: for the draws.

    Raises:
        DataError: there are too few images for this sample.
    """
    truth, probs = np.asarray(is_disease, dtype=bool), np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", probs, truth.shape)
    clusters = find_clusters(groups, len(truth))
    rng = np.random.default_rng(seed)
    fits, before, after = [], [], []
    for _ in range(_N_DRAWS):
        sample = _draw_sample(clusters, n_sample, rng)
        rest = np.setdiff1d(np.arange(len(truth)), sample)
        if not (_has_both(truth[sample], 2) and _has_both(truth[rest], _MIN_REST)):
            continue
        fitted = fit_recalibration(truth[sample], probs[sample])
        fits.append(fitted)
        before.append(_measure(truth[rest], probs[rest]))
        after.append(_measure(truth[rest], recalibrate(probs[rest], *fitted)))
    if len(fits) < _N_DRAWS // 2:
        raise DataError(
            f"{n_sample} of {len(truth)} images are too many or too few to recalibrate on: both "
            "the sample and the rest need images of both classes.",
            code="external.sample",
            params={"n_sample": n_sample, "n": len(truth)},
        )
    slope, intercept = np.median(fits, axis=0)
    return Recalibration(
        n_sample=n_sample,
        n_draws=len(fits),
        slope=float(slope),
        intercept=float(intercept),
        gains=tuple(
            _sum_up(key, np.array([b[key] for b in before]), np.array([a[key] for a in after]))
            for key in before[0]
        ),
    )


def _draw_sample(
    clusters: Sequence[NDArray[np.int64]], n_sample: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    rows: list[int] = []
    for index in rng.permutation(len(clusters)):
        if len(rows) >= n_sample:
            break
        rows += clusters[index].tolist()
    return np.array(rows, dtype=np.int64)


def _has_both(truth: NDArray[np.bool_], n_min: int) -> bool:
    return bool(truth.sum() >= n_min and (~truth).sum() >= n_min)


def _measure(truth: NDArray[np.bool_], probs: NDArray[np.float64]) -> dict[str, float]:
    called = probs > 0.5
    return {
        "accuracy": float((called == truth).mean()),
        "balanced_accuracy": float((called[truth].mean() + (~called[~truth]).mean()) / 2),
        "brier": float(np.mean((probs - truth) ** 2)),
        "ece": compute_ece(truth, probs),
    }


def _sum_up(key: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Gain:
    won = before - after if key in ("brier", "ece") else after - before
    low, high = np.percentile(won, [2.5, 97.5])
    return Gain(
        key, float(before.mean()), float(after.mean()), float(low), float(won.mean()), float(high)
    )


def _to_logit(p_disease: NDArray[np.floating]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = logit(
        np.clip(np.asarray(p_disease, dtype=np.float64), _TINY, 1 - _TINY)
    )
    return values
