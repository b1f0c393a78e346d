"""How far ordinary copies of training images lie from the gallery, for the novelty limit.

Owns which images are copied. The copies are measured in the trunks' features, where a gallery of
very uniform images (such as the demo's) would otherwise call every recompressed image novel.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from core.errors import CoreError
from core.gallery import novelty
from core.images import ordinary_copies
from core.network.embedder import Embedder
from core.training.trunk_cache import TrunkCache

logger = logging.getLogger(__name__)

_N_COPIED = 64  # images, evenly over the gallery: enough for the top of each kind


def measure(
    embedder: Embedder,
    cache: TrunkCache,
    rows: NDArray[np.int64],
    descriptors: NDArray[np.float32],
) -> NDArray[np.float32] | None:
    """Measure copies of some gallery images, each without the image itself.

    Args:
        embedder: whose trunks described the gallery.
        cache: reads the images again.
        rows: (N,) of the gallery images in the cache.
        descriptors: (N, P) of the gallery.

    Returns:
        (V, M) distances, one row per kind of ``ordinary_copies.KINDS``; None if no image can be
        read any more.
    """
    n = min(_N_COPIED, len(rows))
    chosen = np.unique(np.linspace(0, len(rows) - 1, n).round().astype(np.int64))
    used: list[int] = []
    by_image: list[NDArray[np.float32]] = []
    for place in chosen.tolist():
        try:
            pixels = cache.read_image(int(rows[place])).pixels
        except CoreError as err:  # removed or changed since it went through the trunks
            logger.warning("an image was not copied for the novelty limit: %s", err.code)
            continue
        copies = [make(pixels) for make in ordinary_copies.KINDS.values()]
        by_image.append(embedder.describe(copies))
        used.append(place)
    if not used:
        return None
    copied = np.stack(by_image, axis=1)  # (V, M, P)
    return np.stack(
        [novelty.measure_copies(descriptors, kind, np.array(used)) for kind in copied]
    ).astype(np.float32)
