"""Grad-CAM of the neighbour vote itself, from the activations the prediction already computed.

Owns the target (log-odds of the distance-weighted vote, differentiable in the embedding) and the
overlay. The CAM is computed by the grad-cam package from the layer's activation and gradient, so
neither the trunk nor the body of the tail runs again. Hooks are registered on the shared net
meanwhile, so the caller must hold the bundle's lock.

Reference: Selvaraju et al. 2017, arXiv:1610.02391.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor

from core.errors import ConfigError, ShapeError, check_shape
from core.gallery.search import Gallery, split_parts
from core.network.backbone import Tail
from core.network.embedder import Embedder
from core.network.net import EmbeddingNet
from core.network.transforms import merge_views, undo_views

_MIN_DISTANCE = 1e-6
_MIN_PROBABILITY = 1e-7


class _AtLayerSize(BaseCAM):  # type: ignore[misc]
    """Keeps maps at the layer's resolution; the input may be (V, N, C) tokens."""

    def get_target_width_height(self, input_tensor: Tensor) -> None:  # noqa: ARG002
        return None


class _GradCam(_AtLayerSize, GradCAM):  # type: ignore[misc]
    pass


class _GradCamPlusPlus(_AtLayerSize, GradCAMPlusPlus):  # type: ignore[misc]
    pass


class _HiResCam(_AtLayerSize, HiResCAM):  # type: ignore[misc]
    pass


class _LayerCam(_AtLayerSize, LayerCAM):  # type: ignore[misc]
    pass


class _XGradCam(_AtLayerSize, XGradCAM):  # type: ignore[misc]
    pass


# From the grad-cam package.
CAMS: Mapping[str, type[BaseCAM]] = {
    "grad-cam": _GradCam,
    "grad-cam++": _GradCamPlusPlus,
    "hirescam": _HiResCam,
    "layercam": _LayerCam,
    "xgrad-cam": _XGradCam,
}


