"""Paired tests against hand-worked cases and a plain implementation."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from core.comparison import DeLong, compare_aurocs, compare_calls, compute_interval, write_p
from core.config import build_record
from core.errors import DataError, ShapeError


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
    from scipy.stats import norm
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
