"""Curves against scikit-learn and by hand: operating point, reliability, coverage."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc, confusion_matrix, roc_auc_score

from core.errors import DataError, ShapeError
from core.stats.curves import (
    compute_coverage,
    compute_curves,
    compute_operating_point,
    compute_reliability,
    find_threshold,
)


@pytest.fixture
def answers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.random(200) < 0.4
    return truth, np.round(np.clip(0.35 + 0.3 * truth + 0.2 * rng.normal(size=200), 0, 1), 2)


def test_the_area_under_the_roc_points_is_the_auroc(answers: tuple[np.ndarray, ...]) -> None:
    truth, probs = answers
    curves = compute_curves(truth, probs)
    area = auc(curves.false_positive_rate, curves.true_positive_rate)
    assert area == pytest.approx(roc_auc_score(truth, probs))
    assert curves.recall[0] == 1.0
    assert curves.precision[0] == pytest.approx(truth.mean())  # everything called disease
    assert len(curves.thresholds) == len(curves.true_positive_rate)


def test_an_operating_point_by_hand() -> None:
    """Bayes by hand: sensitivity 90 %, specificity 80 %, prevalence 1 %: PPV 4.3 %."""
    truth = np.repeat([True, False], [10, 10])
    probs = np.concatenate([np.full(9, 0.9), [0.1], np.full(2, 0.9), np.full(8, 0.1)])
    point = compute_operating_point(truth, probs, threshold=0.5, prevalence=0.01)
    assert point.sensitivity.share == 0.9
    assert point.specificity.share == 0.8
    assert point.ppv == pytest.approx(0.009 / (0.009 + 0.2 * 0.99))
    assert point.npv == pytest.approx(0.8 * 0.99 / (0.8 * 0.99 + 0.1 * 0.01))
    # at the sample's own prevalence PPV and NPV are the plain counts
    own = compute_operating_point(truth, probs, threshold=0.5, prevalence=0.5)
    assert (own.ppv, own.npv) == pytest.approx((9 / 11, 8 / 9))
    nobody = compute_operating_point(truth, probs, threshold=1.0, prevalence=0.5)
    assert nobody.ppv is None
    assert nobody.n_called == 0


def test_a_point_at_any_threshold_equals_scikit_learn(answers: tuple[np.ndarray, ...]) -> None:
    truth, probs = answers
    for threshold in (0.0, 0.3, 0.55, 0.9):
        tn, fp, fn, tp = confusion_matrix(truth, probs > threshold, labels=[False, True]).ravel()
        point = compute_operating_point(truth, probs, threshold=threshold, prevalence=0.5)
        assert point.sensitivity.share == pytest.approx(tp / (tp + fn))
        assert point.specificity.share == pytest.approx(tn / (tn + fp))
        assert point.accuracy.n_hit == tp + tn


def test_thresholds_are_the_best_of_all(answers: tuple[np.ndarray, ...]) -> None:
    truth, probs = answers

    def youden(threshold: float) -> float:
        return float((probs[truth] > threshold).mean() + (probs[~truth] <= threshold).mean())

    best = find_threshold(truth, probs)
    assert youden(best) == pytest.approx(max(youden(t) for t in np.linspace(0, 1, 2001)))
    safe = find_threshold(truth, probs, min_sensitivity=0.95)
    assert (probs[truth] > safe).mean() >= 0.95
    assert (probs[truth] > safe + 0.02).mean() < 0.95  # the largest that does


def test_a_sensitivity_out_of_reach_gives_the_lowest_threshold() -> None:
    truth, probs = np.array([True, False]), np.array([0.0, 0.5])
    assert find_threshold(truth, probs, min_sensitivity=1.0) == 0.0


def test_reliability_equals_scikit_learn(answers: tuple[np.ndarray, ...]) -> None:
    truth, probs = answers
    probs = np.clip(probs + 0.001, 0, 0.999)  # off the bin edges, where conventions differ
    bins = compute_reliability(truth, probs)
    observed, said = calibration_curve(truth, probs, n_bins=10)
    assert [b.observed.share for b in bins] == pytest.approx(observed.tolist())
    assert [b.mean_p for b in bins] == pytest.approx(said.tolist())
    assert sum(b.observed.n for b in bins) == len(truth)


def test_coverage_by_hand() -> None:
    truth = np.array([True, True, False, False])
    probs = np.array([0.95, 0.55, 0.6, 0.1])
    rows = compute_coverage(truth, probs, margins=(0.0, 0.08, 0.2, 0.48))
    assert [(r.n, r.accuracy) for r in rows] == [(4, 0.75), (3, 2 / 3), (2, 1.0), (0, None)]
    assert rows[0].coverage == 1.0
    refused = compute_coverage(
        truth, probs, margins=(0.0,), may_answer=np.array([True, True, False, True])
    )
    assert (refused[0].n, refused[0].accuracy) == (3, 1.0)


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(DataError, match="one class only"):
        compute_curves(np.array([True, True]), np.array([0.1, 0.2]))
    both = np.array([True, False]), np.array([0.1, 0.2])
    with pytest.raises(ShapeError, match=r"0\.\.1"):
        compute_operating_point(*both, threshold=1.5, prevalence=0.5)
    with pytest.raises(ShapeError, match="p_disease"):
        compute_reliability(np.array([True]), np.array([0.1, 0.2]))
