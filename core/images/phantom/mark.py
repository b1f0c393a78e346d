"""Write and detect the SYNTHETIC mark on synthetic images."""

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images.text_region import TextRegion

MIN_SIZE = 64  # minimum px of a drawn image
_MARK = "SYNTHETIC"
_MARK_LIKENESS = 0.85  # minimum correlation; a real mark has 0.98 or more, other content far less


def find_mark(pixels: NDArray[np.uint8]) -> TextRegion | None:
    """Find the generator's own mark in an image; None if it is not there.

    The image must have the size it was drawn in; lossy compression does not matter.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """
    height, width = pixels.shape[:2]
    if height != width or height < MIN_SIZE:
        return None
    drawn = np.zeros_like(pixels)
    burn_in(drawn)
    mark = drawn[:, :, 0]
    rows, columns = np.flatnonzero(mark.any(axis=1)), np.flatnonzero(mark.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    seen = pixels[box].mean(axis=2).astype(np.float32)
    drawn_mark = mark[box].astype(np.float32)
    if np.ptp(seen) == 0 or cv2.matchTemplate(seen, drawn_mark, cv2.TM_CCOEFF_NORMED).item() < (
        _MARK_LIKENESS
    ):
        return None
    return TextRegion(
        left=float(columns[0] / width),
        top=float(rows[0] / height),
        width=float(len(columns) / width),
        height=float(len(rows) / height),
        n_letters=len(_MARK),
    )


def burn_in(pixels: NDArray[np.uint8]) -> None:
    """Write the mark into a square (S, S, 3) image, in place."""
    size = pixels.shape[0]
    cv2.putText(
        pixels,
        _MARK,
        (max(2, size // 80), size - max(3, size // 60)),
        cv2.FONT_HERSHEY_SIMPLEX,
        size / 900,
        (190, 190, 190),
        1,
        cv2.LINE_AA,
    )
