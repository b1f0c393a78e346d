"""Neighbours of every gallery image: leave-one-out votes, purity, mixed regions.

Owns the analysis of a gallery's own rows. The neighbour table does not depend on labels, so a
relabelled gallery can be voted on again without a new search. As in the vote on an upload, an
image's copies and its patient's other images are never among its neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from core.errors import check_shape
from core.gallery.search import Gallery, split_parts
from core.gallery.voting import vote

Progress = Callable[[float, str], None]
_BLOCK = 2000  # rows per search, for progress reports and bounded memory
_MIN_REGION = 4  # images; smaller groups are ignored
_SAME = 1e-3  # maximum distance between two embeddings of one picture; others lie farther ...
_SAME_SHARE = 0.01  # ... except in a narrow cone: at most this share of the median distance
_LINKS = 5  # nearest neighbours that link the images of a region


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """The nearest other rows of every row, per part of the gallery; -1 and inf if missing."""

    rows: NDArray[np.int64]  # (P, N, M) ascending by distance
    distances: NDArray[np.float32]  # (P, N, M)

    def __len__(self) -> int:
        return len(self.rows[0])


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The leave-one-out vote on each row."""

    probs: NDArray[np.float32]  # (N, C) shares of the vote; nan if no image was left to vote
    purity: NDArray[np.float32]  # (N,) share of the k nearest with the row's own label
    distances: NDArray[np.float32]  # (N,) mean distance to the k nearest


def find_neighbours(
    gallery: Gallery, n_neighbours: int, *, progress: Progress | None = None
) -> NeighbourTable:
    """Find the nearest other rows of every row.

    Args:
        gallery: searched as a whole, including excluded images.
        n_neighbours: M; choose more than K, so that rows can be excluded later.
        progress: called with the fraction done.

    Returns:
        Per part (P, N, M); padded if a row has fewer than M neighbours.
    """
    barred = [
        np.array(sorted({row, *gallery.find_related(sha256=sha, group=group)}), dtype=np.int64)
        for row, (sha, group) in enumerate(zip(gallery.sha256, gallery.groups, strict=True))
    ]
    m = max(1, min(n_neighbours, len(gallery) - 1))
    return _search(gallery, gallery.embeddings, m, barred=barred, progress=progress)


def find_neighbours_of(
    gallery: Gallery, embeddings: NDArray[np.float32], n_neighbours: int, *, groups: Sequence[str]
) -> NeighbourTable:
    """Find the nearest gallery rows of images that are not in the gallery.

    Args:
        gallery: searched as a whole, including excluded images.
        embeddings: (Q, D) of these images.
        n_neighbours: M.
        groups: (Q,) patient of each, empty if unknown.

    Returns:
        Per part (P, Q, M). Copies of an image (closer than 0.001 and 1 % of the median distance),
        other images of those copies' patients, and images of its own patient are left out.
    """
    barred = []
    for embedding, group in zip(embeddings, groups, strict=True):
        apart = np.linalg.norm(gallery.embeddings - embedding, axis=1)
        copies = np.flatnonzero(apart < min(_SAME, _SAME_SHARE * float(np.median(apart))))
        related = gallery.find_related(sha256="", group=group, copies=copies.tolist())
        barred.append(np.array(sorted(related), dtype=np.int64))
    return _search(gallery, embeddings, n_neighbours, barred=barred)


def _search(
    gallery: Gallery,
    queries: NDArray[np.float32],
    m: int,
    *,
    barred: Sequence[NDArray[np.int64]],
    progress: Progress | None = None,
) -> NeighbourTable:
    gallery = replace(gallery, may_vote=None)
    n = len(queries)
    query_parts = split_parts(queries, gallery.n_parts)
    rows = np.full((gallery.n_parts, n, m), -1, dtype=np.int64)
    distances = np.full((gallery.n_parts, n, m), np.inf, dtype=np.float32)
    n_barred = np.array([len(b) for b in barred], dtype=np.int64)
    # One patient with very many images must not widen the search for all the others.
    order = np.argsort(n_barred, kind="stable")
    blocks = [order[start : start + _BLOCK] for start in range(0, n, _BLOCK)]
    for number, block in enumerate(blocks):
        block = block[n_barred[block] < len(gallery)]
        for p, part in enumerate(gallery.parts):
            if not len(block):
                continue
            found = part.search(query_parts[p][block], m, excluded=[barred[i] for i in block])
            width = found[0].shape[1]
            distances[p, block, :width], rows[p, block, :width] = found
        if progress:
            progress((number + 1) / len(blocks), f"{min(n, (number + 1) * _BLOCK)} of {n} images")
    return NeighbourTable(rows, distances)


