"""The distance-weighted vote, itemised by neighbour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from core.errors import ShapeError, check_shape
from core.gallery.search import Gallery, split_parts

_Float = TypeVar("_Float", np.float32, np.float64)


def compute_shares(distances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn distances into each neighbour's share of the vote.

    Each neighbour weighs 1/distance. If any lies at distance zero, only those at zero count,
    equally.

    Args:
        distances: (Q, K) Euclidean, non-negative; inf for missing neighbours.

    Returns:
        (Q, K) float32; every row sums to 1, a missing neighbour's share is 0.

    Raises:
        ShapeError: not two-dimensional, a distance is negative or not a number, or a query has no
            neighbour.

    Reference: Dudani 1976, IEEE Trans. SMC 6(4), 325-327.
    """
    check_shape("distances", distances, (None, None))
    if not np.all(distances >= 0):
        raise ShapeError("distances: expected non-negative numbers.")
    if distances.shape[1] == 0 or not np.isfinite(distances.min(1)).all():
        raise ShapeError("distances: expected at least one neighbour, got 0.")
    is_zero = distances == 0
    nearest = np.where(is_zero.any(1, keepdims=True), 1.0, distances.min(1, keepdims=True))
    with np.errstate(divide="ignore"):
        # relative to the nearest, so that tiny distances cannot overflow
        inverse = nearest.astype(np.float64) / distances
    voting = np.where(is_zero.any(1, keepdims=True), is_zero.astype(np.float64), inverse)
    shares: NDArray[np.float32] = (voting / voting.sum(1, keepdims=True)).astype(np.float32)
    return shares


def vote(
    distances: NDArray[np.float32], labels: NDArray[np.int64], *, n_classes: int
) -> NDArray[np.float32]:
    """Turn neighbour distances into class scores: the sum of the shares of each class.

    Args:
        distances: (Q, K) Euclidean, non-negative; inf for missing neighbours.
        labels: (Q, K) class index of each neighbour, in [0, n_classes); any value if missing.

    Returns:
        (Q, n_classes) float32; every row sums to 1.

    Raises:
        ShapeError: the two arrays differ in shape, K is 0, or a label is out of range.
    """
    check_shape("labels", labels, distances.shape)
    if labels.size and not (labels.min() >= 0 and labels.max() < n_classes):
        raise ShapeError(f"labels: expected values in 0..{n_classes - 1}.")
    shares = compute_shares(distances)
    sums = np.stack([np.where(labels == c, shares, 0.0).sum(1) for c in range(n_classes)], axis=1)
    return _make_whole(sums)


def _make_whole(sums: NDArray[_Float]) -> NDArray[_Float]:
    """Divide (..., n_classes) sums by their total, so that a unanimous vote is exactly 1.

    Otherwise rounding errors would rank unanimous votes in a random order.
    """
    whole: NDArray[_Float] = sums / sums.sum(axis=-1, keepdims=True)
    return whole


@dataclass(frozen=True, eq=False)
class Ballot:
    """The vote on one query: every gallery row that voted, nearest first."""

    rows: NDArray[np.int64]  # (M,)
    distances: NDArray[np.float32]  # (M,) between the whole embeddings
    weights: NDArray[np.float64]  # (M,) 1 / distance, summed over the parts that found the row
    shares: NDArray[np.float64]  # (M,) shares of the vote; sum to 1

    def sum_by_class(self, labels: NDArray[np.int64], *, n_classes: int) -> NDArray[np.float64]:
        """Sum the shares by class: (n_classes,)."""
        sums: NDArray[np.float64] = np.zeros(n_classes)
        np.add.at(sums, labels[self.rows], self.shares)
        return _make_whole(sums)


def read_shares(
    ballots: Sequence[Ballot], labels: NDArray[np.int64], *, class_index: int
) -> NDArray[np.float64]:
    """Return the vote share of one of the two classes for each query: (Q,) in [0, 1]."""
    return np.array([b.sum_by_class(labels, n_classes=2)[class_index] for b in ballots])


def cast_votes(
    gallery: Gallery,
    queries: NDArray[np.float32],
    k: int,
    *,
    excluded: Sequence[NDArray[np.int64]] | None = None,
) -> list[Ballot]:
    """Let the k nearest rows vote on each query; with several parts, k rows in each.

    Args:
        gallery: the rows that may vote.
        queries: (Q, P * D) float32.
        k: voters per part.
        excluded: for each query the rows excluded from the vote.

    Raises:
        ShapeError, DataError: as ``Gallery.search``.
    """
    found = [
        part.search(points, k, excluded=excluded)
        for part, points in zip(gallery.parts, split_parts(queries, gallery.n_parts), strict=True)
    ]
    distances = np.concatenate([apart for apart, _ in found], axis=1)
    voters = np.concatenate([rows for _, rows in found], axis=1)
    shares = np.concatenate([compute_shares(a) / gallery.n_parts for a, _ in found], axis=1)
    inverse = 1.0 / np.maximum(distances.astype(np.float64), 1e-9)
    ballots = []
    for query, point in enumerate(queries):
        is_there = voters[query] >= 0
        rows, place = np.unique(voters[query, is_there], return_inverse=True)
        share, weight = np.zeros(len(rows)), np.zeros(len(rows))
        np.add.at(share, place, shares[query, is_there])
        np.add.at(weight, place, inverse[query, is_there])
        distance = np.linalg.norm(gallery.embeddings[rows] - point, axis=1)
        order = np.lexsort((rows, distance))
        ballots.append(Ballot(rows[order], distance[order], weight[order], share[order]))
    return ballots
