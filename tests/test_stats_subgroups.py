"""Subgroups by hand, numbers cut into quartiles, small groups flagged; headline intervals."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    recall_score,
)

from core.errors import ShapeError
from core.stats.headlines import compute_headlines
from core.stats.metrics import compute_metrics
from core.stats.proportions import compute_share
from core.stats.subgroups import can_split, split_by


def test_rows_by_hand() -> None:
    truth = np.array([True, True, False, False, True])
    probs = np.array([0.9, 0.2, 0.1, 0.8, 0.7])
    first, second = split_by(truth, probs, ["a", "a", "a", "a", "b"])
    assert (first.value, first.n, first.n_disease) == ("a", 4, 2)
    assert first.accuracy.share == 0.5
    assert first.sensitivity.share == 0.5
    assert first.specificity.share == 0.5
    assert first.auroc == 0.75  # of 4 pairs, only (0.2, 0.8) is in the wrong order
    assert first.is_small
    assert second.auroc is None
    assert second.specificity.share is None


def test_many_numbers_become_four_parts_of_equal_size(rng: np.random.Generator) -> None:
    truth, ages = rng.random(400) < 0.5, rng.integers(20, 90, 400)
    rows = split_by(truth, rng.random(400), [str(age) for age in ages])
    assert len(rows) == 4
    assert sum(row.n for row in rows) == 400
    assert all(80 <= row.n <= 120 for row in rows)
    assert not any(row.is_small for row in rows)
    for row in rows:
        assert row.auroc_ci95 is not None
        assert row.auroc is not None
        assert row.auroc_ci95[0] <= row.auroc <= row.auroc_ci95[1]


@pytest.mark.parametrize(
    ("first", "named"), [(20200101, "20200101 – 20200111"), (0.0, "0 – 9.75"), (1e-9, "")]
)
def test_parts_of_numbers_that_lie_close_are_told_apart(first: float, named: str) -> None:
    truth = np.arange(40) % 2 == 0
    step = 1e-12 if first == 1e-9 else 1
    rows = split_by(truth, truth * 0.8, [repr(first + step * i) for i in range(40)])
    assert [row.n for row in rows] == [10] * 4
    assert len({row.value for row in rows}) == 4
    assert named in [row.value for row in rows] or not named


def test_patients_not_images_make_a_group_large() -> None:
    truth = np.arange(60) % 2 == 0
    probs = np.where(truth, 0.9, 0.2)
    groups = [f"p{i // 10}" for i in range(60)]
    assert not split_by(truth, probs, ["a"] * 60)[0].is_small
    assert split_by(truth, probs, ["a"] * 60, groups=groups)[0].is_small


def test_patients_not_images_set_the_width(rng: np.random.Generator) -> None:
    """Copies of a patient's image must not narrow any interval."""
    truth = np.repeat(np.arange(100) % 2 == 0, 4)
    said = np.clip(np.where(truth[::4], 0.7, 0.3) + rng.normal(0, 0.3, 100), 0, 1)
    probs = np.repeat(said, 4)
    groups = [f"p{i // 4}" for i in range(400)]
    (naive,) = split_by(truth, probs, ["a"] * 400)
    (known,) = split_by(truth, probs, ["a"] * 400, groups=groups)
    (alone,) = split_by(truth[::4], probs[::4], ["a"] * 100)
    for key in ("accuracy", "sensitivity", "specificity"):
        wide, narrow, true = (getattr(row, key) for row in (known, naive, alone))
        assert wide.share == narrow.share == true.share
        assert wide.high - wide.low == pytest.approx(true.high - true.low, rel=0.2), key
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low), key


def test_a_class_of_few_patients_marks_the_group() -> None:
    truth = np.array([True] * 5 + [False] * 95)
    probs = np.where(truth, 0.9, 0.2)
    assert split_by(truth, probs, ["a"] * 100)[0].is_small
    assert not split_by(np.zeros(100, dtype=bool), probs, ["a"] * 100)[0].is_small


def test_which_columns_make_subgroups() -> None:
    assert can_split(["a", "b", "a"])
    assert can_split([str(i / 7) for i in range(100)])
    assert not can_split(["a"] * 5)
    names = [f"image{i}" for i in range(100)]
    assert not can_split(names)
    with pytest.raises(ShapeError, match="100 different words"):
        split_by(np.arange(100) % 2 == 0, np.linspace(0, 1, 100), names)


def test_headlines_are_scikit_learns_and_inside_their_intervals(rng: np.random.Generator) -> None:
    truth = rng.random(150) < 0.4
    probs = np.clip(0.4 + 0.25 * truth + 0.2 * rng.normal(size=150), 0, 1)
    figures = {figure.key: figure for figure in compute_headlines(truth, probs)}
    called = probs > 0.5
    expected = {
        "balanced_accuracy": balanced_accuracy_score(truth, called),
        "sensitivity": recall_score(truth, called),
        "specificity": recall_score(~truth, ~called),
        "average_precision": average_precision_score(truth, probs),
        "brier": brier_score_loss(truth, probs),
        "auroc": compute_metrics(truth, probs).auroc,
        "ece": compute_metrics(truth, probs).ece,
    }
    for key, value in expected.items():
        assert figures[key].value == pytest.approx(value), key
        assert figures[key].low < figures[key].high
    for key in ("accuracy", "sensitivity", "specificity", "auroc", "brier"):
        assert figures[key].low <= figures[key].value <= figures[key].high


def test_perfect_separation_and_a_single_patient_are_no_certainty() -> None:
    truth = np.array([True] * 4 + [False] * 4)
    probs = np.array([0.9, 0.8, 0.85, 0.7, 0.1, 0.2, 0.3, 0.15])
    least = compute_share(4, 4).low
    figures = {figure.key: figure for figure in compute_headlines(truth, probs)}
    for key in ("auroc", "balanced_accuracy", "average_precision"):
        assert (figures[key].value, figures[key].high) == (pytest.approx(1.0), 1.0), key
        assert figures[key].low == least, key
    assert split_by(truth, probs, ["a"] * 8)[0].auroc_ci95 == (least, 1.0)
    one_patient = compute_headlines(truth, probs - 0.4 * (probs > 0.75), groups=["p"] * 8)
    assert {(figure.low, figure.high) for figure in one_patient} == {(0.0, 1.0)}


def test_an_interval_of_a_share_is_near_wilsons(rng: np.random.Generator) -> None:
    truth = np.repeat([True, False], 200)
    probs = np.where(rng.random(400) < 0.8, np.where(truth, 0.9, 0.1), np.where(truth, 0.1, 0.9))
    figure = {f.key: f for f in compute_headlines(truth, probs)}["sensitivity"]
    half = 1.96 * np.sqrt(figure.value * (1 - figure.value) / 200)
    assert (figure.high - figure.low) / 2 == pytest.approx(half, rel=0.15)
