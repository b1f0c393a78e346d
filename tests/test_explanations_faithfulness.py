"""Faithfulness by hand: order of cells, areas of known curves, a planted lesion, agreement."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import rankdata

from core.errors import ShapeError
from core.explanations import faithfulness
from core.explanations.faithfulness import (
    Faithfulness,
    compute_agreement,
    compute_energy,
    compute_soft_votes,
    has_hit,
    measure,
    rank_cells,
)
from core.images.phantom import draw
from core.models.bundle import Member, ModelBundle
from core.models.ensemble import Ensemble


def peak_map(row: int, column: int, size: int = 12) -> np.ndarray:
    heatmap = np.zeros((size, size), dtype=np.float32)
    heatmap[row, column] = 1.0
    return heatmap


def count_bright(_members: object, images: Sequence[np.ndarray], **_options: object) -> np.ndarray:
    """Stands in for a model: the fraction left of one bright corner (18 of 144 cells)."""
    return np.array([image[:144, :72].mean() / 255.0 for image in images])


@pytest.fixture
def corner(monkeypatch: pytest.MonkeyPatch, tiny_bundle: ModelBundle) -> tuple[Member, ...]:
    """A member with input size 288, scored by ``count_bright``."""
    monkeypatch.setattr(faithfulness, "compute_soft_votes", count_bright)
    monkeypatch.setattr(faithfulness, "_BLUR_SHARE", 1.0)  # flat: a deleted cell is dark
    config = tiny_bundle.config
    run = dataclasses.replace(
        config.run, preprocess=dataclasses.replace(config.run.preprocess, input_size=288)
    )
    bundle = dataclasses.replace(tiny_bundle, config=dataclasses.replace(config, run=run))
    return bundle.members


def bright_corner() -> tuple[np.ndarray, np.ndarray]:
    pixels = np.zeros((288, 288, 3), dtype=np.uint8)
    pixels[:144, :72] = 255
    return pixels, (pixels[::24, ::24, 0] / 255).astype(np.float32)


def test_areas_by_hand_and_the_right_map_beats_chance(corner: tuple[Member, ...]) -> None:
    pixels, truth = bright_corner()
    result = measure(corner, pixels, {"true": truth, "false": 1 - truth}, class_name="disease")
    base = 1 / 8  # the blurred image is flat at its mean: 18 of 144 cells are bright
    # each step removes an eighth of the cells, which is all the bright ones
    deleted = [1.0, *[base] * 8]
    inserted = [base, *[1.0] * 8]
    assert result["true"].deletion_curve == pytest.approx(deleted, abs=0.02)
    assert result["true"].insertion_curve == pytest.approx(inserted, abs=0.02)
    assert result["true"].deletion == pytest.approx(base + (1 - base) / 16, abs=0.02)
    assert result["true"].insertion == pytest.approx(1 - (1 - base) / 16, abs=0.02)
    assert result["true"].is_better_than_random
    assert not result["false"].is_better_than_random
    # a random order removes the corner evenly: a straight line, area (1 + base) / 2
    assert result["true"].deletion_random == pytest.approx((1 + base) / 2, abs=0.1)
    assert result["true"].insertion_random == result["true"].deletion_random


def test_better_than_random_needs_both() -> None:
    curve = (0.0, 1.0)
    figures = Faithfulness(0.2, 0.8, 0.5, 0.5, curve, curve, curve, curve)
    assert figures.is_better_than_random
    assert not dataclasses.replace(figures, deletion=0.6).is_better_than_random
    assert not dataclasses.replace(figures, insertion=0.4).is_better_than_random


def test_better_than_random_is_more_than_the_eye_and_chance_leave_open() -> None:
    curve = (0.0, 1.0)
    close = Faithfulness(0.49, 0.51, 0.5, 0.5, curve, curve, curve, curve)
    assert not close.is_better_than_random
    clear = dataclasses.replace(close, deletion=0.4, insertion=0.6, random_spread=0.05)
    assert clear.is_better_than_random
    assert not dataclasses.replace(clear, random_spread=0.15).is_better_than_random


def test_the_spread_is_that_of_the_random_orders(corner: tuple[Member, ...]) -> None:
    pixels, truth = bright_corner()
    alone = [
        measure(corner, pixels, {"a": truth}, class_name="disease", n_random=n)["a"] for n in (1, 2)
    ]
    assert alone[0].random_spread == 0.0
    first, mean = alone[0].deletion_random, alone[1].deletion_random
    assert alone[1].random_spread == pytest.approx(2 * abs(first - mean))  # same seed, same first


def test_cells_come_brightest_first_and_ties_are_drawn() -> None:
    rng = np.random.default_rng(0)
    assert rank_cells(peak_map(3, 5), rng=rng)[0] == 3 * 12 + 5
    flat = np.ones((9, 9), dtype=np.float32)
    first, second = rank_cells(flat, rng=rng), rank_cells(flat, rng=rng)
    assert sorted(first) == list(range(144))
    assert not np.array_equal(first, second)


def test_the_soft_vote_equals_a_plain_count(tiny_bundle: ModelBundle) -> None:
    """Against a slow reference, on the model's own embedding of one view."""
    pixels = draw(900_001, is_diseased=True, size=96).pixels
    (score,) = compute_soft_votes(tiny_bundle.members, [pixels], class_name="disease")
    run = tiny_bundle.config.run
    run = dataclasses.replace(run, embedder=dataclasses.replace(run.embedder, tta=False))
    query = dataclasses.replace(tiny_bundle.embedder, config=run).embed_batch([pixels])
    votes = {0: 0.0, 1: 0.0}
    for label in votes:
        rows = tiny_bundle.gallery.embeddings[tiny_bundle.gallery.labels == label]
        nearest = sorted(float(np.linalg.norm(r - query.embeddings[0])) for r in rows)
        votes[label] = sum(1 / d for d in nearest[: tiny_bundle.n_shown])
    assert score == pytest.approx(votes[1] / (votes[0] + votes[1]), rel=1e-4)
    (other,) = compute_soft_votes(tiny_bundle.members, [pixels], class_name="normal")
    assert score + other == pytest.approx(1.0)


