"""Graded image corruptions: blur, noise, brightness, JPEG, rotation, three levels each.

Owns the strength of each level. Pure functions on pixels, deterministic for a given seed.

Reference: Hendrycks & Dietterich 2019, arXiv:1903.12261 (the idea of graded corruptions; the
levels are ours, for images of a few hundred pixels).
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import ShapeError, check_shape

N_LEVELS = 3
# Level 1, 2, 3 of each kind, with its unit.
STRENGTHS: Mapping[str, tuple[float, float, float]] = {
    "blur": (0.4, 0.8, 1.6),  # Gaussian sigma, % of the longer side
    "noise": (5.0, 10.0, 20.0),  # standard deviation, % of full scale
    "brightness": (1.25, 1.5, 2.0),  # gamma exponent: darker
    "jpeg": (40.0, 20.0, 8.0),  # quality, 1..100
    "rotation": (5.0, 15.0, 30.0),  # degrees
}


def corrupt(
    pixels: NDArray[np.uint8], kind: str, *, level: int, seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupt one image.

    Args:
        pixels: (H, W, 3) uint8 RGB; not modified.
        kind: one of STRENGTHS.
        level: 0 (unchanged) to N_LEVELS.
        seed: of the noise.

    Raises:
        ShapeError: the kind or level is unknown, or the shape is wrong.
    """
    check_shape("pixels", pixels, (None, None, 3))
    if kind not in STRENGTHS or not 0 <= level <= N_LEVELS:
        raise ShapeError(
            f"corruption: expected one of {', '.join(STRENGTHS)} at level 0..{N_LEVELS}, got "
            f"{kind!r} at {level}."
        )
    if level == 0:
        return pixels.copy()
    return _KINDS[kind](pixels, STRENGTHS[kind][level - 1], seed)


def _blur(pixels: NDArray[np.uint8], strength: float, _seed: int) -> NDArray[np.uint8]:
    sigma = max(pixels.shape[:2]) * strength / 100
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.uint8)


def _add_noise(pixels: NDArray[np.uint8], strength: float, seed: int) -> NDArray[np.uint8]:
    grains = np.random.default_rng(seed).normal(0.0, strength / 100 * 255, pixels.shape[:2])
    return np.clip(np.round(pixels + grains[:, :, None]), 0, 255).astype(np.uint8)


def _darken(pixels: NDArray[np.uint8], strength: float, _seed: int) -> NDArray[np.uint8]:
    table = np.round(255 * (np.arange(256) / 255) ** strength).astype(np.uint8)
    darker: NDArray[np.uint8] = table[pixels]
    return darker


def _compress(pixels: NDArray[np.uint8], strength: float, _seed: int) -> NDArray[np.uint8]:
    swapped = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, int(strength)])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # just encoded
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _rotate(pixels: NDArray[np.uint8], strength: float, _seed: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), strength, 1.0)
    return np.asarray(cv2.warpAffine(pixels, turn, (width, height)), dtype=np.uint8)


_KINDS: Mapping[str, Callable[[NDArray[np.uint8], float, int], NDArray[np.uint8]]] = {
    "blur": _blur,
    "noise": _add_noise,
    "brightness": _darken,
    "jpeg": _compress,
    "rotation": _rotate,
}
