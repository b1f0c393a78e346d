"""Images to unit embeddings: trunks, tails, adapter; device and precision.

Owns the network. The trunks run without gradients, in bfloat16 where the machine has it; the
tails and the adapter always run in float32. Gallery and queries go through the same function.
Knows nothing of neighbours, labels or files.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.backbones import Backbone, Tail, build_backbone
from core.config import EmbedderConfig, RunConfig, Settings
from core.errors import ConfigError
from core.transforms import build_batch, build_views, merge_views

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
_BATCH_SIZE = 8


class EmbeddingNet(nn.Module):
    """What is trained and stored: one tail per backbone and the adapter over their features.

    BatchNorm inside the tails keeps its pretrained statistics, in training too: batches of the
    cached activations are too small and too alike to re-estimate them.
    """

    def __init__(
        self, tails: Sequence[Tail], *, n_features: int, config: EmbedderConfig, seed: int
    ) -> None:
        super().__init__()
        self.tails = nn.ModuleList(tails)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapter = nn.Sequential(
                nn.Linear(n_features, config.hidden_dim),
                nn.BatchNorm1d(config.hidden_dim),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.hidden_dim, config.embedding_dim),
            )

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.tails.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        """Turn one trunk activation (B, ...) per backbone into (B, D) unit embeddings."""
        features = [tail(a.float()) for tail, a in zip(self.tails, activations, strict=True)]
        return nn.functional.normalize(self.adapter(torch.cat(features, dim=1)), dim=1)


@dataclass(frozen=True, eq=False)
class Embedded:
    """The outcome for B images. Activations stay on the device, for Grad-CAM."""

    embeddings: NDArray[np.float32]  # (B, D) unit length
    descriptors: NDArray[np.float32]  # (B, P) unit length, pooled frozen activations (novelty)
    activations: tuple[Tensor, ...] = ()  # per backbone (V, B, ...)


@dataclass(frozen=True, eq=False)
class Embedder:
    """Frozen trunks and the trained net on one device. Read-only: shared by every user."""

    backbones: tuple[Backbone, ...]
    net: EmbeddingNet
    config: RunConfig
    device: torch.device
    precision: str  # "float32" or "bfloat16": how the trunks run here

    def run_trunks(self, batch: Tensor) -> list[Tensor]:
        """Run every trunk once on (B, 3, S, S) in [0, 1]; activations in the trunk's precision."""
        batch = batch.to(self.device)
        half = self.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            outputs = [backbone.run_trunk(batch) for backbone in self.backbones]
        dtype = torch.bfloat16 if half else torch.float32
        return [output.to(dtype) for output in outputs]

    def embed_activations(self, activations: Sequence[Tensor]) -> Tensor:
        """Turn (V, B, ...) activations per backbone into (B, D): mean over views, unit length."""
        n_views = activations[0].shape[0]
        self.net.eval()
        with torch.inference_mode():
            flat = self.net([a.to(self.device).flatten(0, 1) for a in activations])
            return merge_views(flat.reshape(n_views, -1, flat.shape[1]))

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> Embedded:
        """Embed a few images at once and keep their activations.

        Args:
            images: each (H, W, 3) uint8 RGB.
        """
        preprocess, tta = self.config.preprocess, self.config.embedder.tta
        views = build_views(build_batch(images, size=preprocess.input_size), tta=tta)
        outputs = self.run_trunks(views.flatten(0, 1))
        activations = tuple(a.reshape(len(views), -1, *a.shape[1:]) for a in outputs)
        return Embedded(
            embeddings=_to_numpy(self.embed_activations(activations)),
            descriptors=self.compute_descriptors([a[0] for a in activations]),
            activations=activations,
        )

    def embed(
        self,
        images: Iterable[NDArray[np.uint8]],
        *,
        n_images: int | None = None,
        progress: Progress | None = None,
    ) -> Embedded:
        """Embed any number of images, a few at a time, without keeping activations.

        Args:
            images: each (H, W, 3) uint8 RGB; read lazily.
            n_images: their number, for the progress.
            progress: told the share done after each batch.

        Raises:
            ShapeError: an image has another shape, or there is none.
        """
        embeddings, descriptors, pending, n_done = [], [], list[NDArray[np.uint8]](), 0

        def flush() -> None:
            nonlocal n_done
            done = self.embed_batch(pending)
            embeddings.append(done.embeddings)
            descriptors.append(done.descriptors)
            n_done += len(pending)
            pending.clear()
            if progress and n_images:
                progress(n_done / n_images, f"{n_done} of {n_images} images embedded")

        for image in images:
            pending.append(image)
            if len(pending) == _BATCH_SIZE:
                flush()
        if pending or not embeddings:
            flush()
        return Embedded(np.concatenate(embeddings), np.concatenate(descriptors))

    def compute_descriptors(self, activations: Sequence[Tensor]) -> NDArray[np.float32]:
        """Pool (B, ...) frozen activations: per backbone unit length, then concatenated."""
        pooled = [
            nn.functional.normalize(backbone.tail.pool(a.float()), dim=1)
            for backbone, a in zip(self.backbones, activations, strict=True)
        ]
        return _to_numpy(nn.functional.normalize(torch.cat(pooled, dim=1), dim=1))


def build_embedder(config: RunConfig, settings: Settings) -> Embedder:
    """Build the network with pretrained backbones and a fresh, seeded adapter.

    Args:
        config: the run; ``train.seed`` seeds the adapter.
        settings: device, threads and where local weights lie.

    Raises:
        BackboneError: no weights were found.
        ConfigError: the asked-for device is not there.
    """
    if settings.n_threads:
        torch.set_num_threads(settings.n_threads)
    device = choose_device(settings.device)
    backbones = tuple(
        build_backbone(
            name,
            input_size=config.preprocess.input_size,
            tail_depth=config.embedder.tail_depth,
            weights_dir=settings.weights_dir,
            random_weights=config.embedder.random_weights,
        )
        for name in config.embedder.backbones
    )
    for backbone in backbones:
        backbone.trunk.to(device)
    net = EmbeddingNet(
        [b.tail for b in backbones],
        n_features=sum(b.n_features for b in backbones),
        config=config.embedder,
        seed=config.train.seed,
    )
    precision = choose_precision(config.embedder.precision, device)
    logger.info("embedder on %s, trunks in %s", device, precision)
    return Embedder(backbones, net.to(device).eval(), config, device, precision)


def choose_device(name: str) -> torch.device:
    """Resolve "auto" to the GPU where there is one.

    Raises:
        ConfigError: the named device is not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, there in available.items() if there), "cpu"))
    if not available.get(name, True):
        raise ConfigError(
            f"device {name} was asked for, but this machine has none; "
            "set NEIGHBORDX_DEVICE=auto or cpu.",
            code="config.device",
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve "auto": bfloat16 where the device computes in it natively, float32 elsewhere."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
