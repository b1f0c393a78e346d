"""The 2-D map: UMAP fitted once with the gallery, and a stable position for each new image.

Owns map coordinates only; neighbours are never taken from the map. A new image is placed at the
weighted mean of the map positions of its nearest gallery images in the embedding space, so its
position does not depend on what else was uploaded (with UMAP's own transform it does: umap#566).
"""

import contextlib
import hashlib
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, check_shape
from core.gallery.search import Gallery
from core.gallery.voting import compute_shares

_N_ANCHORS = 5  # nearest gallery images that determine a new image's position
_MIN_FOR_UMAP = 10


@dataclass(frozen=True, eq=False)
class Projection:
    """A fitted map."""

    gallery_xy: NDArray[np.float32]  # (N, 2), row i belongs to gallery row i
    cache_key: str  # of the embeddings and settings it was fitted with

    def place(self, gallery: Gallery, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (Q, 2) map positions of (Q, D) embeddings; (Q, 3) on a 3-D map."""
        check_shape("gallery_xy", self.gallery_xy, (len(gallery), None))
        distances, rows = gallery.search(queries, _N_ANCHORS)
        shares = compute_shares(distances)
        xy: NDArray[np.float32] = (self.gallery_xy[rows] * shares[:, :, None]).sum(1)
        return xy


@dataclass(frozen=True)
class MapSettings:
    """Settings of a map; they are stored with it."""

    method: Literal["umap", "pca"] = "umap"
    n_dimensions: Literal[2, 3] = 2
    n_neighbors: int = 15  # UMAP: higher preserves global structure, lower preserves detail
    min_dist: float = 0.1  # UMAP: minimum distance between points
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("umap", "pca") or self.n_dimensions not in (2, 3):
            raise ConfigError(
                f"a map is umap or pca in 2 or 3 dimensions, got {self.method!r} in "
                f"{self.n_dimensions}.",
                code="config.map",
            )
        if not (2 <= self.n_neighbors <= 200 and 0.0 <= self.min_dist <= 1.0):
            raise ConfigError(
                "a map needs n_neighbors in 2..200 and min_dist in 0..1, got "
                f"{self.n_neighbors} and {self.min_dist}.",
                code="config.map",
            )


def compute_cache_key(
    embeddings: NDArray[np.float32], *, seed: int, settings: MapSettings | None = None
) -> str:
    """Compute the key of a fit: the same embeddings, seed and settings give the same key."""
    digest = hashlib.sha256(np.ascontiguousarray(embeddings).tobytes())
    plain = settings is None or settings == MapSettings(seed=seed)
    text = (
        f"umap:15:0.1:{seed}"
        if plain
        else json.dumps(asdict(settings or MapSettings()), sort_keys=True)
    )
    digest.update(text.encode())
    return digest.hexdigest()[:16]


def fit(embeddings: NDArray[np.float32], *, seed: int) -> Projection:
    """Fit the map that is stored with a new model: UMAP in two dimensions.

    Args:
        embeddings: (N, D) unit embeddings.
        seed: fixes UMAP's random state; the same input gives the same map.

    Returns:
        The fitted map. Below 10 images, too few for UMAP, the map is the first two principal
        components.

    Reference: McInnes, Healy, Melville 2018, arXiv:1802.03426.
    """
    xy = fit_map(embeddings, MapSettings(seed=seed))
    return Projection(xy, compute_cache_key(embeddings, seed=seed))


def fit_map(
    embeddings: NDArray[np.float32],
    settings: MapSettings,
    *,
    progress: Callable[[float, str], None] | None = None,
) -> NDArray[np.float32]:
    """Place every image: (N, 2) or (N, 3). Below 10 images, use the principal components.

    Args:
        embeddings: (N, D) unit embeddings.
        settings: method and parameters.
        progress: called with the fraction of UMAP epochs done.
    """
    check_shape("embeddings", embeddings, (None, None))
    if settings.method == "pca" or len(embeddings) < _MIN_FOR_UMAP:
        return _principal_components(embeddings, n_dimensions=settings.n_dimensions)
    reducer = _load_umap().UMAP(
        n_components=settings.n_dimensions,
        n_neighbors=min(settings.n_neighbors, len(embeddings) - 1),
        min_dist=settings.min_dist,
        metric="euclidean",
        random_state=settings.seed,
        n_jobs=1,
        init="pca",
        verbose=progress is not None,
        tqdm_kwds={"file": _EpochReader(progress), "bar_format": "{n_fmt}/{total_fmt}"},
    )
    with contextlib.redirect_stdout(io.StringIO()):  # discard UMAP's verbose output
        xy = reducer.fit_transform(embeddings)
    return np.asarray(xy, dtype=np.float32)


def _load_umap() -> Any:
    """Import UMAP, which takes seconds: only when fitting, never on a page.

    Three of its functions are not cached and would be compiled again in every process; this enables
    Numba's cache for them, as for UMAP's other functions.
    """
    umap = importlib.import_module("umap")
    inner = importlib.import_module("umap.umap_")
    for name in ("fast_knn_indices", "smooth_knn_dist", "compute_membership_strengths"):
        with contextlib.suppress(AttributeError, RuntimeError):  # renamed, or cache not writable
            getattr(inner, name).enable_caching()
    return umap


class _EpochReader(io.StringIO):
    """Parses UMAP's progress bar ("12/500") and reports it as a fraction."""

    def __init__(self, progress: Callable[[float, str], None] | None) -> None:
        super().__init__()
        self.progress = progress

    def write(self, text: str) -> int:
        done, _, total = text.strip().partition("/")
        if self.progress and done.isdigit() and total.isdigit() and int(total):
            self.progress(int(done) / int(total), f"epoch {done} of {total}")
        return len(text)


def _principal_components(
    embeddings: NDArray[np.float32], *, n_dimensions: int
) -> NDArray[np.float32]:
    """The first principal components, from the (D, D) covariance, which is fast for many images."""
    centred = embeddings - embeddings.mean(0)
    if len(embeddings) > embeddings.shape[1]:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, ::-1].T
    else:
        axes = np.linalg.svd(centred, full_matrices=False)[2]
    n = min(n_dimensions, len(axes))
    # The sign of an axis is arbitrary; fix it so that a map does not flip between machines.
    signs = np.sign(axes[np.arange(n), np.abs(axes[:n]).argmax(axis=1)])
    xy = np.zeros((len(embeddings), n_dimensions), dtype=np.float32)
    xy[:, :n] = centred @ (axes[:n] * signs[:, None]).T
    return xy


def turn(xyz: NDArray[np.float32], *, turn_deg: float, tilt_deg: float) -> NDArray[np.float32]:
    """Rotate a (N, 3) map and project it to (N, 2) without perspective.

    Args:
        xyz: positions in three dimensions.
        turn_deg: rotation about the vertical axis, degrees.
        tilt_deg: tilt of the vertical axis towards the viewer, degrees.
    """
    check_shape("xyz", xyz, (None, 3))
    a, b = np.deg2rad(turn_deg), np.deg2rad(tilt_deg)
    x = xyz[:, 0] * np.cos(a) + xyz[:, 2] * np.sin(a)
    depth = xyz[:, 2] * np.cos(a) - xyz[:, 0] * np.sin(a)
    y = xyz[:, 1] * np.cos(b) - depth * np.sin(b)
    return np.stack([x, y], axis=1).astype(np.float32)
