"""Lists of gallery images to review: outvoted, suspect labels, duplicates, outliers, mixed.

Owns the lists behind the Explore page, each as rows in review order. An entry is a suspicion to
review, never a verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data.audit import find_repeats
from core.exploring.gallery_table import Exploration
from core.gallery.label_errors import judge_held_out, score_labels
from core.gallery.leave_one_out import NeighbourTable, find_mixed_regions, rank_rows
from core.gallery.search import Gallery, measure_mean_distance
from core.images.decode import Image
from core.models.ensemble import Model
from core.network.embedder import embed_together

N_OUTLIERS = 100  # there is no clear cut-off for outliers, so this many are listed
_N_NEAREST = 5
_MAX_WIDE = 20_000  # images; above this, the low-dimensional embedding replaces the descriptors
_SUSPECT = 0.5


@dataclass(frozen=True, eq=False)
class Finding:
    """Rows in review order."""

    rows: NDArray[np.int64]  # (R,)
    scores: NDArray[np.float64]  # (R,) the scores that determine the order
    groups: NDArray[np.int64]  # (R,) number of the group or region, from 1; 0 if none

    def __len__(self) -> int:
        return len(self.rows)


def find_wrong(seen: Exploration) -> Finding:
    """Find images whose leave-one-out answer differs from their label, most confident first."""
    confidence = np.where(seen.is_wrong, seen.columns["confidence"], np.nan)
    return _rank(confidence, largest_first=True)


def find_suspects(model: Model, seen: Exploration) -> Finding:
    """Find images whose label two independent opinions doubt, most suspect first."""
    bundle = model.lead
    opinion = np.full((len(seen), len(seen.class_names)), np.nan)
    opinion[:, seen.disease_index] = seen.p_disease
    opinion[:, 1 - seen.disease_index] = 1.0 - seen.p_disease
    descriptors = bundle.contents.novelty.descriptors
    n = len(descriptors)  # guests from other splits have none, so only the vote is used
    held_out = np.full(opinion.shape, np.nan, dtype=np.float32)
    held_out[:n] = judge_held_out(
        descriptors, seen.labels[:n], bundle.gallery.groups[:n], n_classes=len(seen.class_names)
    )
    scores = score_labels(opinion, held_out, seen.labels).astype(np.float64)
    return _rank(np.where(scores > _SUSPECT, scores, np.nan), largest_first=True)


def find_duplicates(model: Model) -> Finding:
    """Find groups of duplicates, by file content or by appearance; the score is the group's size.

    Groups with conflicting labels come first, then those across splits, then the larger ones.
    """
    bundle = model.lead
    gallery = bundle.gallery
    pictures = [bundle.thumbnail(row) for row in range(len(gallery))]
    _, same_file = np.unique(np.array(gallery.sha256), return_inverse=True)
    near = np.arange(len(gallery))
    for rows in find_repeats(pictures):
        near[rows] = rows[0]
    groups = [np.flatnonzero(near == first) for first in np.unique(near)]
    for number in np.flatnonzero(np.bincount(same_file) > 1):  # tiny images may be missed above
        rows = np.flatnonzero(same_file == number)
        if len(np.unique(near[rows])) > 1:
            groups.append(rows)
    return _join_groups([rows for rows in groups if len(rows) > 1], gallery)


def _join_groups(groups: Sequence[NDArray[np.int64]], gallery: Gallery) -> Finding:
    splits = np.array(gallery.splits)

    def rank(rows: NDArray[np.int64]) -> tuple[bool, bool, int, int]:
        one_label = len(np.unique(gallery.labels[rows])) < 2
        return one_label, len(np.unique(splits[rows])) < 2, -len(rows), int(rows[0])

    ordered = sorted(groups, key=rank)
    empty = np.empty(0, dtype=np.int64)
    return Finding(
        np.concatenate([empty, *ordered]),
        np.concatenate([empty, *(np.full(len(rows), len(rows)) for rows in ordered)]).astype(float),
        np.concatenate([empty, *(np.full(len(r), i) for i, r in enumerate(ordered, start=1))]),
    )


def find_outliers(model: Model, *, n: int = N_OUTLIERS) -> Finding:
    """Find the images farthest from their 5 nearest in trunk features, farthest first."""
    bundle = model.lead
    points = bundle.contents.novelty.descriptors
    if len(points) > _MAX_WIDE:
        points = bundle.gallery.embeddings[: len(points)]
    distances = measure_mean_distance(points, points, _N_NEAREST, n_skipped=1)
    found = _rank(distances.astype(np.float64), largest_first=True)
    return Finding(found.rows[:n], found.scores[:n], found.groups[:n])


def find_mixed(seen: Exploration, tables: Sequence[NeighbourTable], model: Model) -> Finding:
    """Find images in mixed-class regions; largest region first, most mixed image first."""
    lead = next(i for i, member in enumerate(model.members) if member.bundle is model.lead)
    regions = find_mixed_regions(
        tables[lead], seen.labels, seen.lead.purity, n_classes=len(seen.class_names)
    )
    empty = np.empty(0, dtype=np.int64)
    rows = np.concatenate([empty, *(region.rows for region in regions)])
    numbers = [np.full(len(region.rows), i) for i, region in enumerate(regions, start=1)]
    purity = seen.lead.purity[rows].astype(np.float64)
    return Finding(rows, np.maximum(purity, 1.0 - purity), np.concatenate([empty, *numbers]))


def find_similar(
    model: Model, embedding: NDArray[np.float32], *, n: int = 48, without: int | None = None
) -> Finding:
    """Find the images nearest to a point in the lead's embedding space, scored by distance.

    Args:
        model: its lead's embedding space is used.
        embedding: (D,).
        n: number of images wanted.
        without: a row to leave out: the image itself.
    """
    gallery = model.gallery
    distances = np.linalg.norm(gallery.embeddings - embedding, axis=1).astype(np.float64)
    if without is not None:
        distances[without] = np.nan
    found = _rank(distances, largest_first=False)
    return Finding(found.rows[:n], found.scores[:n], found.groups[:n])


@dataclass(frozen=True, eq=False)
class Query:
    """An uploaded image's position in the lead's embedding space."""

    embedding: NDArray[np.float32]  # (D,)
    is_novel: bool  # whether it is out of distribution


def embed_query(model: Model, image: Image) -> Query:
    """Embed an image to search with; holds the model's lock meanwhile."""
    bundle = model.lead
    with model.lock:
        embedded = embed_together([bundle.embedder], [image.pixels])[0]
    score = bundle.contents.novelty.score(embedded.descriptors)[0]
    return Query(embedded.embeddings[0], bool(score > bundle.novelty_limit))


def _rank(scores: NDArray[np.float64], *, largest_first: bool) -> Finding:
    rows = rank_rows(scores, largest_first=largest_first)
    return Finding(rows, scores[rows], np.zeros(len(rows), dtype=np.int64))
