"""Distance to the gallery: by hand, against a slow reference, and its limit."""

import numpy as np
import pytest

from core.errors import DataError, ShapeError
from core.gallery import novelty


def unit(rng: np.random.Generator, n: int, centre: np.ndarray) -> np.ndarray:
    points = centre + 0.1 * rng.normal(size=(n, len(centre)))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_scores_equal_a_plain_reference(rng: np.random.Generator) -> None:
    gallery, queries = unit(rng, 40, np.eye(8)[0]), unit(rng, 10, np.eye(8)[1])
    reference = novelty.fit(gallery)
    plain = np.sort(np.linalg.norm(queries[:, None] - gallery[None], axis=2), axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(reference.score(queries), plain, atol=1e-4)
    apart = np.linalg.norm(gallery[:, None] - gallery[None], axis=2)
    left_out = np.sort(apart, axis=1)[:, 1:6].mean(1)
    np.testing.assert_allclose(reference.distances, np.sort(left_out), atol=1e-3)


def test_strangers_are_beyond_the_limit_and_members_are_not(rng: np.random.Generator) -> None:
    reference = novelty.fit(unit(rng, 200, np.eye(8)[0]))
    limit = reference.compute_limit(percentile=99.0, slack=1.2)
    assert np.mean(reference.score(unit(rng, 100, np.eye(8)[0])) > limit) <= 0.02
    assert np.all(reference.score(unit(rng, 100, np.eye(8)[3])) > limit)


def test_percentiles_run_from_0_to_100() -> None:
    reference = novelty.NoveltyReference(
        np.eye(4, dtype=np.float32), np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    )
    scores = np.array([0.0, 0.2, 0.25, 9.0], dtype=np.float32)
    assert reference.compute_percentiles(scores).tolist() == [0.0, 50.0, 50.0, 100.0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        novelty.fit(np.ones((1, 4), dtype=np.float32))
    with pytest.raises(ShapeError, match="descriptors"):
        novelty.fit(np.eye(4, dtype=np.float32)).score(np.ones((1, 3), dtype=np.float32))


def test_copies_are_measured_without_their_originals(rng: np.random.Generator) -> None:
    gallery = unit(rng, 30, np.eye(8)[0])
    rows = np.array([4, 4, 17], dtype=np.int64)
    copies = gallery[rows].copy()
    copies[1] = unit(rng, 1, np.eye(8)[5])[0]  # far away: its original is not among the nearest
    found = novelty.measure_copies(gallery, copies, rows)
    for copy, row, distance in zip(copies, rows, found, strict=True):
        others = np.delete(gallery, row, axis=0)
        plain = np.sort(np.linalg.norm(others - copy, axis=1))[:5].mean()
        assert distance == pytest.approx(plain, abs=1e-3)
    few = novelty.measure_copies(gallery[:3], gallery[:1], np.array([0]))
    plain = np.linalg.norm(gallery[1:3] - gallery[0], axis=1).mean()
    assert few[0] == pytest.approx(plain, abs=1e-3)


def test_ordinary_copies_lie_within_the_limit_and_only_raise_it(rng: np.random.Generator) -> None:
    gallery = unit(rng, 200, np.eye(8)[0])
    alone = novelty.fit(gallery).compute_limit(percentile=99.0, slack=1.2)
    near = np.full((2, 10), alone / 2, dtype=np.float32)
    assert novelty.fit(gallery, copy_distances=near).compute_limit(
        percentile=99.0, slack=1.2
    ) == pytest.approx(alone)
    far = near.copy()
    far[1] = np.linspace(alone, alone * 1.5, 10)
    raised = novelty.fit(gallery, copy_distances=far).compute_limit(percentile=100.0, slack=1.2)
    assert raised == pytest.approx(alone * 1.5 * 1.1, rel=1e-3)
