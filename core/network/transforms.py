"""Preprocessing: pixels to batches, training augmentation, test-time views and their merge.

Owns geometry and colour jitter. Normalisation is not included: each backbone normalises its own
input (core.network.backbone), because two backbones of one model may need different statistics.
Images are resized to a square without keeping the aspect ratio, so a plain resize maps a heatmap
back to the image.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # noqa: N812 - torchvision's own idiom

from core.config import PreprocessConfig, RunConfig
from core.errors import ShapeError

VIEWS = ("original", "horizontal flip", "vertical flip", "rotation by 90 degrees")
_EXPOSURE_SEED = 7  # of the exposure views, so that they are the same for every image and model
_BILINEAR = F.InterpolationMode.BILINEAR


def build_batch(images: Sequence[NDArray[np.uint8]], *, size: int) -> Tensor:
    """Resize images to ``size`` x ``size`` and stack them.

    Args:
        images: each (H, W, 3) uint8 RGB, any H and W.
        size: side of the square in pixels.

    Returns:
        (B, 3, size, size) float32 in [0, 1].

    Raises:
        ShapeError: an image is not (H, W, 3), or there are no images.
    """
    if not images:
        raise ShapeError("images: expected at least one image, got none.")
    return torch.stack([_resize(_to_tensor(image), size) for image in images]).float() / 255.0


def augment(
    image: NDArray[np.uint8], *, config: PreprocessConfig, rng: np.random.Generator
) -> Tensor:
    """Draw one training view: crop, flips, rotation, exposure, blur and noise.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        config: ranges of every step.
        rng: the only source of randomness.

    Returns:
        (3, S, S) float32 in [0, 1], S = config.input_size.
    """
    tensor = _to_tensor(image)
    height, width = tensor.shape[-2:]
    side = float(np.sqrt(rng.uniform(config.crop_scale_min, config.crop_scale_max)))
    crop_h, crop_w = max(1, round(height * side)), max(1, round(width * side))
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    view = _resize(tensor[:, top : top + crop_h, left : left + crop_w], config.input_size)
    if rng.random() < config.horizontal_flip:
        view = F.horizontal_flip(view)
    if rng.random() < config.vertical_flip:
        view = F.vertical_flip(view)
    view = _place(view, config, rng).float() / 255.0
    view = F.adjust_brightness(view, 1.0 + float(rng.uniform(-1, 1)) * config.brightness)
    view = F.adjust_contrast(view, 1.0 + float(rng.uniform(-1, 1)) * config.contrast)
    if config.gamma:
        view = F.adjust_gamma(view, 2.0 ** float(rng.uniform(-1, 1) * config.gamma))
    if config.blur:
        sigma = max(0.01, float(rng.uniform(0, config.blur)))
        view = F.gaussian_blur(view, 2 * math.ceil(2 * sigma) + 1, [sigma, sigma])
    if config.noise:
        deviation = float(rng.uniform(0, config.noise))
        grains = rng.standard_normal(view.shape[-2:], dtype=np.float32) * deviation
        view = (view + torch.from_numpy(grains)).clamp(0.0, 1.0)
    assert isinstance(view, Tensor)
    return view


def _place(view: Tensor, config: PreprocessConfig, rng: np.random.Generator) -> Tensor:
    """Rotate and, if configured, stretch and shift, filling with black."""
    angle = float(rng.uniform(-config.rotation_deg, config.rotation_deg))
    if not config.stretch and not config.shift:
        rotated: Tensor = F.rotate(view, angle, interpolation=_BILINEAR)
        return rotated
    size = config.input_size
    width, height = 2.0 ** (rng.uniform(-1, 1, 2) * config.stretch)
    resized = F.resize(
        view,
        [max(8, round(size * height)), max(8, round(size * width))],
        interpolation=_BILINEAR,
        antialias=True,
    )
    placed: Tensor = F.affine(
        F.center_crop(resized, [size, size]),
        angle=angle,
        translate=[float(t) * size for t in rng.uniform(-config.shift, config.shift, 2)],
        scale=1.0,
        shear=[0.0],
        interpolation=_BILINEAR,
    )
    return placed


def build_views(batch: Tensor, *, tta: bool) -> Tensor:
    """Stack the test-time views of a batch.

    Args:
        batch: (B, C, S, S), square.
        tta: use all four VIEWS instead of only the original.

    Returns:
        (V, B, C, S, S) with V = 4 or 1, in the order of VIEWS.
    """
    if batch.ndim != 4 or batch.shape[-1] != batch.shape[-2]:
        raise ShapeError(f"batch: expected (B, C, S, S), got {tuple(batch.shape)}.")
    if not tta:
        return batch[None]
    return torch.stack([batch, batch.flip(-1), batch.flip(-2), torch.rot90(batch, 1, (-2, -1))])


def build_test_views(images: Sequence[NDArray[np.uint8]], config: RunConfig) -> Tensor:
    """Build all views that are embedded: those of VIEWS, then the exposure views.

    An exposure view is a training view whose crop, exposure, blur and noise are the same for every
    image, so that a query is also compared with the gallery at other exposures.

    Args:
        images: each (H, W, 3) uint8 RGB, any H and W.
        config: ``embedder`` sets the number of views, ``preprocess`` the size and ranges.

    Returns:
        (V, B, 3, S, S) float32 in [0, 1], V = config.embedder.n_test_views.

    Raises:
        ShapeError: an image is not (H, W, 3), or there are no images.
    """
    embedder, preprocess = config.embedder, config.preprocess
    views = build_views(build_batch(images, size=preprocess.input_size), tta=embedder.tta)
    n_extra = embedder.n_test_views - len(views)
    if not n_extra:
        return views
    extra = [
        torch.stack(
            [
                augment(i, config=preprocess, rng=np.random.default_rng([_EXPOSURE_SEED, index]))
                for i in images
            ]
        )
        for index in range(n_extra)
    ]
    return torch.cat([views, torch.stack(extra)])


def undo_views(maps: Tensor) -> Tensor:
    """Map one map per view back to the geometry of the original.

    Args:
        maps: (V, h, w) in the order of VIEWS, V = 1 or at least 4, h == w when V > 1. Any after the
            fourth are exposure views, which show only part of the image and are left out.

    Returns:
        (1 or 4, h, w), every map upright.
    """
    if maps.ndim != 3 or 1 < maps.shape[0] < len(VIEWS):
        raise ShapeError(f"maps: expected (1 or at least 4, h, w), got {tuple(maps.shape)}.")
    if maps.shape[0] == 1:
        return maps
    return torch.stack(
        [maps[0], maps[1].flip(-1), maps[2].flip(-2), torch.rot90(maps[3], -1, (-2, -1))]
    )


def merge_views(embeddings: Tensor) -> Tensor:
    """Average unit embeddings over the views and renormalise.

    Args:
        embeddings: (V, B, D).

    Returns:
        (B, D), unit length.
    """
    if embeddings.ndim != 3:
        raise ShapeError(f"embeddings: expected (V, B, D), got {tuple(embeddings.shape)}.")
    return torch.nn.functional.normalize(embeddings.mean(dim=0), dim=-1)


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}.")
    return torch.from_numpy(np.ascontiguousarray(image).copy()).permute(2, 0, 1)


def _resize(tensor: Tensor, size: int) -> Tensor:
    resized: Tensor = F.resize(tensor, [size, size], interpolation=_BILINEAR, antialias=True)
    return resized
