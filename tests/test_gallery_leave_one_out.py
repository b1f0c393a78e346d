"""Leave-one-out votes against the vote itself, purity by hand, mixed regions, excluded rows."""

import dataclasses

import numpy as np
import pytest

from core.errors import ShapeError
from core.gallery.leave_one_out import (
    NeighbourTable,
    compute_leave_one_out,
    find_mixed_regions,
    find_neighbours,
    rank_rows,
)
from core.gallery.search import Gallery
from core.gallery.voting import cast_votes


def make_gallery(points: np.ndarray, labels: list[int], **fields: object) -> Gallery:
    n = len(points)
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    keys = tuple(f"k{i}" for i in range(n))
    plain: dict[str, object] = {"splits": ("train",) * n, "groups": ("",) * n, "sha256": keys}
    return Gallery(
        points.astype(np.float32), np.array(labels, dtype=np.int64), keys, **{**plain, **fields}
    )


def slow_leave_one_out(gallery: Gallery, k: int) -> np.ndarray:
    probs = []
    for row in range(len(gallery)):
        related = gallery.find_related(sha256=gallery.sha256[row], group=gallery.groups[row])
        barred = [np.array(sorted({row, *related}), dtype=np.int64)]
        ballot = cast_votes(gallery, gallery.embeddings[row : row + 1], k, excluded=barred)[0]
        probs.append(ballot.sum_by_class(gallery.labels, n_classes=2))
    return np.array(probs)


@pytest.mark.parametrize("n_parts", [1, 2])
def test_the_left_out_vote_is_the_vote_on_an_upload(rng: np.random.Generator, n_parts: int) -> None:
    n = 60
    gallery = make_gallery(
        rng.normal(size=(n, 8)),
        rng.integers(0, 2, n).tolist(),
        groups=tuple(f"p{i // 3}" if i < 30 else "" for i in range(n)),
        sha256=tuple(f"h{min(i, 55)}" for i in range(n)),
    )
    if n_parts == 2:
        halves = gallery.embeddings.reshape(n, 2, 4)
        halves = halves / np.linalg.norm(halves, axis=2, keepdims=True) / np.sqrt(2)
        gallery = dataclasses.replace(gallery, embeddings=halves.reshape(n, 8), n_parts=2)
    table = find_neighbours(gallery, 20)
    loo = compute_leave_one_out(table, gallery.labels, k=7, n_classes=2)
    np.testing.assert_allclose(loo.probs, slow_leave_one_out(gallery, 7), atol=1e-5)

    aside = np.ones(n, dtype=bool)
    aside[rng.choice(n, 12, replace=False)] = False
    curated = dataclasses.replace(gallery, may_vote=aside)
    loo = compute_leave_one_out(table, gallery.labels, k=5, n_classes=2, may_vote=aside)
    np.testing.assert_allclose(loo.probs, slow_leave_one_out(curated, 5), atol=1e-5)


def test_purity_by_hand_and_relabelling_without_a_search() -> None:
    angles = np.array([0.0, 0.1, 0.2, 0.3, 2.0])
    gallery = make_gallery(np.stack([np.cos(angles), np.sin(angles)], axis=1), [0, 0, 1, 0, 1])
    table = find_neighbours(gallery, 4)
    loo = compute_leave_one_out(table, gallery.labels, k=2, n_classes=2)
    assert loo.purity.tolist() == [0.5, 0.5, 0.0, 0.5, 0.5]
    relabelled = compute_leave_one_out(table, np.array([0, 0, 0, 0, 1]), k=2, n_classes=2)
    assert relabelled.purity.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert relabelled.probs[0].tolist() == [1.0, 0.0]


def test_nobody_left_to_vote_is_nan_and_not_an_answer() -> None:
    gallery = make_gallery(np.eye(3), [0, 1, 0], groups=("p", "p", "p"))
    loo = compute_leave_one_out(find_neighbours(gallery, 2), gallery.labels, k=2, n_classes=2)
    assert np.isnan(loo.probs).all()
    assert np.isnan(loo.purity).all()
    assert rank_rows(loo.purity).tolist() == []


def test_a_mixed_region_is_found_between_two_pure_ones(rng: np.random.Generator) -> None:
    centres = np.repeat(np.eye(3), 20, axis=0)
    gallery = make_gallery(
        centres + rng.normal(scale=0.02, size=(60, 3)), [0] * 20 + [0, 1] * 10 + [1] * 20
    )
    table = find_neighbours(gallery, 10)
    loo = compute_leave_one_out(table, gallery.labels, k=8, n_classes=2)
    regions = find_mixed_regions(table, gallery.labels, loo.purity, n_classes=2)
    assert len(regions) == 1
    assert set(regions[0].rows.tolist()) <= set(range(20, 40))
    assert len(regions[0].rows) >= 12
    assert sum(regions[0].counts) == len(regions[0].rows)
    pure = np.ones(60, dtype=np.float32)
    assert find_mixed_regions(table, gallery.labels, pure, n_classes=2) == []


def test_wrong_lengths_are_refused() -> None:
    table = NeighbourTable(np.zeros((1, 3, 2), np.int64), np.zeros((1, 3, 2), np.float32))
    with pytest.raises(ShapeError, match="labels"):
        compute_leave_one_out(table, np.zeros(2, np.int64), k=1, n_classes=2)


def test_rows_by_score_with_ties_in_order() -> None:
    scores = np.array([1.0, 3.0, np.nan, 3.0])
    assert rank_rows(scores).tolist() == [1, 3, 0]
    assert rank_rows(scores, largest_first=False).tolist() == [0, 1, 3]
    assert rank_rows(scores, only=[0, 2, 3]).tolist() == [3, 0]
