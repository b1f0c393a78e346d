"""Paired tests against hand-worked cases and a plain implementation."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from core.config import build_record
from core.errors import DataError, ShapeError
from core.stats.paired_tests import DeLong, compare_aurocs, compare_calls, compute_interval, write_p


def test_mcnemar_by_hand() -> None:
    truth = np.array([True] * 10)
    first = np.array([0.9] * 9 + [0.1])
    second = np.array([0.9] * 4 + [0.1] * 5 + [0.9])
    result = compare_calls(truth, first, second)
    assert (result.n_only_first, result.n_only_second) == (5, 1)
    assert result.p_value == pytest.approx(binomtest(5, 6).pvalue)
    assert compare_calls(truth, first, first).p_value == 1.0
    with pytest.raises(ShapeError):
        compare_calls(truth, first[:3], second)


def plain_delong_variance(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """DeLong's structural components by the double loop of the paper."""
    psi = lambda x, y: 1.0 if x > y else 0.5 if x == y else 0.0  # noqa: E731
    tens, ones = [], []
    for p in (a, b):
        matrix = np.array([[psi(x, y) for y in p[~truth]] for x in p[truth]])
        tens.append(matrix.mean(1))
        ones.append(matrix.mean(0))
    s = np.cov(np.array(tens)) / truth.sum() + np.cov(np.array(ones)) / (~truth).sum()
    return float(s[0, 0] + s[1, 1] - 2 * s[0, 1])


def test_delong_equals_the_double_loop(rng: np.random.Generator) -> None:
    from sklearn.metrics import roc_auc_score

    truth = rng.random(60) < 0.4
    a = np.round(truth * 0.6 + rng.random(60), 1)  # rounded: with ties
    b = np.round(truth * 0.3 + rng.random(60), 1)
    result = compare_aurocs(truth, a, b)
    assert result.auroc_first == pytest.approx(roc_auc_score(truth, a))
    assert result.auroc_second == pytest.approx(roc_auc_score(truth, b))
    z = result.difference / np.sqrt(plain_delong_variance(truth, a, b))
    assert result.p_value == pytest.approx(2 * norm.sf(abs(z)))
    assert compare_aurocs(truth, a, a).p_value == 1.0
    with pytest.raises(DataError):
        compare_aurocs(np.ones(5, dtype=bool), a[:5], b[:5])


def test_delong_is_undefined_where_nothing_varies() -> None:
    truth = np.array([True, True, False, False])
    perfect, constant = np.array([0.9, 0.8, 0.2, 0.1]), np.full(4, 0.5)
    result = compare_aurocs(truth, perfect, constant)
    assert (result.auroc_first, result.auroc_second) == (1.0, 0.5)
    assert result.p_value is None
    assert write_p(result.p_value) == "–"
    stored = json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))
    assert build_record(DeLong, stored, "x.json") == result
    one = np.array([True, False, False, False])
    assert compare_aurocs(one, np.array([0.3, 0.5, 0.2, 0.1]), constant).p_value is None
    assert compare_aurocs(one, perfect, perfect).p_value == 1.0


def test_calls_of_a_patient_turn_together() -> None:
    truth = np.ones(8, dtype=bool)
    first, second = np.full(8, 0.9), np.array([0.1] * 6 + [0.1, 0.9])
    second[7], first[7] = 0.9, 0.1
    groups = ["a", "a", "a", "b", "b", "c", "d", "e"]
    result = compare_calls(truth, first, second, groups=groups)  # sums 3, 2, 1, 1, -1: total 6
    assert (result.n_only_first, result.n_only_second) == (7, 1)
    sums = np.array([3, 2, 1, 1, -1])
    totals = [abs(int(sums @ signs)) for signs in itertools.product((-1, 1), repeat=5)]
    assert result.p_value == pytest.approx(np.mean([total >= 6 for total in totals]))


def test_one_image_each_is_the_plain_test(rng: np.random.Generator) -> None:
    truth = rng.random(80) < 0.4
    a, b = (np.round(truth * 0.3 + rng.random(80) * 0.7, 2) for _ in range(2))
    names = [f"p{i}" for i in range(80)]
    for groups in (None, [""] * 80, names):
        calls = compare_calls(truth, a, b, groups=groups)
        right_a, right_b = (a > 0.5) == truth, (b > 0.5) == truth
        n, k = int((right_a != right_b).sum()), int((right_a & ~right_b).sum())
        assert calls.p_value == binomtest(k, n).pvalue
        test = compare_aurocs(truth, a, b, groups=groups)
        z = test.difference / np.sqrt(plain_delong_variance(truth, a, b))
        assert test.p_value == pytest.approx(2 * norm.sf(abs(z)))
    for alike in (truth, ~truth):  # all images of a class from one patient
        one = [f"p{i}" if alike[i] else "one" for i in range(80)]
        assert compare_aurocs(truth, a, b, groups=one).p_value is None


def test_equal_systems_differ_by_luck_as_often_as_they_should(rng: np.random.Generator) -> None:
    n_found = np.zeros(2)
    n_runs, n_patients, n_images = 300, 30, 10
    truth = np.repeat(np.arange(n_patients) % 2 == 1, n_images)
    groups = [f"p{i // n_images}" for i in range(len(truth))]

    def answer() -> np.ndarray:
        """Right or wrong on all of a patient's images together."""
        z = np.repeat(rng.normal(size=n_patients), n_images)
        return 1 / (1 + np.exp(-(z + rng.normal(size=len(z)) * 0.3 + np.where(truth, 1, -1))))

    for _ in range(n_runs):
        a, b = answer(), answer()
        calls = compare_calls(truth, a, b, groups=groups)
        aurocs = compare_aurocs(truth, a, b, groups=groups)
        n_found += [calls.p_value < 0.05, (aurocs.p_value or 0.0) < 0.05]
    assert n_found / n_runs == pytest.approx(0.05, abs=0.035), n_found / n_runs


def test_the_interval_covers_seeds_and_images() -> None:
    right = np.concatenate([np.ones((2, 50)), np.zeros((2, 50))], axis=1)
    clusters = [np.array([i]) for i in range(100)]

    def share(seeds: np.ndarray, rows: np.ndarray) -> float:
        return float(right[seeds][:, rows].mean())

    alike = compute_interval(share, n_seeds=2, clusters=clusters)
    assert alike.mean == 0.5
    # binomial, n = 100: 1.96 * sqrt(0.25 / 100) = 0.098
    assert alike.high - alike.low == pytest.approx(0.196, abs=0.03)
    right[1] = 1.0
    apart = compute_interval(share, n_seeds=2, clusters=clusters)
    assert apart.mean == 0.75
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)