def compute_leave_one_out(
    table: NeighbourTable,
    labels: NDArray[np.int64],
    *,
    k: int,
    n_classes: int,
    may_vote: NDArray[np.bool_] | None = None,
) -> LeaveOneOut:
    """Compute the leave-one-out vote on every row.

    Args:
        table: of the gallery.
        labels: (N,) current labels.
        k: voters per part.
        n_classes: C.
        may_vote: (N,) False for excluded rows, which are still voted on. If more of a row's
            neighbours are excluded than the table has to spare, fewer than k vote.

    Raises:
        ShapeError: lengths differ.
    """
    n = len(table)
    check_shape("labels", labels, (n,))
    allowed = np.ones(n, dtype=bool) if may_vote is None else may_vote
    check_shape("may_vote", allowed, (n,))
    parts = [
        _vote_part(rows, distances, labels, k=k, n_classes=n_classes, allowed=allowed)
        for rows, distances in zip(table.rows, table.distances, strict=True)
    ]
    probs, purity, mean = (np.mean(values, axis=0) for values in zip(*parts, strict=True))
    return LeaveOneOut(probs.astype(np.float32), purity.astype(np.float32), mean.astype(np.float32))


def _vote_part(
    rows: NDArray[np.int64],
    distances: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    k: int,
    n_classes: int,
    allowed: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    takes_part = (rows >= 0) & allowed[rows]
    if not takes_part.all():  # move the voters to the front, keeping their order
        order = np.argsort(~takes_part, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, 1)
        distances = np.take_along_axis(distances, order, 1)
        takes_part = np.take_along_axis(takes_part, order, 1)
    rows, takes_part = rows[:, :k], takes_part[:, :k]
    distances = np.where(takes_part, distances[:, :k], np.inf)
    probs = np.full((len(rows), n_classes), np.nan, dtype=np.float32)
    purity = np.full(len(rows), np.nan, dtype=np.float32)
    mean = np.full(len(rows), np.nan, dtype=np.float32)
    n_voters = takes_part.sum(axis=1)
    for size in np.unique(n_voters[n_voters > 0]):
        mine = np.flatnonzero(n_voters == size)
        found, near = rows[mine, :size], distances[mine, :size]
        probs[mine] = vote(near, labels[found], n_classes=n_classes)
        purity[mine] = (labels[found] == labels[mine, None]).mean(axis=1)
        mean[mine] = near.mean(axis=1)
    return probs, purity, mean


@dataclass(frozen=True, eq=False)
class Region:
    """A group of neighbouring images with mixed classes."""

    rows: NDArray[np.int64]  # most mixed first
    counts: tuple[int, ...]  # images per class


def find_mixed_regions(
    table: NeighbourTable,
    labels: NDArray[np.int64],
    purity: NDArray[np.float32],
    *,
    n_classes: int,
    limit: float = 0.75,
) -> list[Region]:
    """Find the regions where the classes mix, largest first.

    Args:
        table: of the gallery; its first part links the images of a region.
        labels: (N,).
        purity: (N,) share of the neighbours with the row's own label.
        n_classes: C.
        limit: an image belongs to a mixed region if the majority class makes up at most this
            fraction of its neighbourhood.
    """
    check_shape("purity", purity, (len(labels),))
    majority = np.maximum(purity, 1.0 - purity)
    mixed = np.flatnonzero(majority <= limit)
    if not len(mixed):
        return []
    position = np.full(len(labels) + 1, -1, dtype=np.int64)  # the last entry stands for row -1
    position[mixed] = np.arange(len(mixed))
    near = position[table.rows[0][mixed, :_LINKS]]
    source = np.repeat(np.arange(len(mixed)), near.shape[1])
    target = near.reshape(-1)
    linked = target >= 0
    links = coo_array(
        (np.ones(linked.sum()), (source[linked], target[linked])), shape=(len(mixed), len(mixed))
    )
    component = connected_components(links, directed=False)[1]
    regions = []
    for number in np.unique(component):
        rows = mixed[component == number]
        if len(rows) >= _MIN_REGION:
            rows = rows[np.lexsort((rows, majority[rows]))]
            counts = np.bincount(labels[rows], minlength=n_classes).tolist()
            if sum(count > 0 for count in counts) > 1:
                regions.append(Region(rows, tuple(counts)))
    return sorted(regions, key=lambda region: (-len(region.rows), int(region.rows.min())))


def rank_rows(
    scores: NDArray[np.floating], *, largest_first: bool = True, only: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Sort rows by score, ties in row order; rows without a score (nan) are left out."""
    values = -scores if largest_first else scores
    rows = np.flatnonzero(~np.isnan(scores))
    if only is not None:
        rows = np.intersect1d(rows, np.asarray(only, dtype=np.int64))
    return rows[np.lexsort((rows, values[rows]))]
