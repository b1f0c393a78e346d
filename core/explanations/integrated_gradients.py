"""Integrated gradients of the neighbour vote, on the activations where trunk and tail meet.

Grad-CAM weights the last layer, whose cells each see most of the image and may point beside a
lesion (measured by benchmarks/bench_explanations.py). Here the vote's log-odds are integrated along
the path from a baseline without spatial structure (every activation at its mean over the image) to
the image itself. What each position contributes along the path is its attribution; the attributions
over all backbones sum to the change in log-odds. Captum's implementation is not used because it
repeats a batch along the steps, whereas the views of one image vote together.

Reference: Sundararajan et al. 2017, arXiv:1703.01365.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.explanations.grad_cam import compute_feature_log_odds, keep_positive
from core.network.backbone import Tail
from core.network.embedder import Embedder
from core.network.net import EmbeddingNet
from core.network.transforms import undo_views

_N_STEPS = 6


@dataclass(frozen=True)
class Recipe:
    """How attributions are converted into one heatmap."""

    sigma: float = 0.0  # of a Gaussian that smooths the attributions, as a fraction of the side
    rectifies_views: bool = False  # negative attributions are dropped in each view


# Of 12 recipes, the one with most hits on 80 busi lesions, none of them test images (benchmarks/
# results/heatmap_variants.json): 0.70 against 0.66 without smoothing, well within chance.
SHOWN = Recipe(sigma=0.08)


def integrate_views(
    embedder: Embedder,
    activations: Sequence[Tensor],
    *,
    class_index: int,
    neighbours: Sequence[Sequence[NDArray[np.float32]]],
) -> dict[str, NDArray[np.float32]]:
    """Compute a (V, h, w) signed map of every view; see ``core.explanations.methods.ViewMaps``."""
    shares = integrate_vote(embedder, activations, class_index=class_index, neighbours=neighbours)
    return {name: prepare_views(maps) for name, maps in shares.items()}


def draw_shares(shares: NDArray[np.float32], recipe: Recipe = SHOWN) -> NDArray[np.float32]:
    """Draw one (h, w) heatmap in [0, 1] from the views' signed (V, h, w) attributions."""
    return keep_positive(prepare_views(shares, recipe).mean(axis=0))


def prepare_views(shares: NDArray[np.float32], recipe: Recipe = SHOWN) -> NDArray[np.float32]:
    """Apply the recipe to the views' (V, h, w) attributions, before taking their mean."""
    if recipe.rectifies_views:
        shares = np.maximum(shares, 0.0)
    if recipe.sigma <= 0:
        return shares
    cells = recipe.sigma * max(shares.shape[1:])
    views = [cv2.GaussianBlur(v, (0, 0), cells, borderType=cv2.BORDER_REFLECT) for v in shares]
    return np.stack(views).astype(np.float32)


def integrate_vote(
    embedder: Embedder,
    activations: Sequence[Tensor],
    *,
    class_index: int,
    neighbours: Sequence[Sequence[NDArray[np.float32]]],
    n_steps: int = _N_STEPS,
) -> dict[str, NDArray[np.float32]]:
    """Compute every position's attribution to a class's log-odds; arguments as above.

    Args:
        n_steps: points along the path (midpoint rule).

    Returns:
        backbone name -> (V, h, w) float32, signed, each view mapped back to upright. If there are
        no exposure views, which get no map, the sum over all of them is the log-odds of the image
        minus those of the baseline, up to the error of the sum over ``n_steps``.
    """
    wholes = [a.to(embedder.device).float().clone() for a in activations]
    rows = [[torch.from_numpy(n).to(embedder.device) for n in part] for part in neighbours]
    tails = [backbone.tail for backbone in embedder.backbones]
    starts = [_flatten_places(tail, a) for tail, a in zip(tails, wholes, strict=True)]
    sums = [torch.zeros_like(a) for a in wholes]
    embedder.net.eval()
    for step in range(n_steps):
        share = (step + 0.5) / n_steps
        points = [
            (start + share * (whole - start)).requires_grad_(True)
            for start, whole in zip(starts, wholes, strict=True)
        ]
        log_odds = compute_log_odds(embedder.net, points, rows)[0, class_index]
        for total, gradient in zip(sums, torch.autograd.grad(log_odds, points), strict=True):
            total += gradient / n_steps
    return {
        backbone.name: _to_maps(backbone.tail, (whole - start) * total)
        for backbone, whole, start, total in zip(
            embedder.backbones, wholes, starts, sums, strict=True
        )
    }


def compute_log_odds(
    net: EmbeddingNet, activations: Sequence[Tensor], neighbours: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Compute the vote's (1, C) log-odds from (V, ...) activations; differentiable."""
    return compute_feature_log_odds(net, net.pool(activations), neighbours)


def _flatten_places(tail: Tail, activation: Tensor) -> Tensor:
    """Set every channel to its mean over the image; keep class tokens."""
    if tail.is_tokens:
        flat = activation.clone()
        patches = activation[:, tail.n_prefix :]
        flat[:, tail.n_prefix :] = patches.mean(dim=1, keepdim=True)
        return flat
    places = (1, 2) if tail.family == "SwinTransformer" else (2, 3)
    return activation.mean(dim=places, keepdim=True).expand_as(activation).clone()


def _to_maps(tail: Tail, shares: Tensor) -> NDArray[np.float32]:
    maps: NDArray[np.float32] = undo_views(tail.to_map(shares).sum(dim=1)).cpu().numpy()
    return maps.astype(np.float32)
