"""Ordinary copies for benchmarks: saved again, scaled, trimmed, and two of these at once."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.images.ordinary_copies import KINDS, recompress, resize, trim

Make = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
N_FITTED = 64  # training images copied for the limit, as training does
N_MEASURED = 40  # images of each split copied to measure
FITTED: Mapping[str, Make] = KINDS


def shrink_and_compress(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the size, then JPEG 75: two steps at once, which no limit is fitted on."""
    return recompress(resize(pixels, scale=0.5), quality=75)


MEASURED: Mapping[str, Make] = {
    **{f"JPEG {q}": partial(recompress, quality=q) for q in (95, 90, 75, 50)},
    **{f"scaled by {s}": partial(resize, scale=s) for s in (0.5, 0.75, 1.5)},
    **{f"trimmed by {s:.0%}": partial(trim, share=s) for s in (0.02, 0.05)},
    "scaled by 0.5, then JPEG 75": shrink_and_compress,
}


def space_out(n: int, n_wanted: int) -> NDArray[np.int64]:
    """Evenly spaced places of ``n``, at most ``n_wanted``."""
    return np.unique(np.linspace(0, n - 1, min(n_wanted, n)).round().astype(np.int64))


def copy_some(
    read: Callable[[], Iterator[NDArray[np.uint8]]], make: Make, *, n_wanted: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield copies of some images of a split, evenly spaced."""
    images = list(read())
    for place in space_out(len(images), n_wanted):
        yield make(images[place])
