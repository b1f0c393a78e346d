"""Initialisation by hand and against scikit-learn; what weight averaging preserves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.network.build import build_embedder
from core.network.embedder import Embedder
from core.training.initialisation import average_with_start, begin_with_pca
from core.training.trunk_cache import TrunkCache

CPU = Settings(device="cpu")


def build(config: RunConfig, dataset: Dataset, folder: Path) -> tuple[Embedder, TrunkCache]:
    embedder = build_embedder(config, CPU)
    cache = TrunkCache(folder, embedder, [*dataset.subset("train"), *dataset.subset("val")])
    cache.build()
    return embedder, cache


@pytest.fixture
def linear_config(tiny_config: RunConfig) -> RunConfig:
    return tiny_config.with_overrides(["embedder.hidden_dim=0", "embedder.embedding_dim=8"])


def test_a_linear_adapter_begins_as_the_pca_of_the_training_features(
    linear_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    embedder, cache = build(linear_config, phantom_dataset, tmp_path)
    start = begin_with_pca(embedder, cache)
    rows = cache.find_rows("train").tolist()
    with torch.inference_mode():
        features = embedder.net.pool(cache.read_views(rows, [0] * len(rows)))
        found = embedder.net.adapters[0](features).numpy()
    expected = PCA(8, svd_solver="full").fit_transform(features.numpy())
    expected /= np.sqrt((expected**2).sum() / (len(rows) - 1))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert start.keys() == embedder.net.state_dict().keys()


def test_an_adapter_with_a_hidden_layer_is_left_alone(
    tiny_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    embedder, cache = build(tiny_config, phantom_dataset, tmp_path)
    before = embedder.net.adapters[0][0].weight.clone()
    begin_with_pca(embedder, cache)
    assert torch.equal(embedder.net.adapters[0][0].weight, before)


def test_fewer_images_than_dimensions_leave_the_rest_at_zero(
    linear_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    config = linear_config.with_overrides(["embedder.embedding_dim=64"])
    embedder, cache = build(config, phantom_dataset, tmp_path)
    begin_with_pca(embedder, cache)
    n_train = len(cache.find_rows("train"))
    weight = embedder.net.adapters[0][0].weight
    assert n_train < 64
    assert torch.count_nonzero(weight[n_train:]) == 0
    assert torch.isfinite(weight).all()


def test_the_average_by_hand(
    linear_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    embedder, cache = build(linear_config, phantom_dataset, tmp_path)
    net = embedder.net
    start = begin_with_pca(embedder, cache)
    with torch.no_grad():
        net.adapters[0][0].bias.fill_(4.0)
    start["adapters.0.0.bias"] = torch.full_like(start["adapters.0.0.bias"], 8.0)
    average_with_start(net, start, share=0.25)
    assert net.adapters[0][0].bias.tolist() == pytest.approx([5.0] * 8)
    kept = net.state_dict()["adapters.0.0.weight"]
    torch.testing.assert_close(kept, start["adapters.0.0.weight"])
