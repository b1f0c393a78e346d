"""Unit embeddings, batch independence, precision parity, the frozen BatchNorm of tails."""

import numpy as np
import pytest
import torch

from core.config import RunConfig, Settings, build_preset
from core.errors import ConfigError, ShapeError
from core.network.build import build_embedder
from core.network.devices import choose_device, choose_precision
from core.network.embedder import Embedder
from core.network.transforms import build_batch, build_views

CPU = Settings(device="cpu")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return build_embedder(build_preset("tiny-random"), CPU)


def pictures(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, 256, (50, 40 + i, 3), dtype=np.uint8) for i in range(n)]


def test_embeddings_are_unit_vectors_of_the_promised_width(embedder: Embedder) -> None:
    done = embedder.embed(pictures(3))
    assert done.embeddings.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(done.embeddings, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(done.descriptors, axis=1), 1.0, rtol=1e-5)


def test_many_equal_each_alone_and_inputs_stay(embedder: Embedder) -> None:
    images = pictures(11)
    copies = [image.copy() for image in images]
    told: list[float] = []
    together = embedder.embed(iter(images), n_images=11, progress=lambda done, _: told.append(done))
    alone = np.concatenate([embedder.embed([image]).embeddings for image in images])
    np.testing.assert_allclose(together.embeddings, alone, atol=1e-5)
    assert told == [8 / 11, 1.0]
    assert all(np.array_equal(a, b) for a, b in zip(images, copies, strict=True))


def test_four_views_equal_a_plain_reference(embedder: Embedder) -> None:
    image = pictures(1)[0]
    views = build_views(build_batch([image], size=64), tta=True)
    singles = [embedder.net(embedder.run_trunks(view)).detach()[0] for view in views]
    mean = torch.stack(singles).mean(0)
    expected = (mean / mean.norm()).numpy()
    np.testing.assert_allclose(embedder.embed([image]).embeddings[0], expected, atol=1e-5)


def test_a_flipped_image_embeds_nearly_the_same_with_views(embedder: Embedder) -> None:
    image = pictures(1)[0]
    both = embedder.embed([image, np.ascontiguousarray(image[:, ::-1])]).embeddings
    other = embedder.embed([pictures(2)[1]]).embeddings[0]
    assert both[0] @ both[1] > both[0] @ other


def test_the_seed_fixes_the_adapter_and_leaves_the_global_state() -> None:
    config = build_preset("tiny-random")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = build_embedder(config, CPU), build_embedder(config, CPU)
    other = build_embedder(config.with_overrides(["train.seed=7"]), CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.net.adapters[0][0].weight, two.net.adapters[0][0].weight)
    assert not torch.equal(one.net.adapters[0][0].weight, other.net.adapters[0][0].weight)


def test_batch_norm_of_the_tails_keeps_its_statistics_in_training() -> None:
    offline = build_preset("offline", recipe="report").with_overrides(["preprocess.input_size=64"])
    net = build_embedder(offline, CPU).net.train()
    norms = [m for m in net.tails.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    assert net.adapters[0][1].training


@pytest.mark.slow
def test_bfloat16_trunks_agree_with_float32() -> None:
    def embed(precision: str) -> np.ndarray:
        config: RunConfig = build_preset("offline").with_overrides(
            [f"embedder.precision={precision}"]
        )
        return build_embedder(config, CPU).embed(pictures(4)).embeddings

    exact, half = embed("float32"), embed("bfloat16")
    assert np.all((exact * half).sum(1) > 0.99)


def test_devices_and_precisions_are_resolved_or_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_precision("float32", torch.device("cpu")) == "float32"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="this machine has none"):
            choose_device("cuda")


def test_nothing_to_embed_is_an_error(embedder: Embedder) -> None:
    with pytest.raises(ShapeError, match="at least one image"):
        embedder.embed([])
