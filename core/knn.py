"""Gallery, exact neighbour search, the distance-weighted vote as a ledger, and the choice of K.

Owns the vote. FAISS sits behind ``Gallery.search`` alone, so that an approximate or served index
can take its place. Distances are Euclidean between unit embeddings: 0 (same) to 2 (opposite).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from core.errors import DataError, ShapeError, check_shape

_Float = TypeVar("_Float", np.float32, np.float64)
_MATRIX_QUERIES = 8  # from so many on, one matrix product beats query by query
_N_SPARE = 8  # more than asked for: FAISS's rounding may swap two rows at the last place
_MANY_ROWS = 100_000  # from so many on, few queries are bound by reading the rows from memory
_N_TIMES = 4  # as many candidates in half precision as rows wanted
_ROUNDING = 1e-5  # of a distance: more than FAISS's sums in float32 are off
_BLOCK = 65_536  # rows turned to half precision at a time


@dataclass(frozen=True, eq=False)
class Gallery:
    """The training images that may vote, one row each. Rows are never changed.

    A model of several adapters keeps their embeddings side by side in a row, all together of unit
    length; each part votes by itself and the mean of the votes counts.
    """

    embeddings: NDArray[np.float32]  # (N, D) unit length
    labels: NDArray[np.int64]  # (N,)
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]  # patient; empty text where unknown
    sha256: tuple[str, ...]
    n_parts: int = 1
    may_vote: NDArray[np.bool_] | None = None  # (N,); rows that curation set aside are never found

    def __post_init__(self) -> None:
        check_shape("embeddings", self.embeddings, (None, None))
        if self.embeddings.shape[1] % self.n_parts:
            raise ShapeError(
                f"embeddings: expected a width that {self.n_parts} parts share, got "
                f"{self.embeddings.shape[1]}."
            )
        n = len(self.embeddings)
        check_shape("labels", self.labels, (n,))
        for name in ("keys", "splits", "groups", "sha256"):
            if len(getattr(self, name)) != n:
                raise ShapeError(f"{name}: expected {n} rows, got {len(getattr(self, name))}.")
        if n == 0:
            raise DataError("the gallery is empty: train on at least one image.", code="knn.empty")
        if self.may_vote is not None:
            check_shape("may_vote", self.may_vote, (n,))

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def voters(self) -> NDArray[np.int64]:
        """The rows that may vote, ascending."""
        if self.may_vote is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.may_vote)

    @cached_property
    def silent(self) -> NDArray[np.int64]:
        """The rows that curation set aside, ascending."""
        return np.setdiff1d(np.arange(len(self), dtype=np.int64), self.voters)

    @property
    def _voting_rows(self) -> NDArray[np.float32]:
        """The embeddings of the voters; not a copy where all of them vote."""
        return self.embeddings if self.may_vote is None else self.embeddings[self.voters]

    @cached_property
    def _centre(self) -> NDArray[np.float32]:
        """The mean of the voters; distances from it are small where an embedding is a narrow cone.

        FAISS multiplies out |a - b|^2, which loses what is small beside |a|: without the shift it
        would find other rows than subtraction does.
        """
        mean: NDArray[np.float32] = self._voting_rows.mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    @cached_property
    def _index(self) -> faiss.IndexFlatL2:
        """Over the voters alone: position i in it is row ``voters[i]``."""
        index = faiss.IndexFlatL2(self.embeddings.shape[1])
        index.add(self._voting_rows - self._centre)
        return index

    @cached_property
    def _halves(self) -> "_HalfRows":
        return _HalfRows(self._voting_rows, self._centre)

    def _find_places(self, queries: NDArray[np.float32], n_wanted: int) -> NDArray[np.int64]:
        """Positions among the voters: (Q, at least n_wanted), the nearest of each query in them."""
        if len(queries) < _MATRIX_QUERIES and len(self.voters) >= _MANY_ROWS:
            places, reach = self._halves.search(queries, n_wanted)
            apart = self.embeddings[self.voters[places]] - queries[:, None, :]
            needed = np.sort(np.linalg.norm(apart, axis=2), axis=1)[:, n_wanted - 1]
            if (needed < reach).all():
                return places
        # FAISS compares queries times width with it; its own, 128000, is far too high.
        faiss.cvar.distance_compute_blas_threshold = _MATRIX_QUERIES * queries.shape[1]
        places = self._index.search(queries - self._centre, n_wanted)[1]
        return places

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        excluded: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest rows of each query, whatever the other queries are.

        Args:
            queries: (Q, D) float32.
            k: neighbours wanted; fewer come back when the gallery has fewer left.
            excluded: for each query the rows that may not be found.

        Returns:
            distances (Q, K) float32 ascending and rows (Q, K) int64; equal distances in row order
            (of more than eight at the last place, any may come). A query with fewer rows left than
            another has distance inf and row -1 at its end.

        Raises:
            ShapeError: wrong width, or k below 1.
            DataError: every row of the gallery is excluded for a query.
        """
        check_shape("queries", queries, (None, self.embeddings.shape[1]))
        if k < 1:
            raise ShapeError(f"k: expected at least 1, got {k}.")
        if excluded is not None and len(excluded) != len(queries):
            raise ShapeError(f"excluded: expected {len(queries)} lists, got {len(excluded)}.")
        if excluded is not None and self.may_vote is not None:
            excluded = [rows[self.may_vote[rows]] for rows in excluded]
        sizes = [len(rows) for rows in excluded or ()]
        least, most = min(sizes, default=0), max(sizes, default=0)
        n_voters = len(self.voters)
        if most >= n_voters:
            raise DataError(
                "no gallery image is left to vote: all are duplicates or of its own group.",
                code="knn.nobody",
            )
        n_wanted = min(k + most + _N_SPARE, n_voters)
        found = self.voters[self._find_places(queries, n_wanted)]
        # By subtraction: FAISS's expanded form is not exactly zero for equal vectors.
        apart = self.embeddings[found] - queries[:, None, :]
        distances: NDArray[np.float32] = np.linalg.norm(apart, axis=2)
        for row, barred in enumerate(excluded or ()):
            distances[row, np.isin(found[row], barred)] = np.inf
        order = np.lexsort((found, distances), axis=1)[:, : min(k, n_voters - least)]
        distances = np.take_along_axis(distances, order, 1)
        found = np.take_along_axis(found, order, 1)
        if most > least:
            found[np.isinf(distances)] = -1
        return distances, found

    @cached_property
    def parts(self) -> tuple["Gallery", ...]:
        """One gallery per adapter, each with unit embeddings."""
        if self.n_parts == 1:
            return (self,)
        return tuple(
            replace(self, embeddings=part, n_parts=1)
            for part in split_parts(self.embeddings, self.n_parts)
        )

    def find_related(
        self, *, sha256: str, group: str = "", copies: Sequence[int] = ()
    ) -> dict[int, str]:
        """Return the rows that may not vote on an image: "duplicate" or "group" (its copies' too).

        Args:
            sha256: of the image's file; empty where unknown.
            group: its patient; empty where unknown.
            copies: rows known to be of the same picture, whatever their files.
        """
        copies = [*self._rows_by_sha256.get(sha256, []), *copies]
        related = {
            row: "group"
            for patient in dict.fromkeys([group, *(self.groups[row] for row in copies)])
            for row in self._rows_by_group.get(patient, [])
        }
        return related | dict.fromkeys(copies, "duplicate")

    @cached_property
    def _rows_by_group(self) -> dict[str, list[int]]:
        return _index_rows(self.groups)

    @cached_property
    def _rows_by_sha256(self) -> dict[str, list[int]]:
        return _index_rows(self.sha256)


