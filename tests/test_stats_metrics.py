"""Metrics by hand, intervals with correct coverage, calibration that preserves the answer."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from core.config import build_record
from core.errors import DataError, ShapeError
from core.stats.calibration import Calibration, _draw_folds, fit_calibration
from core.stats.metrics import compute_ece, compute_metrics, rank_auroc
from core.stats.proportions import measure_share


def test_report_by_hand() -> None:
    truth = np.array([False, False, False, True, True])
    probs = np.array([0.1, 0.2, 0.7, 0.6, 0.9])
    report = compute_metrics(truth, probs)
    assert report.confusion == {"tn": 2, "fp": 1, "fn": 0, "tp": 2}
    assert report.accuracy == 0.8
    assert report.sensitivity == 1.0
    assert report.specificity == pytest.approx(2 / 3)
    assert report.balanced_accuracy == pytest.approx(5 / 6)
    assert report.auroc == pytest.approx(5 / 6)  # of 6 pairs, only (0.7, 0.6) is in the wrong order
    assert report.brier == pytest.approx((0.01 + 0.04 + 0.49 + 0.16 + 0.01) / 5)
    # Wilson's interval of 4 out of 5, from its formula
    assert report.accuracy_ci95 == pytest.approx((0.3755, 0.9638), abs=1e-3)


def test_the_bootstraps_auroc_is_scikit_learns_with_ties_too(rng: np.random.Generator) -> None:
    truth = rng.random(80) < 0.4
    probs = np.round(rng.random(80), 1)
    assert rank_auroc(truth, probs) == pytest.approx(roc_auc_score(truth, probs))


def test_half_counts_as_normal() -> None:
    assert compute_metrics(np.array([False, True]), np.array([0.5, 0.5])).confusion["fp"] == 0


def test_ece_by_hand() -> None:
    # two images with 0.9, one of them right: gap 0.4
    assert compute_ece(np.array([True, False]), np.array([0.9, 0.9])) == pytest.approx(0.4)
    assert compute_ece(np.array([True, False]), np.array([1.0, 0.0])) == 0.0


def test_intervals_hold_the_figure_and_shrink_with_n(rng: np.random.Generator) -> None:
    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.random(n) < 0.5
        return truth, np.clip(0.5 + 0.3 * (truth - 0.5) + 0.25 * rng.normal(size=n), 0, 1)

    small, large = compute_metrics(*draw(50)), compute_metrics(*draw(1000))
    for report in (small, large):
        assert report.auroc_ci95[0] <= report.auroc <= report.auroc_ci95[1]
        assert report.accuracy_ci95[0] <= report.accuracy <= report.accuracy_ci95[1]
    assert np.ptp(large.auroc_ci95) < np.ptp(small.auroc_ci95)


def test_images_of_one_patient_widen_the_interval(rng: np.random.Generator) -> None:
    truth = np.repeat(rng.random(40) < 0.5, 10)
    probs = np.clip(0.5 + 0.3 * (truth - 0.5) + np.repeat(0.3 * rng.normal(size=40), 10), 0, 1)
    groups = [f"p{i // 10}" for i in range(400)]
    alone, grouped = compute_metrics(truth, probs), compute_metrics(truth, probs, groups=groups)
    assert np.ptp(grouped.accuracy_ci95) > 1.5 * np.ptp(alone.accuracy_ci95)


def test_no_mistake_among_few_patients_is_not_certainty() -> None:
    truth = np.array([False, True] * 4)
    groups = [f"p{i // 2}" for i in range(8)]
    report = compute_metrics(truth, np.where(truth, 0.9, 0.1), groups=groups)
    share = measure_share(np.ones(8, dtype=bool), groups=groups)
    assert report.auroc_ci95 == (share.low, share.high)
    assert report.accuracy_ci95 == (share.low, share.high) == (pytest.approx(0.51, abs=0.01), 1.0)


def test_temperature_cools_overconfidence_and_keeps_every_answer(rng: np.random.Generator) -> None:
    honest = rng.random(2000)
    truth = rng.random(2000) < honest
    k = 1000
    boastful = 1 / (1 + np.exp(-3 * np.log(honest / (1 - honest))))
    fitted = fit_calibration(truth, boastful, k=k)
    after = fitted.apply(boastful)
    assert fitted.method == "temperature"
    assert fitted.temperature > 1.5
    assert fitted.ece_after < fitted.ece_before / 2
    np.testing.assert_array_equal(after > 0.5, boastful > 0.5)
    order = np.argsort(boastful, kind="stable")
    assert np.all(np.diff(after[order]) >= 0)


def test_a_unanimous_vote_is_not_certainty() -> None:
    assert Calibration(temperature=1.0, k=9).apply(np.array([0.0, 1.0])) == pytest.approx(
        [0.05, 0.95]
    )


def test_a_bent_score_takes_the_isotonic_curve(rng: np.random.Generator) -> None:
    """Votes never exceed 0.5 although half of the top ones are diseased: no temperature helps."""
    scores = rng.random(1500) * 0.5
    truth = rng.random(1500) < np.where(scores > 0.3, 0.9, 0.05)
    fitted = fit_calibration(truth, scores, k=40)
    assert fitted.method == "isotonic"
    assert fitted.loss_isotonic < fitted.loss_temperature
    assert fitted.n_folds == 5
    after = fitted.apply(np.array([0.0, 0.1, 0.4, 0.5, 1.0]))
    assert np.all(np.diff(after) >= 0)
    assert 0 < after[0] < 0.1
    assert 0.8 < after[2] < 1
    assert fitted.ece_after < fitted.ece_before


def test_one_certain_false_alarm_does_not_decide_and_leaves_valid_json() -> None:
    """The other folds are separable, so their temperature makes the held-out vote of 1 certain."""
    scores = np.concatenate([np.full(150, 0.3), np.full(150, 0.505), np.full(150, 0.7), [1.0]])
    truth = scores == 0.7
    fitted = fit_calibration(truth, scores, k=0)
    assert fitted.method == "isotonic"
    json.dumps(dataclasses.asdict(fitted), allow_nan=False)


def test_a_few_mistaken_validation_images_do_not_bend_the_curve(
    rng: np.random.Generator,
) -> None:
    """Nearly separable votes, some mistakes at 0.2: a step there would call 0.3 diseased."""
    truth = np.repeat([False, True], 117)
    scores = np.concatenate([rng.beta(1, 60, 117), rng.beta(60, 1, 117)])
    scores[117:120] = [0.2, 0.3, 0.4]
    fitted = fit_calibration(truth, scores, k=40)
    assert fitted.method == "temperature"
    assert fitted.apply(np.array([0.3]))[0] < 0.5 < fitted.apply(np.array([0.7]))[0]


def test_folds_hold_whole_patients_and_few_images_have_none(rng: np.random.Generator) -> None:
    truth = np.tile([False, True], 60)
    groups = [f"p{i // 4}" for i in range(120)]
    folds = _draw_folds(truth, groups, seed=0)
    assert len(folds) == 5
    for kept, judged in folds:
        assert not {groups[i] for i in kept} & {groups[i] for i in judged}
    assert sorted(np.concatenate([judged for _, judged in folds])) == list(range(120))
    few = fit_calibration(truth[:8], rng.random(8), k=5)
    assert (few.method, few.n_folds) == ("temperature", 0)


def test_calibration_survives_json(rng: np.random.Generator) -> None:
    scores = rng.random(300) * 0.4
    fitted = fit_calibration(rng.random(300) < scores * 2, scores, k=40)
    stored = json.loads(json.dumps(dataclasses.asdict(fitted)))
    assert build_record(Calibration, stored, "calibration.json") == fitted
    assert build_record(Calibration, {"temperature": 2.0, "k": 9}, "old") == Calibration(2.0, 9)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="one class only"):
        compute_metrics(np.array([True, True]), np.array([0.1, 0.2]))
    with pytest.raises(ShapeError, match="p_disease"):
        compute_metrics(np.array([True, False]), np.array([0.1]))
