"""Shift and recalibration: planted shifts are found, and the sample is never tested on."""

import numpy as np
import pytest
from scipy.special import expit, logit

from core.errors import DataError
from core.stats.shift import fit_recalibration, measure_recalibration, measure_shift, recalibrate


def draw_overcalling(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities, then shifted up by 2 on the logit scale, as by another scanner."""
    honest = rng.beta(0.8, 0.8, n)
    truth = rng.random(n) < honest
    return truth, expit(logit(np.clip(honest, 1e-4, 1 - 1e-4)) + 2.0)


def test_a_shift_by_hand() -> None:
    none = np.zeros(3, dtype=bool)
    shift = measure_shift(
        np.array([0.1, 0.2, 0.3]),
        np.array([0.2, 0.4, 0.5]),
        novel_home=none,
        novel_away=np.array([True, False, False]),
    )
    assert (shift.median_home, shift.median_away) == (0.2, 0.4)
    # of 9 pairs, the external image is farther in 7, tied in one, nearer in one
    assert shift.separation == pytest.approx(7.5 / 9)
    assert shift.novel_away == pytest.approx(1 / 3)


def test_recalibration_undoes_a_planted_fault(rng: np.random.Generator) -> None:
    truth, probs = draw_overcalling(rng, 4000)
    slope, intercept = fit_recalibration(truth, probs)
    assert slope == pytest.approx(1.0, abs=0.15)
    assert intercept == pytest.approx(-2.0, abs=0.25)
    np.testing.assert_allclose(recalibrate(probs, 1.0, 0.0), probs, atol=1e-6)
    assert recalibrate(np.array([0.5]), 1.0, -2.0)[0] == pytest.approx(expit(-2.0))


def test_a_small_sample_wins_calibration_on_the_rest(rng: np.random.Generator) -> None:
    truth, probs = draw_overcalling(rng, 300)
    result = measure_recalibration(truth, probs, n_sample=40)
    gains = {gain.key: gain for gain in result.gains}
    assert result.n_sample == 40
    assert gains["brier"].gain > 0.03
    assert gains["ece"].gain > 0.05
    assert gains["accuracy"].gain_low <= gains["accuracy"].gain <= gains["accuracy"].gain_high
    for gain in gains.values():
        won = gain.after - gain.before
        sign = -1 if gain.key in ("brier", "ece") else 1
        assert gain.gain == pytest.approx(sign * won)
    assert result == measure_recalibration(truth, probs, n_sample=40)


def test_patients_stay_together(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, probs = draw_overcalling(rng, 200)
    groups = [f"p{i // 4}" for i in range(200)]
    seen: list[int] = []
    from core.stats import shift as stats_shift

    real = stats_shift.fit_recalibration

    def fit(sample_truth: np.ndarray, sample_probs: np.ndarray) -> tuple[float, float]:
        seen.append(len(sample_truth))
        return real(sample_truth, sample_probs)

    monkeypatch.setattr(stats_shift, "fit_recalibration", fit)
    measure_recalibration(truth, probs, n_sample=30, groups=groups)
    assert set(seen) == {32}  # 8 whole patients of 4


def test_a_sample_that_is_everything_is_refused(rng: np.random.Generator) -> None:
    truth, probs = draw_overcalling(rng, 40)
    with pytest.raises(DataError, match="recalibrate on"):
        measure_recalibration(truth, probs, n_sample=40)
