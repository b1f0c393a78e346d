"""Where fitting begins, and how much of that beginning the finished net keeps.

Owns the first value of a linear adapter, the average of a trained net with the untrained one, and
the whitening of what a finished adapter puts out. Knows nothing of losses.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from torch import Tensor, nn

from core.embedder import N_CLASSES, Embedder, EmbeddingNet
from core.trunk_cache import TrunkCache

_ROWS = 64
_DETAIL = 256  # principal components among which classes are told apart
_N_VIEWS = 4  # augmented views that say which changes mean nothing, where they are stored

_Matrix = NDArray[np.float64]


def begin_adapters(embedder: Embedder, cache: TrunkCache) -> dict[str, Tensor]:
    """Set linear adapters to a fair map of the untrained features of the training images.

    ``embedder.adapter_start`` says which: ``pca``, their principal components, found without
    labels; or ``whitening``, which evens out how images of one class differ (``fit_whitening``).
    Adapters with a hidden layer keep their random beginning.

    Returns:
        A copy of the net's parameters as training finds them.
    """
    if _has_linear_adapters(embedder):
        size = embedder.config.embedder.embedding_dim
        if embedder.config.embedder.adapter_start == "whitening":
            clean, altered, labels = _pool_views(embedder, cache)
            axes = fit_whitening(clean, labels, size=size, altered=altered)
        else:
            clean = _pool(embedder, cache, view=0)
            axes = fit_pca(clean, size)
        for linear in _list_linear(embedder.net):
            _set(linear, axes, _scale_to_unit(axes, clean), centre=clean.mean(axis=0))
    return {key: value.clone() for key, value in embedder.net.state_dict().items()}


def whiten_adapters(embedder: Embedder, cache: TrunkCache) -> None:
    """Even out, in every linear adapter's output, how images of one class differ.

    A direction in which normal images differ much, or in which exposure moves them, then no longer
    decides which ones are near (``fit_whitening``). Does nothing where ``embedder.adapter_start``
    is not ``whitening``.
    """
    if embedder.config.embedder.adapter_start != "whitening" or not _has_linear_adapters(embedder):
        return
    clean, altered, labels = _pool_views(embedder, cache)
    centre = clean.mean(axis=0)
    for linear in _list_linear(embedder.net):
        weight = linear.weight.detach().double().cpu().numpy()
        outputs = clean @ weight.T
        axes = fit_whitening(
            outputs, labels, size=len(weight), altered=[view @ weight.T for view in altered]
        )
        _set(linear, axes @ weight, _scale_to_unit(axes, outputs), centre=centre)


def fit_pca(features: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(D, F) principal components of (N, F) features; D is at most ``size``."""
    found = PCA(min(size, *features.shape), svd_solver="full").fit(features)
    components: _Matrix = found.components_
    return components


def fit_whitening(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    size: int,
    altered: Sequence[NDArray[np.float64]] = (),
) -> NDArray[np.float64]:
    """Axes on which images of one class differ equally in every direction.

    The covariance within classes is that of the features, and of other views of the same images,
    against the mean of their class, shrunk as Ledoit and Wolf (2004, A well-conditioned estimator)
    do, among the principal components.

    Args:
        features: (N, F) of the training images.
        labels: (N,) class of each, 0 or 1; both occur.
        size: axes at most: those of greatest variance.
        altered: each (N, F), of augmented views of the same images.

    Returns:
        (D, F) axes.

    Reference: Hatch, Kajarekar and Stolcke 2006, Within-class covariance normalization for
    SVM-based speaker recognition, Interspeech.
    """
    components = fit_pca(features, _DETAIL)
    clean = features @ components.T
    means = np.array([clean[labels == label].mean(axis=0) for label in range(N_CLASSES)])
    views = (clean, *(view @ components.T for view in altered))
    within, _ = ledoit_wolf(
        np.concatenate([view - means[labels] for view in views]), assume_centered=True
    )
    variances, axes = np.linalg.eigh(within)
    floor = max(variances[-1] * 1e-9, np.finfo(np.float64).tiny)
    whitening = axes / np.sqrt(np.maximum(variances, floor))  # columns
    total = np.atleast_2d(np.cov(clean @ whitening, rowvar=False))
    directions = np.linalg.eigh(total)[1][:, ::-1]
    found: _Matrix = (components.T @ whitening @ directions[:, :size]).T
    return found


def average_with_start(net: EmbeddingNet, start: dict[str, Tensor], *, share: float) -> None:
    """Replace the parameters by (1 - share) times themselves plus share times the start.

    A trained net knows its hospital, a pretrained one all kinds of pictures; between the two lies
    one that keeps most of the first and loses less elsewhere.

    Reference: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903.
    """
    state = net.state_dict()
    mixed = {
        key: torch.lerp(value, start[key].to(value), share) if value.is_floating_point() else value
        for key, value in state.items()
    }
    net.load_state_dict(mixed)


def _has_linear_adapters(embedder: Embedder) -> bool:
    return embedder.config.embedder.hidden_dim == 0 and len(embedder.net.adapters) > 0


def _list_linear(net: EmbeddingNet) -> list[nn.Linear]:
    found = []
    for adapter in net.adapters:
        (linear,) = adapter.children()
        assert isinstance(linear, nn.Linear)
        found.append(linear)
    return found


def _pool_views(
    embedder: Embedder, cache: TrunkCache
) -> tuple[_Matrix, list[_Matrix], NDArray[np.int64]]:
    """Features (N, F) of the training images, of their augmented views, and their classes (N,)."""
    n_views = min(_N_VIEWS, cache.n_augmented) if cache.is_stored else 1
    altered = [_pool(embedder, cache, view=view) for view in range(1, 1 + n_views)]
    labels = [cache.records[row].label for row in cache.find_rows("train")]
    return _pool(embedder, cache, view=0), altered, np.array(labels, dtype=np.int64)


def _pool(embedder: Embedder, cache: TrunkCache, *, view: int) -> _Matrix:
    net, rows = embedder.net, cache.find_rows("train").tolist()
    net.eval()
    found = []
    with torch.inference_mode():
        for first in range(0, len(rows), _ROWS):
            chosen = rows[first : first + _ROWS]
            activations = cache.read_views(chosen, [view] * len(chosen))
            pooled = net.pool([a.to(embedder.device) for a in activations])
            found.append(pooled.double().cpu().numpy())
    return np.concatenate(found)


def _scale_to_unit(axes: _Matrix, features: _Matrix) -> float:
    """What gives the features on these axes a total variance of one."""
    return 1.0 / max(float(np.sqrt((features @ axes.T).var(axis=0, ddof=1).sum())), 1e-12)


def _set(linear: nn.Linear, axes: _Matrix, scale: float, *, centre: _Matrix) -> None:
    """Make a layer map features to these axes, from their centre; what is beyond stays zero."""
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
        linear.weight[: len(axes)] = torch.from_numpy(scale * axes).to(linear.weight)
        linear.bias[: len(axes)] = torch.from_numpy(-scale * (axes @ centre)).to(linear.bias)
