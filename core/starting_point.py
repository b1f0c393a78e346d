"""Where fitting begins, and how much of that beginning the finished net keeps.

Owns the first value of a linear adapter, the average of a trained net with the untrained one, and
the whitening of what a finished adapter puts out. Knows nothing of losses.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class _Features:
    """Pooled features of the training images, or what an adapter makes of them."""

    clean: _Matrix  # (N, F)
    augmented: tuple[_Matrix, ...]  # each (N, F), the same images
    labels: NDArray[np.int64]  # (N,)


def begin_adapters(embedder: Embedder, cache: TrunkCache) -> dict[str, Tensor]:
    """Set linear adapters to a fair map of the untrained features of the training images.

    ``embedder.adapter_start`` says which: ``pca``, their principal components, found without
    labels; or ``whitening``, which also evens out how images of one class differ
    (``whiten_adapters``). Adapters with a hidden layer keep their random beginning.

    Returns:
        A copy of the net's parameters as training finds them.
    """
    net = embedder.net
    if _has_linear_adapters(embedder):
        is_whitened = embedder.config.embedder.adapter_start == "whitening"
        features = _pool_training(embedder, cache, n_augmented=_N_VIEWS if is_whitened else 0)
        size = embedder.config.embedder.embedding_dim
        centre = features.clean.mean(axis=0)
        axes = _find_whitening(features, size) if is_whitened else _find_pca(features.clean, size)
        axes = _scale(axes, features.clean)
        for linear in _list_linear(net):
            with torch.no_grad():
                linear.weight.zero_()
                linear.bias.zero_()
                linear.weight[: len(axes)] = torch.from_numpy(axes).to(linear.weight)
                linear.bias[: len(axes)] = torch.from_numpy(-axes @ centre).to(linear.bias)
    return {key: value.clone() for key, value in net.state_dict().items()}


def whiten_adapters(embedder: Embedder, cache: TrunkCache) -> None:
    """Even out, in every linear adapter's output, how images of one class differ.

    The covariance within classes is measured on the training images and their augmented views,
    each against the mean of its class, shrunk as Ledoit and Wolf (2004) do, and made the unit
    matrix by a linear map that is multiplied into the adapter: a direction in which normal images
    differ much, or in which exposure moves them, no longer decides which ones are near. Does
    nothing where ``embedder.adapter_start`` is not ``whitening``.

    Reference: Hatch, Kajarekar and Stolcke 2006, Within-class covariance normalization for
    SVM-based speaker recognition, Interspeech.
    """
    if embedder.config.embedder.adapter_start != "whitening" or not _has_linear_adapters(embedder):
        return
    pooled = _pool_training(embedder, cache, n_augmented=_N_VIEWS)
    for linear in _list_linear(embedder.net):
        weight = linear.weight.detach().double().cpu().numpy()
        outputs = _Features(
            pooled.clean @ weight.T,
            tuple(view @ weight.T for view in pooled.augmented),
            pooled.labels,
        )
        axes = _scale(_find_whitening(outputs, len(weight)), outputs.clean)
        centre = outputs.clean.mean(axis=0)
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.zero_()
            linear.weight[: len(axes)] = torch.from_numpy(axes @ weight).to(linear.weight)
            linear.bias[: len(axes)] = torch.from_numpy(-axes @ centre).to(linear.bias)


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


def _pool_training(embedder: Embedder, cache: TrunkCache, *, n_augmented: int) -> _Features:
    rows = cache.find_rows("train").tolist()
    labels = np.array([cache.records[row].label for row in rows], dtype=np.int64)
    n_augmented = min(n_augmented, cache.n_augmented if cache.is_stored else 1)
    views = range(1, 1 + n_augmented)
    clean, *augmented = (_pool(embedder, cache, rows, view) for view in (0, *views))
    return _Features(clean, tuple(augmented), labels)


def _pool(embedder: Embedder, cache: TrunkCache, rows: list[int], view: int) -> _Matrix:
    net = embedder.net
    net.eval()
    found = []
    with torch.inference_mode():
        for first in range(0, len(rows), _ROWS):
            chosen = rows[first : first + _ROWS]
            activations = cache.read_views(chosen, [view] * len(chosen))
            pooled = net.pool([a.to(embedder.device) for a in activations])
            found.append(pooled.double().cpu().numpy())
    return np.concatenate(found)


def _find_pca(features: _Matrix, size: int) -> _Matrix:
    """(D, F) principal components."""
    found = PCA(min(size, *features.shape), svd_solver="full").fit(features)
    components: _Matrix = found.components_
    return components


def _find_whitening(features: _Features, size: int) -> _Matrix:
    """(D, F) axes of greatest variance once the covariance within classes is the unit matrix."""
    components = _find_pca(features.clean, _DETAIL)
    clean = features.clean @ components.T
    means = np.array([clean[features.labels == label].mean(axis=0) for label in range(N_CLASSES)])
    views = (clean, *(view @ components.T for view in features.augmented))
    residuals = np.concatenate([view - means[features.labels] for view in views])
    within, _ = ledoit_wolf(residuals, assume_centered=True)
    variances, axes = np.linalg.eigh(within)
    floor = max(variances[-1] * 1e-9, np.finfo(np.float64).tiny)
    whitening = axes / np.sqrt(np.maximum(variances, floor))  # columns
    total = np.cov(clean @ whitening, rowvar=False)
    _, directions = np.linalg.eigh(np.atleast_2d(total))
    kept = directions[:, ::-1][:, :size]
    found: _Matrix = (components.T @ whitening @ kept).T
    return found


def _scale(axes: _Matrix, features: _Matrix) -> _Matrix:
    """Axes along which the features have a total variance of one."""
    spread = np.sqrt((features @ axes.T).var(axis=0, ddof=1).sum())
    return axes / max(float(spread), 1e-12)
