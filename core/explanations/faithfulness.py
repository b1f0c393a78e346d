"""Heatmap faithfulness: deletion and insertion, lesion masks, agreement of two maps.

Owns deletion and insertion against a random order, the pointing game, the energy inside a mask and
the agreement of two maps. The score is the soft vote that Grad-CAM explains
(core.explanations.grad_cam): the share of 1/distance over the k nearest gallery images of every
class. Models run on one view per masked image, which is enough to judge the order of the cells.

Reference: Petsiuk et al. 2018, arXiv:1806.07421 (deletion, insertion); Zhang et al. 2018,
arXiv:1608.00507 (pointing game); Wang et al. 2020, arXiv:1910.01279 (energy).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from core.errors import ShapeError, check_shape
from core.explanations.grad_cam import resize_heatmap
from core.gallery.search import split_parts
from core.models.bundle import Member, ModelBundle
from core.network.embedder import Embedded, Embedder, embed_together

_GRID = 12  # cells per side: roughly the resolution of the heatmaps
_N_STEPS = 8
_N_RANDOM = 3
_BATCH_SIZE = 8
_BLUR_SHARE = 1 / 8  # sigma / side of the blur in a masked cell: removes lesions, keeps the tone
_MIN_DISTANCE = 1e-6
_MIN_MARGIN = 0.02  # minimum gain in area over chance; smaller ones vanish at two decimals


@dataclass(frozen=True)
class Faithfulness:
    """Deletion and insertion scores of a heatmap, with those of random orders.

    A faithful map has a low ``deletion`` and a high ``insertion``. For a random order both areas
    have the same expectation, because its reverse inserts last what it deletes first.
    """

    deletion: float  # area under the score when the brightest cells are removed first, 0..1
    insertion: float  # area under the score when the brightest cells are added first, 0..1
    deletion_random: float  # the same for random orders, mean over the orders
    insertion_random: float
    shares: tuple[float, ...]  # fraction of cells deleted or inserted, 0..1: x axis of the curves
    deletion_curve: tuple[float, ...]
    insertion_curve: tuple[float, ...]
    random_curve: tuple[float, ...]  # score with that fraction of the cells kept, at random
    random_spread: float = 0.0  # range of the areas of the random orders

    @property
    def is_better_than_random(self) -> bool:
        """Whether both scores beat random orders by more than 0.02 and more than their spread."""
        margin = max(_MIN_MARGIN, self.random_spread)
        return (
            self.deletion_random - self.deletion > margin
            and self.insertion - self.insertion_random > margin
        )


def measure(
    members: Sequence[Member],
    pixels: NDArray[np.uint8],
    heatmaps: Mapping[str, NDArray[np.float32]],
    *,
    class_name: str,
    excluded: Sequence[Sequence[int]] = (),
    n_steps: int = _N_STEPS,
    n_random: int = _N_RANDOM,
    seed: int = 0,
) -> dict[str, Faithfulness]:
    """Measure heatmaps of one image; the random orders are shared by all of them.

    Cells of a 12 x 12 grid are replaced by a strongly blurred image. The models run
    2 + (n_steps - 1) * (2 * maps + n_random) times on one view each.

    Args:
        members: of the model (``model.members``); the caller holds its lock.
        pixels: (H, W, 3) uint8 RGB.
        heatmaps: name -> (h, w) in [0, 1], any resolution, of the same image.
        class_name: the class that the heatmaps explain.
        excluded: for each member, the gallery rows excluded from the vote; may be empty.
        n_steps: points of a curve after the first.
        n_random: random orders.
        seed: for the random orders and for breaking ties between cells.

    Returns:
        name -> the scores.

    Raises:
        ShapeError: there is no map, a shape is wrong, or there are too few steps or orders.
    """
    check_shape("pixels", pixels, (None, None, 3))
    if not heatmaps or n_steps < 2 or n_random < 1:
        raise ShapeError(
            "expected at least one heatmap, two steps and one random order, got "
            f"{len(heatmaps)}, {n_steps} and {n_random}."
        )
    rng = np.random.default_rng(seed)
    orders = {name: rank_cells(heatmap, rng=rng) for name, heatmap in heatmaps.items()}
    chance = [rng.permutation(_GRID * _GRID) for _ in range(n_random)]
    kept = []  # inner points of every curve: boolean masks of the cells kept
    for order in orders.values():
        kept += [~mask for mask in _mark_first(order, n_steps)] + _mark_first(order, n_steps)
    for order in chance:
        kept += _mark_first(order, n_steps)
    ends = [np.zeros(_GRID * _GRID, dtype=bool), np.ones(_GRID * _GRID, dtype=bool)]
    scores = _score_masked(
        members, pixels, [*ends, *kept], class_name=class_name, excluded=excluded
    )
    blurred, whole = scores[:2]
    inner = scores[2:].reshape(-1, n_steps - 1)
    random_curves = np.array([[blurred, *points, whole] for points in inner[2 * len(orders) :]])
    return {
        name: _describe(
            np.array([whole, *inner[2 * index], blurred]),
            np.array([blurred, *inner[2 * index + 1], whole]),
            random_curves,
        )
        for index, name in enumerate(orders)
    }


def _describe(
    deletion: NDArray[np.float64], insertion: NDArray[np.float64], chance: NDArray[np.float64]
) -> Faithfulness:
    shares = np.linspace(0.0, 1.0, len(deletion))
    areas = np.trapezoid(chance, shares, axis=1)  # one per random order
    area = float(areas.mean())
    return Faithfulness(
        deletion=float(np.trapezoid(deletion, shares)),
        insertion=float(np.trapezoid(insertion, shares)),
        deletion_random=area,
        insertion_random=area,
        shares=tuple(shares.tolist()),
        deletion_curve=tuple(deletion.tolist()),
        insertion_curve=tuple(insertion.tolist()),
        random_curve=tuple(chance.mean(axis=0).tolist()),
        random_spread=float(np.ptp(areas)),
    )


def rank_cells(heatmap: NDArray[np.float32], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sort the grid's cells, brightest first: (144,) row-major; ties in random order."""
    check_shape("heatmap", heatmap, (None, None))
    fine = resize_heatmap(heatmap, height=_GRID * 8, width=_GRID * 8)
    cells = fine.reshape(_GRID, 8, _GRID, 8).mean(axis=(1, 3)).ravel()
    order: NDArray[np.int64] = np.lexsort((rng.random(len(cells)), -cells)).astype(np.int64)
    return order


