"""Out-of-distribution detection: distance to the gallery in the frozen trunks' features.

Owns the reference distances and the limit. The trained embedding cannot detect novelty: it was
trained to spread two classes over the sphere, so even a photo of a cat lands near one of them. The
trunks never saw the labels, so their pooled activations still separate a chest film from a fundus.

Reference: Sun et al. 2022, arXiv:2204.06507 (deep nearest neighbours for out-of-distribution).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError, check_shape
from core.gallery.search import measure_mean_distance

_N_NEAREST = 5
# Factor on the distances of ordinary copies. On the validation images of four data sets, 1.0 still
# refused 5 % of one set's JPEGs of quality 50; from 1.2 on the nearest foreign images come through
# (benchmarks/bench_novelty.py).
_COPY_SLACK = 1.1


@dataclass(frozen=True, eq=False)
class NoveltyReference:
    """Gallery descriptors and how far each lies from the others."""

    descriptors: NDArray[np.float32]  # (N, P) unit length
    distances: NDArray[np.float32]  # (N,) ascending, leave-one-out
    # (V, M) of V kinds of ordinary copies of M gallery images; None: not measured (older models)
    copy_distances: NDArray[np.float32] | None = None

    def score(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean Euclidean distance of (Q, P) descriptors to their 5 nearest gallery rows: (Q,)."""
        check_shape("descriptors", descriptors, (None, self.descriptors.shape[1]))
        return measure_mean_distance(self.descriptors, descriptors, _N_NEAREST, n_skipped=0)

    def compute_percentiles(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Percentile of (Q,) scores among the gallery's own distances: (Q,) in 0..100."""
        placed = np.searchsorted(self.distances, scores, side="right") / len(self.distances)
        return placed * 100.0

    def compute_limit(self, *, percentile: float, slack: float) -> float:
        """The distance beyond which an image counts as out of distribution.

        A gallery image that was saved again, made smaller or trimmed is still of the same kind:
        no such copy's usual distance lies beyond the limit.

        Args:
            percentile: of the gallery's own distances and of each kind of copy, 50..100.
            slack: factor on the gallery's own distance, at least 1, to allow for other cameras and
                hospitals.
        """
        own = float(np.percentile(self.distances, percentile)) * slack
        if self.copy_distances is None:
            return own
        by_kind = np.percentile(self.copy_distances, percentile, axis=1)
        return max(own, float(by_kind.max()) * _COPY_SLACK)


def measure_copies(
    descriptors: NDArray[np.float32], copies: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Measure copies of gallery images like new images, each without the image itself.

    Args:
        descriptors: (N, P) unit length, of the gallery.
        copies: (M, P) unit length.
        rows: (M,) the gallery row that each is a copy of.

    Returns:
        (M,) mean Euclidean distance to the 5 nearest other rows.
    """
    check_shape("copies", copies, (None, descriptors.shape[1]))
    check_shape("rows", rows, (len(copies),))
    return measure_mean_distance(descriptors, copies, _N_NEAREST, barred=rows)


def fit(
    descriptors: NDArray[np.float32], *, copy_distances: NDArray[np.float32] | None = None
) -> NoveltyReference:
    """Measure each row's leave-one-out distance to the rest.

    Args:
        descriptors: (N, P) unit length, N of at least 2.
        copy_distances: (V, M) of ordinary copies (``measure_copies``), if they were measured.

    Raises:
        DataError: fewer than two rows.
    """
    check_shape("descriptors", descriptors, (None, None))
    if len(descriptors) < 2:
        raise DataError("novelty needs at least 2 gallery images, got 1.", code="novelty.few")
    distances = measure_mean_distance(descriptors, descriptors, _N_NEAREST, n_skipped=1)
    return NoveltyReference(descriptors, np.sort(distances), copy_distances)
