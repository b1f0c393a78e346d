"""The map: deterministic, and a new image's position is independent of other uploads."""

import numpy as np
import pytest

from core.gallery import projection
from core.gallery.search import Gallery


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(c, 0.3, size=(20, 8)) for c in (-1, 1)]).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    n = len(points)
    labels = np.repeat([0, 1], 20).astype(np.int64)
    keys = tuple(map(str, range(n)))
    return Gallery(points, labels, keys, ("train",) * n, ("",) * n, keys)


@pytest.fixture(scope="module")
def fitted(gallery: Gallery) -> projection.Projection:
    return projection.fit(gallery.embeddings, seed=3)


def test_same_seed_same_map(gallery: Gallery, fitted: projection.Projection) -> None:
    again = projection.fit(gallery.embeddings, seed=3)
    np.testing.assert_array_equal(again.gallery_xy, fitted.gallery_xy)
    assert again.cache_key == fitted.cache_key
    assert projection.compute_cache_key(gallery.embeddings, seed=4) != fitted.cache_key


def test_classes_that_lie_apart_stay_apart(gallery: Gallery, fitted: projection.Projection) -> None:
    centres = [fitted.gallery_xy[gallery.labels == c].mean(0) for c in (0, 1)]
    within = np.mean([fitted.gallery_xy[gallery.labels == c].std(0).max() for c in (0, 1)])
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * within


def test_a_gallery_image_is_placed_on_itself(
    gallery: Gallery, fitted: projection.Projection
) -> None:
    placed = fitted.place(gallery, gallery.embeddings)
    np.testing.assert_allclose(placed, fitted.gallery_xy, atol=1e-5)


def test_placement_does_not_depend_on_the_batch(
    gallery: Gallery, fitted: projection.Projection, rng: np.random.Generator
) -> None:
    queries = rng.normal(size=(12, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    together = fitted.place(gallery, queries)
    for i, query in enumerate(queries):
        np.testing.assert_array_equal(fitted.place(gallery, query[None])[0], together[i])
    low, high = fitted.gallery_xy.min(0), fitted.gallery_xy.max(0)
    assert np.all((together >= low - 1e-4) & (together <= high + 1e-4))


def test_a_handful_of_images_still_gets_a_map() -> None:
    assert projection.fit(np.eye(4, dtype=np.float32), seed=0).gallery_xy.shape == (4, 2)
    assert projection.fit(np.eye(1, 4, dtype=np.float32), seed=0).gallery_xy.shape == (1, 2)