def test_excluded_rows_do_not_vote(tiny_bundle: ModelBundle) -> None:
    pixels = draw(900_001, is_diseased=True, size=96).pixels
    diseased = np.flatnonzero(tiny_bundle.gallery.labels == 1)
    (all_vote,) = compute_soft_votes(tiny_bundle.members, [pixels], class_name="disease")
    (one_left,) = compute_soft_votes(
        tiny_bundle.members, [pixels], class_name="disease", excluded=[diseased[1:].tolist()]
    )
    assert one_left < all_vote


def test_an_ensemble_is_measured_as_a_whole_and_the_same_twice(tiny_ensemble: Ensemble) -> None:
    pixels = draw(900_001, is_diseased=True, size=96).pixels
    before = pixels.copy()
    maps = {"a": peak_map(2, 2), "b": peak_map(8, 8)}
    first = measure(tiny_ensemble.members, pixels, maps, class_name="disease", n_steps=3)
    assert first == measure(tiny_ensemble.members, pixels, maps, class_name="disease", n_steps=3)
    np.testing.assert_array_equal(pixels, before)
    for figures in first.values():
        assert 0 < figures.deletion < 1
        assert 0 < figures.insertion < 1
        assert figures.deletion_curve[0] == figures.insertion_curve[-1]  # the whole image
        assert figures.deletion_curve[-1] == figures.insertion_curve[0] == figures.random_curve[0]


def test_what_cannot_be_measured_is_refused(tiny_bundle: ModelBundle) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ShapeError, match="at least one heatmap"):
        measure(tiny_bundle.members, pixels, {}, class_name="disease")
    with pytest.raises(ShapeError, match="pixels"):
        measure(tiny_bundle.members, pixels[:, :, 0], {"a": peak_map(0, 0)}, class_name="disease")
    with pytest.raises(ShapeError, match="heatmap"):
        measure(tiny_bundle.members, pixels, {"a": np.zeros(3, np.float32)}, class_name="disease")


def test_pointing_and_energy_by_hand() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, :2] = True
    heatmap = np.zeros((4, 4), dtype=np.float32)
    heatmap[0, 0], heatmap[3, 3] = 1.0, 0.5
    assert has_hit(heatmap, mask)
    assert compute_energy(heatmap, mask) == pytest.approx(2 / 3)
    assert not has_hit(heatmap[::-1, ::-1].copy(), mask)
    # the peak is then at (3, 3), 3.6 pixels from the mask's nearest pixel (0, 1)
    assert not has_hit(heatmap[::-1, ::-1].copy(), mask, tolerance_px=3)
    assert has_hit(heatmap[::-1, ::-1].copy(), mask, tolerance_px=4)
    assert compute_energy(heatmap[::-1, ::-1].copy(), mask) == pytest.approx(1 / 3)
    # a small map is resized to the mask
    assert has_hit(np.array([[1, 0], [0, 0]], dtype=np.float32), mask)
    flat = np.ones((4, 4), dtype=np.float32)
    assert not has_hit(flat, mask)
    assert compute_energy(flat, mask) == pytest.approx(2 / 16)
    assert compute_energy(np.zeros((4, 4), dtype=np.float32), mask) == 0.0
    with pytest.raises(ShapeError, match="at least one pixel"):
        has_hit(heatmap, np.zeros((4, 4), dtype=bool))


def test_agreement_is_the_correlation_of_ranks(rng: np.random.Generator) -> None:
    first = np.round(rng.random((6, 6)), 1).astype(np.float32)
    second = np.round(rng.random((6, 6)), 1).astype(np.float32)
    expected = np.corrcoef(rankdata(first), rankdata(second))[0, 1]
    assert compute_agreement(first, second) == pytest.approx(expected)
    assert compute_agreement(first, first) == pytest.approx(1.0)
    assert compute_agreement(first, 1 - first) == pytest.approx(-1.0)
    assert compute_agreement(first, np.zeros((6, 6), dtype=np.float32)) == 0.0
