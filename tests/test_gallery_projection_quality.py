"""Map quality: a perfect map, a random one, and scikit-learn's trustworthiness."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from core.errors import ShapeError
from core.gallery import projection_quality
from core.gallery.projection_quality import measure_map


def test_a_map_that_is_the_space_itself_is_perfect(rng: np.random.Generator) -> None:
    points = rng.normal(size=(60, 2)).astype(np.float32)
    quality = measure_map(points, points, k=10)
    assert (quality.trustworthiness, quality.preserved, quality.k) == (1.0, 1.0, 10)


def test_trustworthiness_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    points = rng.normal(size=(150, 8)).astype(np.float32)
    flat = points[:, :2] + rng.normal(scale=0.2, size=(150, 2)).astype(np.float32)
    quality = measure_map(points, flat, k=12)
    assert quality.trustworthiness == pytest.approx(
        trustworthiness(points, flat, n_neighbors=12), abs=1e-6
    )
    order = np.argsort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)[:, 1:13]
    seen = np.argsort(np.linalg.norm(flat[:, None] - flat, axis=2), axis=1)[:, 1:13]
    kept = np.mean([len(set(a) & set(b)) / 12 for a, b in zip(order, seen, strict=True)])
    assert quality.preserved == pytest.approx(kept)


def test_a_random_map_keeps_next_to_nothing(rng: np.random.Generator) -> None:
    points = rng.normal(size=(400, 16)).astype(np.float32)
    quality = measure_map(points, rng.normal(size=(400, 3)).astype(np.float32), k=10)
    assert quality.preserved < 0.08
    assert 0.4 < quality.trustworthiness < 0.6


def test_a_sample_stands_for_the_whole(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = rng.normal(size=(600, 6)).astype(np.float32)
    whole = measure_map(points, points[:, :2], k=10)
    monkeypatch.setattr(projection_quality, "_MAX_SAMPLED", 300)
    part = measure_map(points, points[:, :2], k=10)
    assert (whole.n_sampled, part.n_sampled) == (600, 300)
    assert part.trustworthiness == pytest.approx(whole.trustworthiness, abs=0.03)


def test_copies_at_one_place_and_tiny_galleries(rng: np.random.Generator) -> None:
    same = np.zeros((8, 2), dtype=np.float32)
    assert 0.0 <= measure_map(rng.normal(size=(8, 3)).astype(np.float32), same).preserved <= 1.0
    assert measure_map(same[:3], same[:3]).n_sampled == 3
    with pytest.raises(ShapeError, match="coordinates"):
        measure_map(same, same[:5])
