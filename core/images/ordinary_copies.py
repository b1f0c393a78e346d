"""Ordinary copies of an image: saved again as JPEG, made smaller, trimmed at the edges.

Owns what counts as ordinary: what a viewer's export, a slide or a screenshot does to an image that
stays the same image. Stronger damage is in core.images.corruptions.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import check_shape

JPEG_QUALITY = 50  # the strongest compression still called ordinary, 1..100
SCALE = 0.5  # of height and width
TRIM = 0.05  # of height and width, at every edge


def recompress(pixels: NDArray[np.uint8], *, quality: int = JPEG_QUALITY) -> NDArray[np.uint8]:
    """Save (H, W, 3) as JPEG and read it again."""
    check_shape("pixels", pixels, (None, None, 3))
    swapped = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # just encoded
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def resize(pixels: NDArray[np.uint8], *, scale: float = SCALE) -> NDArray[np.uint8]:
    """Scale height and width of (H, W, 3)."""
    check_shape("pixels", pixels, (None, None, 3))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.uint8)


def trim(pixels: NDArray[np.uint8], *, share: float = TRIM) -> NDArray[np.uint8]:
    """Cut a share of height and width off every edge of (H, W, 3)."""
    check_shape("pixels", pixels, (None, None, 3))
    down, across = (int(side * share) for side in pixels.shape[:2])
    inner = pixels[down : pixels.shape[0] - down, across : pixels.shape[1] - across]
    return np.ascontiguousarray(inner)


KINDS: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "recompressed": recompress,
    "smaller": resize,
    "trimmed": trim,
}