class _HalfRows:
    """The rows once more in half precision: half the memory to read, and it is known how far off.

    Candidates alone come from here; whether the nearest are among them is the caller's to check.
    """

    def __init__(self, rows: NDArray[np.float32], centre: NDArray[np.float32]) -> None:
        width = rows.shape[1]
        largest = max(
            np.abs(rows.max(axis=0) - centre).max(), np.abs(rows.min(axis=0) - centre).max()
        )
        # A power of two, which rounds nothing, for the full range of half precision.
        self._scale = np.float32(2.0 ** -np.ceil(np.log2(max(float(largest), 1e-30))))
        self._centre = centre
        self._index = faiss.IndexScalarQuantizer(
            width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2
        )
        self._moved = 0.0  # the largest distance that a row is off by
        for start in range(0, len(rows), _BLOCK):
            block = (rows[start : start + _BLOCK] - centre) * self._scale
            self._index.add(block)
            error = self._index.reconstruct_n(start, len(block)) - block
            self._moved = max(self._moved, float(np.linalg.norm(error, axis=1).max()))

    def search(
        self, queries: NDArray[np.float32], n_wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Candidates (Q, C) of each query, and the distance (Q,) within which none is missing."""
        n_found = min(_N_TIMES * n_wanted, self._index.ntotal)
        squares, places = self._index.search((queries - self._centre) * self._scale, n_found)
        if n_found == self._index.ntotal:
            return places, np.full(len(queries), np.inf)
        farthest = np.sqrt(squares[:, -1].astype(np.float64))
        return places, (farthest * (1.0 - _ROUNDING) - self._moved) / float(self._scale)


def _index_rows(names: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each name; empty text names nothing."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name:
            rows.setdefault(name, []).append(row)
    return rows


def compute_shares(distances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn distances into the share of the vote of each neighbour.

    Each neighbour weighs 1/distance. If any lies at distance zero, only those at zero count,
    equally.

    Args:
        distances: (Q, K) Euclidean, non-negative; inf where a query has fewer neighbours.

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
        distances: (Q, K) Euclidean, non-negative; inf where a query has fewer neighbours.
        labels: (Q, K) class index of each neighbour, in [0, n_classes); any where it is missing.

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

    The last digits of many shares would rank unanimous votes among themselves, by chance.
    """
    whole: NDArray[_Float] = sums / sums.sum(axis=-1, keepdims=True)
    return whole


def split_parts(embeddings: NDArray[np.float32], n_parts: int) -> list[NDArray[np.float32]]:
    """Cut (N, P * D) rows into P arrays (N, D) of unit rows."""
    blocks = np.split(embeddings, n_parts, axis=1)
    return [np.ascontiguousarray(block) * np.float32(np.sqrt(n_parts)) for block in blocks]


@dataclass(frozen=True, eq=False)
class Ballot:
    """The vote on one query: every gallery row that took part, nearest first."""

    rows: NDArray[np.int64]  # (M,)
    distances: NDArray[np.float32]  # (M,) between the whole embeddings
    weights: NDArray[np.float64]  # (M,) 1 / distance, summed over the parts that found the row
    shares: NDArray[np.float64]  # (M,) of the vote; they sum to 1

    def sum_by_class(self, labels: NDArray[np.int64], *, n_classes: int) -> NDArray[np.float64]:
        """Add the shares up by class: (n_classes,)."""
        sums: NDArray[np.float64] = np.zeros(n_classes)
        np.add.at(sums, labels[self.rows], self.shares)
        return _make_whole(sums)


def read_shares(
    ballots: Sequence[Ballot], labels: NDArray[np.int64], *, class_index: int
) -> NDArray[np.float64]:
    """What a class of the two got of the vote on each query: (Q,) in [0, 1]."""
    return np.array([b.sum_by_class(labels, n_classes=2)[class_index] for b in ballots])


def cast_votes(
    gallery: Gallery,
    queries: NDArray[np.float32],
    k: int,
    *,
    excluded: Sequence[NDArray[np.int64]] | None = None,
) -> list[Ballot]:
    """Let the k nearest rows vote on each query; with several parts, k rows in each of them.

    Args:
        gallery: the rows that may vote.
        queries: (Q, P * D) float32.
        k: voters per part.
        excluded: for each query the rows that may not vote.

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


@dataclass(frozen=True)
class KScore:
    """What one K scored on validation."""

    k: int
    accuracy: float
    auroc: float


@dataclass(frozen=True)
class KSearch:
    """The chosen K and the whole curve behind the choice."""

    k: int
    scores: tuple[KScore, ...]


def search_k(
    gallery: Gallery,
    queries: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    candidates: Sequence[int],
    disease_index: int,
    excluded: Sequence[NDArray[np.int64]] | None = None,
    rule: str = "best",
) -> KSearch:
    """Choose K on validation in one neighbour search.

    The best accuracy wins; ties go to the larger K: the calmer vote leans on fewer single images.
    By the rule "one-standard-error" so does what validation cannot tell from a tie.

    Args:
        gallery: the training rows.
        queries: (Q, D) validation embeddings.
        labels: (Q,) their true classes, both classes present.
        candidates: the values to try; those above the gallery's size are dropped.
        disease_index: the positive class.
        excluded: for each query the rows that may not vote; where fewer than K are left, those do.
        rule: "best", or "one-standard-error": the largest K whose accuracy is within one standard
            error of the best.

    Raises:
        DataError: no candidate fits, or validation holds one class only.

    Reference: Breiman et al. 1984, Classification and Regression Trees, section 3.4.3 (the rule).
    """
    n_voters = len(gallery.voters)
    fitting = sorted({k for k in candidates if k <= n_voters})
    if not fitting:
        raise DataError(
            f"K is searched among {sorted(candidates)}, but the gallery has only {n_voters} "
            "images; add images or set knn.k_candidates.",
            code="knn.k",
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            "validation holds one class only; K cannot be chosen. Add images of the other class.",
            code="knn.one_class",
        )
    found = [
        part.search(points, fitting[-1], excluded=excluded)
        for part, points in zip(gallery.parts, split_parts(queries, gallery.n_parts), strict=True)
    ]
    n_classes = int(max(gallery.labels.max(), labels.max())) + 1
    scores = []
    for k in fitting:
        votes = [
            vote(distances[:, :k], gallery.labels[rows[:, :k]], n_classes=n_classes)
            for distances, rows in found
        ]
        probs = np.mean(votes, axis=0)
        accuracy = float(np.mean(probs.argmax(1) == labels))
        auroc = float(roc_auc_score(labels == disease_index, probs[:, disease_index]))
        scores.append(KScore(k, accuracy, auroc))
    top = max(score.accuracy for score in scores)
    slack = (top * (1.0 - top) / len(labels)) ** 0.5 if rule == "one-standard-error" else 0.0
    return KSearch(max(s.k for s in scores if s.accuracy >= top - slack), tuple(scores))
