"""Gallery and exact neighbour search.

Only ``Gallery.search`` uses the index, so that an approximate or remote index can replace it.
Distances are Euclidean; between unit embeddings they range from 0 (same) to 2 (opposite).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

from core.errors import DataError, ShapeError, check_shape

_MATRIX_QUERIES = 8  # from this many on, one matrix product is faster than one query at a time
_N_SPARE = 8  # extra candidates: FAISS's rounding may swap two rows at the last place
_MANY_ROWS = 100_000  # from this many on, small searches are limited by memory bandwidth
_N_TIMES = 4  # half-precision candidates per row wanted
_ROUNDING = 1e-5  # relative; exceeds the error of FAISS's float32 sums
_BLOCK = 65_536  # rows converted to half precision at a time


@dataclass(frozen=True, eq=False)
class Gallery:
    """The training images that may vote, one row each. Rows are never changed.

    A model with several adapters stores their embeddings side by side in a row of unit length. Each
    part votes separately, and the votes are averaged.
    """

    embeddings: NDArray[np.float32]  # (N, D) unit length
    labels: NDArray[np.int64]  # (N,)
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]  # patient; empty string if unknown
    sha256: tuple[str, ...]
    n_parts: int = 1
    may_vote: NDArray[np.bool_] | None = None  # (N,); rows excluded by corrections are never found

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
        """The rows excluded by corrections, ascending."""
        return np.setdiff1d(np.arange(len(self), dtype=np.int64), self.voters)

    @property
    def _voting_rows(self) -> NDArray[np.float32]:
        """The embeddings of the voters; not a copy if all rows vote."""
        return self.embeddings if self.may_vote is None else self.embeddings[self.voters]

    @cached_property
    def _centre(self) -> NDArray[np.float32]:
        """The mean of the voters, subtracted before the search.

        FAISS expands |a - b|^2, which loses precision if the distances are small compared with |a|,
        as in a narrow cone. Without the shift it would find other rows than subtraction does.
        """
        mean: NDArray[np.float32] = self._voting_rows.mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    @cached_property
    def _index(self) -> faiss.IndexFlatL2:
        """Index over the voters only: position i is row ``voters[i]``."""
        index = faiss.IndexFlatL2(self.embeddings.shape[1])
        index.add(self._voting_rows - self._centre)
        return index

    @cached_property
    def _halves(self) -> "_HalfRows":
        return _HalfRows(self._voting_rows, self._centre)

    def _find_candidates(
        self, queries: NDArray[np.float32], n_wanted: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Distances and rows (Q, at least n_wanted) that include each query's nearest."""
        if len(queries) < _MATRIX_QUERIES and len(self.voters) >= _MANY_ROWS:
            places, reach = self._halves.search(queries, n_wanted)
            distances, rows = self._measure(queries, places)
            if (np.sort(distances, axis=1)[:, n_wanted - 1] < reach).all():
                return distances, rows
        # FAISS compares n_queries * width with this; its default of 128000 is far too high.
        faiss.cvar.distance_compute_blas_threshold = _MATRIX_QUERIES * queries.shape[1]
        return self._measure(queries, self._index.search(queries - self._centre, n_wanted)[1])

    def _measure(
        self, queries: NDArray[np.float32], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compute distances (Q, C) by subtraction, and rows, from positions among the voters.

        FAISS's expanded form is not exactly zero for equal vectors.
        """
        rows = self.voters[places]
        distances: NDArray[np.float32] = np.linalg.norm(
            self.embeddings[rows] - queries[:, None, :], axis=2
        )
        return distances, rows

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        excluded: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest rows of each query, independently of other queries.

        Args:
            queries: (Q, D) float32.
            k: neighbours wanted; fewer are returned if the gallery has fewer left.
            excluded: for each query, the rows that must not be found.

        Returns:
            distances (Q, K) float32, ascending, and rows (Q, K) int64. Equal distances are in row
            order (if more than eight tie for the last place, any of them may be returned). A query
            with fewer rows left than another ends with distance inf and row -1.

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
        distances, found = self._find_candidates(queries, n_wanted)
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
        """Return the rows to exclude for an image: "duplicate" or "group" (also its copies').

        Args:
            sha256: of the image's file; empty if unknown.
            group: its patient; empty if unknown.
            copies: rows known to show the same picture, whatever their files.
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
    """A half-precision copy of the rows: half the memory traffic, with a known error bound.

    It only supplies candidates; the caller checks whether the nearest rows are among them.
    """

    def __init__(self, rows: NDArray[np.float32], centre: NDArray[np.float32]) -> None:
        width = rows.shape[1]
        largest = max(
            np.abs(rows.max(axis=0) - centre).max(), np.abs(rows.min(axis=0) - centre).max()
        )
        # A power of two scales without rounding and uses the full range of half precision.
        self._scale = np.float32(2.0 ** -np.ceil(np.log2(max(float(largest), 1e-30))))
        self._centre = centre
        self._index = faiss.IndexScalarQuantizer(
            width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2
        )
        self._moved = 0.0  # largest rounding error of a row, as a distance
        for start in range(0, len(rows), _BLOCK):
            block = (rows[start : start + _BLOCK] - centre) * self._scale
            self._index.add(block)
            error = self._index.reconstruct_n(start, len(block)) - block
            self._moved = max(self._moved, float(np.linalg.norm(error, axis=1).max()))

    def search(
        self, queries: NDArray[np.float32], n_wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Candidates (Q, C), and the distance (Q,) within which they are complete."""
        n_found = min(_N_TIMES * n_wanted, self._index.ntotal)
        squares, places = self._index.search((queries - self._centre) * self._scale, n_found)
        if n_found == self._index.ntotal:
            return places, np.full(len(queries), np.inf)
        farthest = np.sqrt(squares[:, -1].astype(np.float64))
        return places, (farthest * (1.0 - _ROUNDING) - self._moved) / float(self._scale)


def _index_rows(names: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each name; empty names are ignored."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name:
            rows.setdefault(name, []).append(row)
    return rows


def split_parts(embeddings: NDArray[np.float32], n_parts: int) -> list[NDArray[np.float32]]:
    """Cut (N, P * D) rows into P arrays (N, D) of unit rows."""
    blocks = np.split(embeddings, n_parts, axis=1)
    return [np.ascontiguousarray(block) * np.float32(np.sqrt(n_parts)) for block in blocks]


def measure_mean_distance(
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    n: int,
    *,
    n_skipped: int = 0,
    barred: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Compute the mean distance of each query to its n nearest rows.

    Args:
        rows: (N, D).
        queries: (Q, D).
        n: number of nearest rows; fewer if there are not as many.
        n_skipped: how many of the nearest to leave out; 1 if the queries are the rows themselves.
        barred: (Q,) one row per query that is left out, near or not; then n_skipped must be 0.

    Returns:
        (Q,) Euclidean distances.
    """
    n_found = min(n + (n_skipped if barred is None else 1), len(rows))
    squared, found = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(rows), n_found)
    if barred is not None:
        own = np.argmax(found == barred[:, None], axis=1)
        own[~(found == barred[:, None]).any(axis=1)] = n_found - 1  # not among them: the farthest
        keep = np.arange(n_found)[None] != own[:, None]
        squared = squared[keep].reshape(len(queries), n_found - 1)
    distances = np.sqrt(np.maximum(squared[:, n_skipped:], 0.0))
    mean: NDArray[np.float32] = distances.mean(axis=1)
    return mean
