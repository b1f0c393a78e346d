"""Planted wrong labels rank first, even if the embedding has memorised them."""

import numpy as np
import pytest

from core.errors import ShapeError
from core.gallery.label_errors import judge_held_out, score_labels


def plant(rng: np.random.Generator, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors of two overlapping classes, labels with 5 % wrong, and which are wrong."""
    truth = np.arange(n) % 2
    descriptors = rng.normal(size=(n, 40)) + 0.55 * np.outer(2 * truth - 1, np.ones(40) / 2)
    wrong = rng.choice(n, n // 20, replace=False)
    labels = truth.copy()
    labels[wrong] = 1 - labels[wrong]
    return descriptors.astype(np.float32), labels, wrong


def test_five_percent_planted_errors_lead_the_ranking(rng: np.random.Generator) -> None:
    descriptors, labels, wrong = plant(rng)
    held_out = judge_held_out(descriptors, labels, [""] * len(labels), n_classes=2)
    np.testing.assert_allclose(held_out.sum(axis=1), 1.0, atol=1e-5)
    learnt_by_heart = np.eye(2)[labels]  # agrees with every label, right or wrong
    scores = score_labels(learnt_by_heart, held_out, labels)
    top = np.argsort(-scores)[: len(wrong)]
    precision = np.isin(top, wrong).mean()
    assert precision >= 0.8, precision


def test_a_missing_opinion_is_left_out() -> None:
    nothing = np.full((2, 2), np.nan)
    vote = np.array([[0.9, 0.1], [np.nan, np.nan]])
    labels = np.array([1, 0])
    np.testing.assert_allclose(score_labels(vote, nothing, labels), [0.9, np.nan], rtol=1e-6)
    both = score_labels(vote, np.array([[0.5, 0.5], [0.2, 0.8]]), labels)
    np.testing.assert_allclose(both, [0.7, 0.8], rtol=1e-6)
    with pytest.raises(ShapeError, match="held_out_probs"):
        score_labels(vote, nothing[:1], labels)


def test_a_patient_is_never_judged_by_his_own_images(rng: np.random.Generator) -> None:
    """Each patient's images are alike and carry no class signal; a leak would score perfectly."""
    patients = np.repeat(np.arange(40), 5)
    labels = (patients % 2).astype(np.int64)
    descriptors = rng.normal(size=(40, 120))[patients] + rng.normal(scale=0.01, size=(200, 120))
    groups = [f"p{p}" for p in patients]
    held_out = judge_held_out(descriptors.astype(np.float32), labels, groups, n_classes=2)
    leaked = judge_held_out(descriptors.astype(np.float32), labels, [""] * 200, n_classes=2)
    rows = np.arange(200)
    assert (held_out[rows, labels] > 0.5).mean() < 0.65
    assert (leaked[rows, labels] > 0.5).mean() > 0.9


def test_too_little_to_fit_is_no_opinion() -> None:
    few = judge_held_out(np.zeros((6, 3), np.float32), np.array([0, 1] * 3), [""] * 6, n_classes=2)
    assert np.isnan(few).all()
