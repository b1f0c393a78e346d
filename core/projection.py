"""The 2-D map: UMAP fitted once with the gallery, and a stable place for every new image.

Owns map coordinates only; neighbours are never taken from the map. A new image is placed at the
weighted mean of the map positions of its nearest gallery images in the embedding space, so its
place does not depend on what else was uploaded (UMAP's own transform does: umap#566).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import check_shape
from core.knn import Gallery, compute_shares

_N_ANCHORS = 5  # nearest gallery images that fix a new image's place
_MIN_FOR_UMAP = 10


@dataclass(frozen=True, eq=False)
class Projection:
    """A fitted map."""

    gallery_xy: NDArray[np.float32]  # (N, 2), row i belongs to gallery row i
    cache_key: str  # of the embeddings and settings it was fitted with

    def place(self, gallery: Gallery, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (Q, 2) map positions of (Q, D) embeddings."""
        check_shape("gallery_xy", self.gallery_xy, (len(gallery), 2))
        distances, rows = gallery.search(queries, _N_ANCHORS)
        shares = compute_shares(distances)
        xy: NDArray[np.float32] = (self.gallery_xy[rows] * shares[:, :, None]).sum(1)
        return xy


def compute_cache_key(embeddings: NDArray[np.float32], *, seed: int) -> str:
    """Identify a fit: same embeddings and seed, same map."""
    digest = hashlib.sha256(np.ascontiguousarray(embeddings).tobytes())
    digest.update(f"umap:15:0.1:{seed}".encode())
    return digest.hexdigest()[:16]


def fit(embeddings: NDArray[np.float32], *, seed: int) -> Projection:
    """Fit the map of a gallery.

    Args:
        embeddings: (N, D) unit embeddings.
        seed: fixes UMAP's random state; the same input gives the same map.

    Returns:
        The fitted map. Below 10 images, where UMAP has no neighbourhood to learn, the map is the
        two principal components.

    Reference: McInnes, Healy, Melville 2018, arXiv:1802.03426.
    """
    check_shape("embeddings", embeddings, (None, None))
    if len(embeddings) < _MIN_FOR_UMAP:
        xy = _principal_components(embeddings)
    else:
        import umap  # compiles for seconds: only fitting pays for it, never a page

        reducer = umap.UMAP(
            n_neighbors=min(15, len(embeddings) - 1),
            min_dist=0.1,
            metric="euclidean",
            random_state=seed,
            n_jobs=1,
            init="pca",
        )
        xy = reducer.fit_transform(embeddings)
    return Projection(np.asarray(xy, dtype=np.float32), compute_cache_key(embeddings, seed=seed))


def _principal_components(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = embeddings - embeddings.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    xy = np.zeros((len(embeddings), 2), dtype=np.float32)
    n = min(2, len(s))
    xy[:, :n] = u[:, :n] * s[:n]
    return xy
