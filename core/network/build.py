"""Build an Embedder from a RunConfig, reusing or compiling its trunks."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from core.config import RunConfig, Settings
from core.network.backbone import Backbone, BackboneInfo, build_backbone, sketch_backbone
from core.network.devices import choose_device, choose_precision
from core.network.embedder import Embedder
from core.network.net import EmbeddingNet

logger = logging.getLogger(__name__)


def build_embedder(
    config: RunConfig,
    settings: Settings,
    *,
    shared: Sequence[Backbone] = (),
    known: Sequence[BackboneInfo] = (),
) -> Embedder:
    """Build the network with pretrained backbones and a fresh, seeded adapter.

    Args:
        config: the run; ``train.seed`` seeds the adapter.
        settings: device, threads and the folder of local weights.
        shared: backbones of other models; matching ones share their trunks with this one.
        known: the trunks of a finished model, whose tails the caller loads; if one was compiled on
            this machine before, its pretrained weights are not read.

    Raises:
        BackboneError: no weights were found.
        ConfigError: the requested device is not available.
    """
    if settings.n_threads:
        torch.set_num_threads(settings.n_threads)
    device = choose_device(settings.device)
    backbones = tuple(
        _borrow(name, config, shared, known=known, device=device)
        or _find_fast(name, config, known, device=device)
        or _build_fast(name, config, settings, device=device)
        for name in config.embedder.backbones
    )
    net = EmbeddingNet(
        [b.tail for b in backbones],
        n_features=sum(b.n_features for b in backbones),
        config=config,
    )
    embedder = Embedder(backbones, net.to(device).eval(), config, device)
    logger.info("embedder on %s, trunks in %s", device, embedder.precision)
    return embedder


def _build_fast(
    name: str, config: RunConfig, settings: Settings, *, device: torch.device
) -> Backbone:
    backbone = build_backbone(
        name,
        input_size=config.preprocess.input_size,
        tail_depth=config.embedder.tail_depth,
        weights_dir=settings.weights_dir,
        random_weights=config.embedder.random_weights,
    )
    half = _is_half(config.embedder.precision, backbone, device)
    return backbone.make_fast(half=half, device=device)


def _find_fast(
    name: str, config: RunConfig, known: Sequence[BackboneInfo], *, device: torch.device
) -> Backbone | None:
    """Find a finished model's trunk compiled earlier on this machine."""
    info = next((info for info in known if info.name == name), None)
    if info is None or device.type != "cpu":
        return None
    sketch = sketch_backbone(
        info,
        input_size=config.preprocess.input_size,
        tail_depth=config.embedder.tail_depth,
    )
    if sketch is None:
        return None
    half = _is_half(config.embedder.precision, sketch, device)
    return sketch.find_fast(half=half, device=device)


def _borrow(
    name: str,
    config: RunConfig,
    shared: Sequence[Backbone],
    *,
    known: Sequence[BackboneInfo],
    device: torch.device,
) -> Backbone | None:
    """Share a trunk, with a separate tail whose parameters the caller loads."""
    wanted = (name, config.preprocess.input_size, config.embedder.tail_depth)
    hashes = {info.trunk_hash for info in known if info.name == name}
    for backbone in shared:
        if hashes and backbone.trunk_hash not in hashes:
            continue  # the same name with other weights
        half = _is_half(config.embedder.precision, backbone, device)
        is_same = (backbone.name, backbone.input_size, backbone.tail_depth) == wanted
        if is_same and half == (backbone.dtype == torch.bfloat16):
            fill = torch.empty_like if known else torch.clone
            return replace(backbone, tail=backbone.tail.copy_with(fill))
    return None


def _is_half(asked: str, backbone: Backbone, device: torch.device) -> bool:
    """Whether a trunk runs in bfloat16: as requested, or if fast and harmless."""
    half = choose_precision(asked, device) == "bfloat16"
    return half and (asked != "auto" or backbone.keeps_half)
