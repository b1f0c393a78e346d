"""How faithful a map is: trustworthiness, and the share of true neighbours preserved.

Owns the quality measures; draws nothing. Both measures compare neighbours in the embedding space
with neighbours on the map. They are exact per image; for a large gallery the mean is over a seeded
sample of images, each still compared with the whole gallery.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from core.errors import check_shape

_MAX_SAMPLED = 1000
_BLOCK = 100  # images ranked at once, to bound memory


@dataclass(frozen=True)
class MapQuality:
    """Quality measures of one map: 1 for a perfect map; ``preserved`` is k / N for a random one."""

    trustworthiness: float  # whether neighbours on the map are true neighbours
    preserved: float  # share of the k true neighbours that are among the k nearest on the map
    k: int
    n_sampled: int  # images that the means are taken over


def measure_map(
    embeddings: NDArray[np.float32], coordinates: NDArray[np.float32], *, k: int = 15, seed: int = 0
) -> MapQuality:
    """Measure how well a map preserves neighbourhoods of the embedding space.

    Args:
        embeddings: (N, D) rows in the embedding space, Euclidean.
        coordinates: (N, 2) or (N, 3) positions on the map.
        k: size of a neighbourhood; at most (N - 1) / 2 is used.
        seed: for sampling at most 1000 images.

    Raises:
        ShapeError: lengths differ, or fewer than 4 images.

    Reference: Venna & Kaski 2001, ICANN 485-491 (trustworthiness).
    """
    n = len(embeddings)
    check_shape("coordinates", coordinates, (n, None))
    if n < 4:
        return MapQuality(1.0, 1.0, 0, n)
    k = min(k, (n - 1) // 2)
    rows = np.arange(n)
    if n > _MAX_SAMPLED:
        rows = np.sort(np.random.default_rng(seed).choice(n, _MAX_SAMPLED, replace=False))
    on_map = _find_others(coordinates, rows, k)
    intrusion, kept = 0.0, 0
    for start in range(0, len(rows), _BLOCK):
        block, seen = rows[start : start + _BLOCK], on_map[start : start + _BLOCK]
        ranks = _rank_others(embeddings, block, seen)
        intrusion += float(np.maximum(ranks - k, 0).sum())
        kept += int((ranks <= k).sum())
    worst = len(rows) * k * (2 * n - 3 * k - 1) / 2
    return MapQuality(1.0 - intrusion / worst, kept / (len(rows) * k), k, len(rows))


def _find_others(
    coordinates: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """Find the k nearest other points of some rows: (R, k)."""
    points = np.ascontiguousarray(coordinates, dtype=np.float32)
    _, found = faiss.knn(points[rows], points, k + 1)
    others = np.empty((len(rows), k), dtype=np.int64)
    for i, row in enumerate(rows):  # a point at the same position may come before the row itself
        others[i] = found[i][found[i] != row][:k]
    return others


def _rank_others(
    embeddings: NDArray[np.float32], rows: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rank (1 is the nearest) of each of the (R, k) others among all neighbours of its row."""
    squared = faiss.pairwise_distances(np.ascontiguousarray(embeddings[rows]), embeddings)
    squared[np.arange(len(rows)), rows] = -np.inf  # rank 0 is the row itself
    order = np.argsort(squared, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(squared.shape[1])[None], axis=1)
    return np.take_along_axis(ranks, others, axis=1)