def compute_vote_log_odds(
    parts: Sequence[Tensor], neighbours: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Compute the log-odds of each class's 1/distance vote, over its own k nearest gallery images.

    Using the k nearest of each class keeps a gradient even if the k nearest overall agree, when the
    vote itself is flat at 0 or 1.

    Args:
        parts: (1, D) embedding per adapter, with gradient.
        neighbours: per adapter and class, the (K, D) embeddings of the nearest gallery images.

    Returns:
        (1, C): log of the class's share of the vote, mean over the adapters, minus log of the rest.
    """
    shares = []
    for part, by_class in zip(parts, neighbours, strict=True):
        distances = [(part - rows).norm(dim=1).clamp_min(_MIN_DISTANCE) for rows in by_class]
        votes = torch.stack([(1.0 / distance).sum() for distance in distances])
        shares.append(votes / votes.sum())
    return _compute_log_odds(torch.stack(shares).mean(dim=0))


def compute_feature_log_odds(
    net: EmbeddingNet, features: Tensor, neighbours: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Compute the (1, C) log-odds for one image from the (V, F) features of its views.

    Args:
        net: the model's; if it has a classifier, its probabilities are used.
        features: with gradient if needed.
        neighbours: as for ``compute_vote_log_odds``; empty for a classifier.
    """
    if net.classifier is not None:
        return _compute_log_odds(net.classifier(features).softmax(dim=1).mean(dim=0))
    parts = [merge_views(part[:, None]) for part in net.embed_parts(features)]
    return compute_vote_log_odds(parts, neighbours)


def _compute_log_odds(probs: Tensor) -> Tensor:
    """(C,) probabilities -> (1, C) log-odds, finite even at 0 or 1."""
    inner = probs.clamp(_MIN_PROBABILITY, 1.0 - _MIN_PROBABILITY)
    return (inner.log() - (1.0 - inner).log())[None]


def find_voters(
    gallery: Gallery, embedding: NDArray[np.float32], *, k: int, excluded: Sequence[int] = ()
) -> list[list[NDArray[np.float32]]]:
    """Find the (K, D) embeddings of the k nearest gallery images, per adapter and class.

    Raises:
        ShapeError: a class has no images left.
    """
    points = split_parts(embedding[None], gallery.n_parts)
    return [
        [
            part.embeddings[rows]
            for rows in find_class_neighbours(part, point[0], k=k, n_classes=2, excluded=excluded)
        ]
        for part, point in zip(gallery.parts, points, strict=True)
    ]


def find_class_neighbours(
    gallery: Gallery,
    embedding: NDArray[np.float32],
    *,
    k: int,
    n_classes: int,
    excluded: Sequence[int] = (),
) -> list[NDArray[np.int64]]:
    """Find, for each class, the rows of the k gallery images nearest to a (D,) embedding.

    Raises:
        ShapeError: a class has no images left.
    """
    # Subtract: in a narrow cone, dot products of unit rows differ by less than rounding.
    distances = np.linalg.norm(gallery.embeddings - embedding, axis=1)
    is_open = np.ones(len(gallery), dtype=bool)
    is_open[[*excluded, *gallery.silent]] = False
    found = []
    for label in range(n_classes):
        rows = np.flatnonzero((gallery.labels == label) & is_open)
        if len(rows) == 0:
            raise ShapeError(f"class {label} has no gallery image left to explain with.")
        found.append(rows[np.argsort(distances[rows], kind="stable")[:k]])
    return found


def compute_view_heatmaps(
    embedder: Embedder,
    activations: Sequence[Tensor],
    *,
    class_index: int,
    neighbours: Sequence[Sequence[NDArray[np.float32]]],
    method: str = "grad-cam",
) -> dict[str, NDArray[np.float32]]:
    """Compute the map of every view; see ``core.explanations.methods.ViewMaps`` for the arguments.

    Returns:
        backbone name -> (V, h, w) float32 at the layer's resolution, non-negative, each view mapped
        back to upright.

    Raises:
        ConfigError: the method is unknown.
    """
    late = embedder.run_bodies(activations)
    return compute_class_heatmaps(embedder, late, neighbours=neighbours, method=method)[class_index]


def compute_class_heatmaps(
    embedder: Embedder,
    late: Sequence[Tensor],
    *,
    neighbours: Sequence[Sequence[NDArray[np.float32]]],
    method: str = "grad-cam",
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Compute both classes' maps in one pass, since their log-odds differ only in sign.

    Args:
        embedder: the model; if the layer is inside a block, a hook is added and removed again.
        late: per backbone, the (V, ...) activations returned by ``Embedder.run_bodies`` during the
            prediction.
        neighbours: as found by ``find_voters``; empty for a classifier.
        method: one of CAMS.

    Returns:
        Per class: backbone name -> (V, h, w) float32, non-negative, all views upright.

    Raises:
        ConfigError: the method is unknown.
    """
    if method not in CAMS:
        raise ConfigError(f"unknown method {method!r}; choose one of {', '.join(CAMS)}.")
    layers, gradients = _follow_vote(embedder, late, neighbours)
    by_class: tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]] = ({}, {})
    for backbone, layer, gradient in zip(embedder.backbones, layers, gradients, strict=True):
        tail = backbone.tail
        shown = tail.to_map(layer.detach().float()).cpu()
        slope = tail.to_map(gradient.float()).cpu()
        for sign, maps in zip((1.0, -1.0), by_class, strict=True):
            maps[backbone.name] = _draw_views(tail, shown, sign * slope, method=method)
    return by_class


def _follow_vote(
    embedder: Embedder, late: Sequence[Tensor], neighbours: Sequence[Sequence[NDArray[np.float32]]]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Per backbone, the layer's activation and the gradient of class 0's log-odds."""
    net = embedder.net.eval()
    tails = [f.tail for f in embedder.frozen_tails] or [b.tail for b in embedder.backbones]
    # A copy made outside inference mode is an ordinary tensor that autograd can use.
    starts = [x.to(embedder.device).clone().requires_grad_(True) for x in late]
    layers = list(starts)

    def keep(index: int, output: Tensor) -> None:
        layers[index] = output

    handles = [
        tail.cam_layer.register_forward_hook(lambda _m, _i, out, n=index: keep(n, out))
        for index, tail in enumerate(tails)
        if tail.is_tokens
    ]
    try:
        features = embedder.run_tops(starts)
    finally:
        for handle in handles:
            handle.remove()
    rows = [[torch.from_numpy(n).to(embedder.device) for n in part] for part in neighbours]
    log_odds = compute_feature_log_odds(net, features, rows)
    return layers, torch.autograd.grad(log_odds[0, 0], layers)


def _draw_views(
    tail: Tail, activation: Tensor, gradient: Tensor, *, method: str
) -> NDArray[np.float32]:
    """Weight a layer (V, C, h, w) by its gradient with the package: (V, h, w), upright."""
    cam = CAMS[method](tail, [])  # no layer to hook: activation and gradient are known
    cam.target_layers = [tail.cam_layer]
    cam.activations_and_grads.activations = [activation]
    cam.activations_and_grads.gradients = [gradient]
    maps = cam.aggregate_multi_layers(cam.compute_cam_per_layer(activation, [], False))
    cam.activations_and_grads.activations, cam.activations_and_grads.gradients = [], []
    upright: NDArray[np.float32] = undo_views(torch.from_numpy(maps)).numpy()
    return upright.astype(np.float32)


def keep_positive(heatmap: NDArray[np.floating]) -> NDArray[np.float32]:
    """The positive part of a signed map, scaled to a peak of 1."""
    return normalise(np.maximum(heatmap, 0.0))


def normalise(heatmap: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale a non-negative map to a peak of 1; a map of zeros is unchanged."""
    peak = float(heatmap.max())
    return (heatmap / peak if peak > 0 else heatmap).astype(np.float32)


def randomise_net(embedder: Embedder, *, seed: int = 0) -> Embedder:
    """Re-initialise every trained layer; the heatmaps should then look different.

    Args:
        embedder: not modified.
        seed: for the new parameters.

    Reference: Adebayo et al. 2018, arXiv:1810.03292 (sanity checks for saliency maps).
    """
    net = copy.deepcopy(embedder.net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    net.requires_grad_(False).eval()
    backbones = tuple(
        dataclasses.replace(backbone, tail=cast(Tail, tail))
        for backbone, tail in zip(embedder.backbones, net.tails, strict=True)
    )
    return dataclasses.replace(embedder, net=net, backbones=backbones, frozen_tails=())


def merge_heatmaps(maps: Sequence[tuple[float, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Weighted mean of several members' (h, w) heatmaps, rescaled to a peak of 1."""
    height, width = maps[0][1].shape
    resized = [resize_heatmap(heatmap, height=height, width=width) for _, heatmap in maps]
    return normalise(np.average(resized, axis=0, weights=[weight for weight, _ in maps]))


def resize_heatmap(heatmap: NDArray[np.float32], *, height: int, width: int) -> NDArray[np.float32]:
    """Resize a (h, w) heatmap to the displayed image, still in [0, 1]."""
    check_shape("heatmap", heatmap, (None, None))
    resized = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(resized, 0.0, 1.0).astype(np.float32)


def overlay(
    pixels: NDArray[np.uint8], heatmap: NDArray[np.float32], *, opacity: float
) -> NDArray[np.uint8]:
    """Overlay a heatmap on an image; the image is unchanged where the heatmap is zero.

    Args:
        pixels: (H, W, 3) uint8 RGB; not modified.
        heatmap: (H, W) in [0, 1].
        opacity: 0 (image only) to 1 (colour only at the peak).

    Raises:
        ShapeError: geometries differ, or opacity is out of range.
    """
    check_shape("pixels", pixels, (None, None, 3))
    check_shape("heatmap", heatmap, pixels.shape[:2])
    if not 0.0 <= opacity <= 1.0:
        raise ShapeError(f"opacity: expected 0..1, got {opacity}.")
    levels = np.round(np.clip(heatmap, 0.0, 1.0) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    alpha = (opacity * np.clip(heatmap, 0.0, 1.0))[:, :, None]
    mixed = (1.0 - alpha) * pixels + alpha * colours
    return np.round(mixed).astype(np.uint8)


def outline(
    pixels: NDArray[np.uint8], heatmap: NDArray[np.float32], *, level: float = 0.5
) -> NDArray[np.uint8]:
    """Draw a heatmap's contour line at a level, white on black so that it is visible anywhere.

    Args:
        pixels: (H, W, 3) uint8 RGB; not modified.
        heatmap: (H, W) in [0, 1].
        level: of the heatmap, 0..1.

    Raises:
        ShapeError: geometries differ.
    """
    check_shape("pixels", pixels, (None, None, 3))
    check_shape("heatmap", heatmap, pixels.shape[:2])
    lines, _ = cv2.findContours(
        (heatmap >= level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    width = max(1, round(max(pixels.shape[:2]) / 300))
    drawn = np.ascontiguousarray(pixels.copy())
    cv2.drawContours(drawn, lines, -1, (0, 0, 0), 3 * width)
    cv2.drawContours(drawn, lines, -1, (255, 255, 255), width)
    return drawn
