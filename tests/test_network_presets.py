"""Every preset at full size, with random weights behind the tests-only switch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config import PRESETS, RunConfig, Settings, build_preset
from core.data.datasets import Dataset
from core.explanations.methods import explain_vote
from core.network.build import build_embedder
from core.training.fitting import FittingModule
from core.training.trunk_cache import TrunkCache

FEATURES = {
    "paper": (1536, 1024),
    "swin-effnetv2": (1536, 1280),
    "convnextv2-beit": (1536, 1024),
    "compact": (768, 384),
    "offline": (1280, 1280),
}


def build_random(preset: str, *overrides: str) -> RunConfig:
    config = build_preset(preset).with_overrides(
        [
            "embedder.tta=false",
            "train.n_images_per_class=2",
            "train.epochs=1",
            "train.warmup_share=0.0",  # the rates are checked before the first step
            *overrides,
        ]
    )
    embedder = dataclasses.replace(config.embedder, random_weights=True)
    return dataclasses.replace(config, embedder=embedder)


def test_every_preset_is_named_here() -> None:
    assert set(FEATURES) == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "size"),
    [
        *((preset, 448) for preset in PRESETS if preset != "offline"),
        ("offline", 288),
        ("paper", 384),
    ],
)
def test_a_preset_trains_its_tails_alone_and_explains(
    preset: str,
    size: int,
    phantom_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("core.network.backbone.compile_part", lambda *_, **__: None)  # minutes each
    config = build_random(preset, f"preprocess.input_size={size}")
    embedder = build_embedder(config, Settings(device="cpu"))
    assert tuple(b.n_features for b in embedder.backbones) == FEATURES[preset]
    assert embedder.net.adapters[0][0].in_features == sum(FEATURES[preset])

    records = [*phantom_dataset.subset("train"), *phantom_dataset.subset("val")]
    cache = TrunkCache(tmp_path / "cache", embedder, records, is_stored=False)
    cache.build()
    module = FittingModule(embedder.net.requires_grad_(True), config, cache=cache)
    optimiser = module.configure_optimizers()["optimizer"]
    rates = [group["lr"] for group in optimiser.param_groups]
    assert rates == [config.train.adapter_lr, config.train.tail_lr]
    n_trained = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    n_net = sum(p.numel() for p in embedder.net.parameters())
    n_frozen = sum(p.numel() for b in embedder.backbones for p in b.trunk.parameters())
    assert module.auxiliary is not None  # trained with the net, discarded afterwards
    assert n_trained == n_net + sum(p.numel() for p in module.auxiliary.parameters())
    assert 0 < n_net < n_net + n_frozen
    assert not any(p.requires_grad for b in embedder.backbones for p in b.trunk.parameters())

    step = module.steps[0]
    labels = torch.tensor([records[row].label for row in step.rows])
    activations = cache.read_views(step.rows, step.views)
    before = [[p.clone() for p in b.trunk.parameters()] for b in embedder.backbones]
    tails = [p.clone() for p in embedder.net.tails.parameters()]
    embedder.net.train()
    parts = embedder.net.embed_parts(embedder.net.pool(activations))
    module.loss.triplet(parts[0], labels, module.loss.batch_hard(parts[0], labels)).backward()
    optimiser.step()
    changed = [
        not torch.equal(a, b) for a, b in zip(tails, embedder.net.tails.parameters(), strict=True)
    ]
    assert any(changed)
    for backbone, old in zip(embedder.backbones, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, backbone.trunk.parameters(), strict=True))

    embedder.net.requires_grad_(False).eval()
    with torch.inference_mode():
        points = embedder.net(activations).numpy()
    maps = explain_vote(
        embedder,
        [a[:1] for a in activations],
        class_index=1,
        neighbours=[[points[1:2], points[2:3]]],
        method="grad-cam",
    )
    assert set(maps) == set(config.embedder.backbones)
    for heatmap in maps.values():
        assert heatmap.ndim == 2
        assert np.isfinite(heatmap).all()
        assert 0.0 <= heatmap.min() <= heatmap.max() <= 1.0
