"""Initialise linear adapters by PCA, and average the trained net with its initial parameters.

Owns the label-free initialisation of a linear adapter and the weight averaging of the trained and
the untrained net. Knows nothing of losses.
"""

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from core.network.embedder import Embedder
from core.network.net import EmbeddingNet
from core.training.trunk_cache import TrunkCache

_ROWS = 64


def begin_with_pca(embedder: Embedder, cache: TrunkCache) -> dict[str, Tensor]:
    """Set linear adapters to the principal components of the untrained training features.

    The embedding then starts as a faithful projection of the pretrained features, without labels.
    Adapters with a hidden layer keep their random initialisation.

    Returns:
        A copy of the net's parameters at the start of training.
    """
    net = embedder.net
    if embedder.config.embedder.hidden_dim == 0 and len(net.adapters):
        _set_adapters(embedder, cache)
    return {key: value.clone() for key, value in net.state_dict().items()}


def _set_adapters(embedder: Embedder, cache: TrunkCache) -> None:
    net = embedder.net
    rows = cache.find_rows("train").tolist()
    features = []
    net.eval()
    with torch.inference_mode():
        for first in range(0, len(rows), _ROWS):
            chosen = rows[first : first + _ROWS]
            activations = cache.read_views(chosen, [0] * len(chosen))
            pooled = net.pool([a.to(embedder.device) for a in activations])
            features.append(pooled.float().cpu().numpy())
    known = np.concatenate(features)
    size = min(embedder.config.embedder.embedding_dim, *known.shape)
    found = PCA(size, svd_solver="full").fit(known)
    scale = max(float(np.sqrt(found.explained_variance_.sum())), 1e-12)
    components = torch.from_numpy(found.components_ / scale)
    with torch.no_grad():
        for adapter in net.adapters:
            (linear,) = adapter.children()
            assert isinstance(linear, nn.Linear)
            linear.weight.zero_()
            linear.bias.zero_()
            linear.weight[:size] = components.to(linear.weight)
            linear.bias[:size] = -(components @ torch.from_numpy(found.mean_)).to(linear.bias)


def average_with_start(net: EmbeddingNet, start: dict[str, Tensor], *, share: float) -> None:
    """Replace the parameters by (1 - share) times themselves plus share times the start.

    A fine-tuned net fits its own hospital's images, a pretrained one generalises to all kinds. An
    average of the two keeps most of the first's accuracy and loses less on other data.

    Reference: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903.
    """
    state = net.state_dict()
    mixed = {
        key: torch.lerp(value, start[key].to(value), share) if value.is_floating_point() else value
        for key, value in state.items()
    }
    net.load_state_dict(mixed)
