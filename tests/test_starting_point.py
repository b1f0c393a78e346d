"""Where fitting begins, by hand and against scikit-learn; what an average keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from core.config import RunConfig, Settings
from core.datasets import Dataset
from core.embedder import Embedder, build_embedder
from core.starting_point import average_with_start, begin_adapters, whiten_adapters
from core.trunk_cache import TrunkCache

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
    start = begin_adapters(embedder, cache)
    rows = cache.find_rows("train").tolist()
    with torch.inference_mode():
        features = embedder.net.pool(cache.read_views(rows, [0] * len(rows)))
        found = embedder.net.adapters[0](features).numpy()
    expected = PCA(8, svd_solver="full").fit_transform(features.numpy())
    expected /= np.sqrt((expected**2).sum() / (len(rows) - 1))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert start.keys() == embedder.net.state_dict().keys()


def measure_within(embedder: Embedder, cache: TrunkCache, views: range) -> np.ndarray:
    """Covariance of an adapter's outputs, each against the mean of its class's clean ones."""
    rows = cache.find_rows("train").tolist()
    labels = np.array([cache.records[row].label for row in rows])
    with torch.inference_mode():
        outputs = [
            embedder.net.adapters[0](embedder.net.pool(cache.read_views(rows, [v] * len(rows))))
            for v in views
        ]
    clean = outputs[0].numpy()
    means = np.array([clean[labels == label].mean(axis=0) for label in (0, 1)])
    residuals = np.concatenate([o.numpy() - means[labels] for o in outputs])
    return residuals.T @ residuals / len(residuals)


def test_whitening_makes_the_differences_within_a_class_alike_in_all_directions(
    linear_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    config = linear_config.with_overrides(["embedder.adapter_start=whitening"])
    embedder, cache = build(config, phantom_dataset, tmp_path)
    views = range(1 + cache.n_augmented)
    plain = linear_config.with_overrides([])
    other, _ = build(plain, phantom_dataset, tmp_path)
    begin_adapters(other, cache)
    begin_adapters(embedder, cache)
    before, after = (measure_within(e, cache, views) for e in (other, embedder))
    uneven = [np.linalg.cond(found) for found in (before, after)]
    assert uneven[0] > 10 * uneven[1]

    with torch.no_grad():  # training bends the adapter
        embedder.net.adapters[0][0].weight[0] *= 30
        embedder.net.adapters[0][0].bias += 1
    bent = np.linalg.cond(measure_within(embedder, cache, views))
    whiten_adapters(embedder, cache)
    assert bent > 100
    assert np.linalg.cond(measure_within(embedder, cache, views)) < bent / 10
    rows = cache.find_rows("train").tolist()
    with torch.inference_mode():
        pooled = embedder.net.pool(cache.read_views(rows, [0] * len(rows)))
        outputs = embedder.net.adapters[0](pooled).numpy()
    np.testing.assert_allclose(outputs.mean(axis=0), 0.0, atol=1e-3)
    assert outputs.var(axis=0, ddof=1).sum() == pytest.approx(1.0, rel=1e-3)


def test_an_adapter_begun_as_pca_is_not_whitened_at_the_end(
    linear_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    embedder, cache = build(linear_config, phantom_dataset, tmp_path)
    begin_adapters(embedder, cache)
    before = embedder.net.adapters[0][0].weight.clone()
    whiten_adapters(embedder, cache)
    assert torch.equal(embedder.net.adapters[0][0].weight, before)


def test_an_adapter_with_a_hidden_layer_is_left_alone(
    tiny_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    embedder, cache = build(tiny_config, phantom_dataset, tmp_path)
    before = embedder.net.adapters[0][0].weight.clone()
    begin_adapters(embedder, cache)
    assert torch.equal(embedder.net.adapters[0][0].weight, before)


def test_fewer_images_than_dimensions_leave_the_rest_at_zero(
    linear_config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    config = linear_config.with_overrides(["embedder.embedding_dim=64"])
    embedder, cache = build(config, phantom_dataset, tmp_path)
    begin_adapters(embedder, cache)
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
    start = begin_adapters(embedder, cache)
    with torch.no_grad():
        net.adapters[0][0].bias.fill_(4.0)
    start["adapters.0.0.bias"] = torch.full_like(start["adapters.0.0.bias"], 8.0)
    average_with_start(net, start, share=0.25)
    assert net.adapters[0][0].bias.tolist() == pytest.approx([5.0] * 8)
    kept = net.state_dict()["adapters.0.0.weight"]
    torch.testing.assert_close(kept, start["adapters.0.0.weight"])