def _mark_first(order: NDArray[np.int64], n_steps: int) -> list[NDArray[np.bool_]]:
    """Masks of the first 1/n, 2/n ... (n-1)/n of the cells in an order."""
    masks = []
    for step in range(1, n_steps):
        mask = np.zeros(len(order), dtype=bool)
        mask[order[: round(len(order) * step / n_steps)]] = True
        masks.append(mask)
    return masks


def _score_masked(
    members: Sequence[Member],
    pixels: NDArray[np.uint8],
    kept: Sequence[NDArray[np.bool_]],
    *,
    class_name: str,
    excluded: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    side = max(m.bundle.config.run.preprocess.input_size for m in members)
    image = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(image, (0, 0), side * _BLUR_SHARE)
    scores: list[NDArray[np.float64]] = []
    for start in range(0, len(kept), _BATCH_SIZE):
        batch = []
        for mask in kept[start : start + _BATCH_SIZE]:
            cells = mask.reshape(_GRID, _GRID).astype(np.uint8)
            stays = cv2.resize(cells, (side, side), interpolation=cv2.INTER_NEAREST)
            batch.append(np.where(stays[:, :, None] > 0, image, blurred).astype(np.uint8))
        scores.append(compute_soft_votes(members, batch, class_name=class_name, excluded=excluded))
    return np.concatenate(scores)


def compute_soft_votes(
    members: Sequence[Member],
    images: Sequence[NDArray[np.uint8]],
    *,
    class_name: str,
    excluded: Sequence[Sequence[int]] = (),
) -> NDArray[np.float64]:
    """Compute the members' weighted soft vote for a class, one view per image.

    Args:
        members: of the model.
        images: each (H, W, 3) uint8 RGB.
        class_name: the class.
        excluded: for each member, the gallery rows excluded from the vote; may be empty.

    Returns:
        (B,) in 0..1. For a classifier, its probability is used instead.
    """
    embedded = embed_together([_use_one_view(m.bundle.embedder) for m in members], images)
    barred = list(excluded) or [()] * len(members)
    scores = [
        _compute_share(
            m.bundle, outcome, label=m.bundle.class_names.index(class_name), excluded=rows
        )
        for m, outcome, rows in zip(members, embedded, barred, strict=True)
    ]
    mixed: NDArray[np.float64] = np.average(scores, axis=0, weights=[m.weight for m in members])
    return mixed


def _use_one_view(embedder: Embedder) -> Embedder:
    run = embedder.config
    run = dataclasses.replace(run, embedder=dataclasses.replace(run.embedder, tta=False))
    return dataclasses.replace(embedder, config=run)


def _compute_share(
    bundle: ModelBundle, embedded: Embedded, *, label: int, excluded: Sequence[int]
) -> NDArray[np.float64]:
    if embedded.class_probs is not None:
        return embedded.class_probs[:, label].astype(np.float64)
    gallery = bundle.gallery
    points = split_parts(embedded.embeddings, gallery.n_parts)
    shares = []
    for part, queries in zip(gallery.parts, points, strict=True):
        distances = np.linalg.norm(part.embeddings[None] - queries[:, None], axis=2)
        distances[:, [*excluded, *gallery.silent.tolist()]] = np.inf
        votes = []
        for index in range(len(bundle.class_names)):
            mine = np.sort(distances[:, part.labels == index], axis=1)[:, : bundle.n_shown]
            votes.append((1.0 / np.maximum(mine, _MIN_DISTANCE)).sum(axis=1))
        shares.append(votes[label] / np.sum(votes, axis=0))
    mean: NDArray[np.float64] = np.mean(shares, axis=0).astype(np.float64)
    return mean


def has_hit(
    heatmap: NDArray[np.float32], mask: NDArray[np.bool_], *, tolerance_px: int = 0
) -> bool:
    """Pointing game: whether the brightest point lies on the mask; a flat map has no such point.

    Args:
        heatmap: (h, w) in [0, 1]; resized to the mask's size.
        mask: (H, W), true on the lesion.
        tolerance_px: a point within this distance of the mask also counts; the paper allows 15
            pixels on images of about 500.

    Raises:
        ShapeError: the mask is not two-dimensional or contains no lesion.
    """
    fine = _fit_to_mask(heatmap, mask)
    if fine.max() <= fine.min():
        return False
    place = np.unravel_index(int(fine.argmax()), fine.shape)
    distances = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return bool(distances[place] <= tolerance_px)


def compute_energy(heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Fraction of a heatmap's sum that lies on the mask, 0..1; arguments as for ``has_hit``."""
    fine = _fit_to_mask(heatmap, mask)
    total = float(fine.sum())
    return float(fine[mask].sum()) / total if total > 0 else 0.0


def _fit_to_mask(heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    check_shape("mask", mask, (None, None))
    if not mask.any():
        raise ShapeError("mask: expected at least one pixel of lesion, got none.")
    return resize_heatmap(heatmap, height=mask.shape[0], width=mask.shape[1])


def compute_agreement(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two heatmaps, -1..1; 0 if either is flat.

    Args:
        first: (h, w); ``second`` is resized to match.
    """
    check_shape("first", first, (None, None))
    other = resize_heatmap(second, height=first.shape[0], width=first.shape[1])
    if np.ptp(first) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(first.ravel(), other.ravel()).statistic)
