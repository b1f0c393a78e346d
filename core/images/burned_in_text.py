"""Detect burned-in text in an image, as a warning only.

Owns a detector of drawn text: strokes much brighter or darker than their surroundings (top-hat and
black-hat), whose components have the size of letters and a flat tone, and form rows of four or
more. Does not read the text and knows no names. Evaluated by benchmarks/bench_burned_in.py.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import check_shape
from core.images.decode import thumbnail
from core.images.text_region import TextRegion

_SIDE_PX = 1024  # longer side of the image searched
_STROKE_PX = 9  # maximum stroke width
_CONTRAST = 40  # minimum grey levels between a stroke and its surroundings
_HEIGHTS = (9, 80)  # of a letter, pixels
_MIN_LETTERS = 4  # in a row; single markers ("R", "L") do not count
_TONE_SPREAD = 0.30  # of a letter's contrast; drawn text is flat


def find_text(pixels: NDArray[np.uint8]) -> tuple[TextRegion, ...]:
    """Find lines of burned-in text.

    Args:
        pixels: (H, W, 3) uint8 RGB, any size; searched at no more than 1024 px.

    Returns:
        One region per line, the longest first.
    """
    check_shape("pixels", pixels, (None, None, 3))
    grey = cv2.cvtColor(thumbnail(pixels, max_px=_SIDE_PX), cv2.COLOR_RGB2GRAY)
    factor = _SIDE_PX / max(grey.shape)
    if factor > 1.0:  # in a small image letters touch; enlarging separates them
        grey = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * _STROKE_PX + 1,) * 2)
    height, width = grey.shape
    found = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = np.asarray(cv2.morphologyEx(grey, operation, kernel), dtype=np.uint8)
        for line in _group_lines(_find_letters(strokes)):
            left, top = line[:, :2].min(axis=0)
            right, bottom = (line[:, :2] + line[:, 2:4]).max(axis=0)
            found.append(
                TextRegion(
                    left=float(left / width),
                    top=float(top / height),
                    width=float((right - left) / width),
                    height=float((bottom - top) / height),
                    n_letters=len(line),
                )
            )
    return tuple(sorted(found, key=lambda region: -region.n_letters))


def _find_letters(strokes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Find possible letters: boxes (N, 4) left, top, width, height, ordered left to right."""
    is_stroke = (strokes >= _CONTRAST).astype(np.uint8)
    _, places, stats, _ = cv2.connectedComponentsWithStats(is_stroke, connectivity=8)
    widths, heights, areas = (stats[1:, column] for column in (2, 3, 4))
    fill = areas / np.maximum(widths * heights, 1)
    is_letter = (
        (heights >= _HEIGHTS[0])
        & (heights <= _HEIGHTS[1])
        & (widths >= 2)
        & (widths <= 1.6 * heights)
        & (fill >= 0.15)
        & (fill <= 0.95)
    )
    kept = []
    for index in np.flatnonzero(is_letter):
        left, top, width, height = (int(v) for v in stats[index + 1, :4])
        box = slice(top, top + height), slice(left, left + width)
        tones = strokes[box][places[box] == index + 1].astype(np.float64)
        core = tones[tones >= np.median(tones)]  # the edges are blended with the image
        if core.std() <= _TONE_SPREAD * core.mean():
            kept.append((left, top, width, height, int(core.mean())))
    return np.array(sorted(kept), dtype=np.int64).reshape(-1, 5)


def _group_lines(letters: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Group letters of similar height and tone into rows of four or more."""
    lines: list[list[int]] = []
    for index, (left, top, _, height, tone) in enumerate(letters.tolist()):
        for line in lines:
            l0, t0, w0, h0, tone0 = letters[line[-1]].tolist()
            gap = left - (l0 + w0)
            overlap = min(top + height, t0 + h0) - max(top, t0)
            is_next = (
                -0.3 * height <= gap <= 1.3 * max(height, h0)
                and overlap >= 0.55 * min(height, h0)
                and max(height, h0) <= 1.8 * min(height, h0)
                and abs(tone - tone0) <= 0.25 * max(tone, tone0)
            )
            if is_next:
                line.append(index)
                break
        else:
            lines.append([index])
    return [letters[line] for line in lines if len(line) >= _MIN_LETTERS]
