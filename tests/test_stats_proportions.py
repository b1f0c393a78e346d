"""Intervals of proportions: Wilson's by its formula, resampled patients, degenerate cases."""

import numpy as np
import pytest

from core.errors import ShapeError
from core.stats.proportions import (
    bound_figure,
    compute_share,
    count_patients,
    find_clusters,
    measure_mean,
    measure_share,
)


def test_wilson_by_its_formula() -> None:
    share = compute_share(8, 10)
    z, n, p = 1.959963985, 10, 0.8
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (share.low, share.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert compute_share(0, 0).share is None


def test_images_alone_have_wilsons_interval() -> None:
    hits = np.array([True] * 8 + [False] * 2)
    assert measure_share(hits) == compute_share(8, 10)
    assert measure_share(hits, groups=[str(i) for i in range(10)]) == compute_share(8, 10)
    assert measure_share(hits, groups=[""] * 10) == compute_share(8, 10)


def test_twins_of_every_image_add_no_certainty(rng: np.random.Generator) -> None:
    """Each patient's images agree, so the interval depends on patients, not on images."""
    patients = rng.random(100) < 0.7
    hits = np.repeat(patients, 5)
    groups = [f"p{i // 5}" for i in range(500)]
    known = measure_share(hits, groups=groups)
    naive = measure_share(hits)
    alone = compute_share(int(patients.sum()), 100)
    assert known.share == naive.share == alone.share
    assert known.high - known.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert (known.high - known.low) > 2 * (naive.high - naive.low)


def test_a_resampled_interval_is_a_slow_bootstraps(rng: np.random.Generator) -> None:
    hits = rng.random(120) < 0.6
    groups = [f"p{g}" for g in rng.integers(0, 40, 120)]
    clusters = find_clusters(groups, 120)
    drawn = []
    for _ in range(4000):
        rows = np.concatenate([clusters[i] for i in rng.integers(0, len(clusters), len(clusters))])
        drawn.append(hits[rows].mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    share = measure_share(hits, groups=groups)
    assert (share.low, share.high) == pytest.approx((low, high), abs=0.015)


def test_all_right_is_no_certainty() -> None:
    groups = ["a", "a", "a", "b", "c", "d"]
    share = measure_share(np.ones(6, dtype=bool), groups=groups)
    assert (share.share, share.high) == (1.0, 1.0)
    assert share.low == compute_share(4, 4).low
    none = measure_share(np.zeros(6, dtype=bool), groups=groups)
    assert (none.low, none.high) == (0.0, compute_share(0, 4).high)
    one_patient = measure_share(np.array([True, False, True]), groups=["a"] * 3)
    assert (one_patient.low, one_patient.high) == (0.0, 1.0)


def test_among_asks_about_some_images_only() -> None:
    hits = np.array([True, False, True, True])
    among = np.array([True, True, False, False])
    assert measure_share(hits, among=among) == compute_share(1, 2)
    grouped = measure_share(hits, among=among, groups=["a", "a", "b", "b"])
    assert (grouped.share, grouped.low, grouped.high) == (0.5, 0.0, 1.0)
    assert measure_share(hits, among=np.zeros(4, dtype=bool)).share is None
    with pytest.raises(ShapeError, match="groups: expected 4"):
        measure_share(hits, groups=["a"])


def test_a_figure_without_spread_is_no_certainty() -> None:
    truth = np.array([True] * 4 + [False] * 6)
    wilson = compute_share(4, 4)
    assert bound_figure(1.0, [1.0] * 9, truth=truth) == (wilson.low, wilson.high)
    assert bound_figure(1 - 1e-15, [1 - 1e-15] * 9, truth=truth) == (wilson.low, wilson.high)
    assert bound_figure(0.0, [0.0] * 9, truth=truth) == (0.0, compute_share(0, 4).high)
    assert bound_figure(0.9, [0.9] * 9, truth=truth, groups=["p"] * 10) == (0.0, 1.0)
    two = ["a", "a", "b", "b", *"cdefgh"]  # two diseased patients: the rarer class
    assert bound_figure(1.0, [1.0] * 9, truth=truth, groups=two)[0] == compute_share(2, 2).low
    draws = np.linspace(0.0, 1.0, 1001)
    assert bound_figure(0.5, draws, truth=truth) == pytest.approx((0.025, 0.975))


def test_patients_are_counted_once() -> None:
    rows = np.array([True, True, True, True, False])
    assert count_patients(["a", "a", "", "", "b"], rows) == 3
    assert count_patients(None, rows) == 4


def test_a_means_interval_is_the_normal_one_where_n_is_large(rng: np.random.Generator) -> None:
    values = rng.normal(3.0, 2.0, 400)
    mean = measure_mean(values.tolist())
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert mean.mean == pytest.approx(values.mean())
    assert (mean.high - mean.low) / 2 == pytest.approx(half, rel=0.1)
    twins = measure_mean(np.repeat(values, 3).tolist(), groups=[f"p{i // 3}" for i in range(1200)])
    assert twins.high - twins.low == pytest.approx(mean.high - mean.low, rel=0.1)
    with pytest.raises(ShapeError, match="got 0"):
        measure_mean([])
