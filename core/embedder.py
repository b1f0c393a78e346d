"""Images to unit embeddings: trunks, tails, adapter; device and precision.

Owns the network. The trunks run without gradients, in bfloat16 where the machine has it and the
backbone keeps its answer in it, else in float32, compiled where that is faster. Tails are trained
in float32; of a finished model they run as its trunks do, or compiled in bfloat16 where a trial
finds that faster and in agreement. Gallery and queries go through the same function.
Knows nothing of neighbours, labels or files.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.backbones import Backbone, BackboneInfo, Tail, build_backbone, sketch_backbone
from core.config import EmbedderConfig, RunConfig, Settings
from core.engine import Run, compile_part
from core.errors import ConfigError
from core.transforms import build_test_views, merge_views

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
_BATCH_SIZE = 8
N_CLASSES = 2  # normal and disease


class EmbeddingNet(nn.Module):
    """What is trained and stored: one tail per backbone, and what stands on their features.

    That is one adapter for the triplet objective, three side by side for the metric ensemble, and
    a linear classifier for cross-entropy, whose embedding is the pooled features themselves.

    BatchNorm inside the tails keeps its pretrained statistics, in training too: batches of the
    cached activations are too small and too alike to re-estimate them.
    """

    def __init__(self, tails: Sequence[Tail], *, n_features: int, config: RunConfig) -> None:
        super().__init__()
        self.n_features = n_features
        self.tails = nn.ModuleList(tails)
        self.tails.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sizes = config.embedder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.adapters = nn.ModuleList(
                _build_adapter(n_features, sizes) for _ in range(config.objective.n_adapters)
            )
            is_classifier = config.objective.n_adapters == 0
            self.classifier = nn.Linear(n_features, N_CLASSES) if is_classifier else None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.tails.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def pool(self, activations: Sequence[Tensor]) -> Tensor:
        """Turn one trunk activation (B, ...) per backbone into (B, F) features."""
        features = [tail(a.float()) for tail, a in zip(self.tails, activations, strict=True)]
        return torch.cat(features, dim=1)

    def embed_parts(self, features: Tensor) -> list[Tensor]:
        """Turn (B, F) features into one (B, D) unit embedding per adapter."""
        outputs = [adapter(features) for adapter in self.adapters] or [features]
        return [nn.functional.normalize(output, dim=1) for output in outputs]

    def embed(self, features: Tensor) -> Tensor:
        """Turn (B, F) features into (B, P * D) unit embeddings, the parts side by side."""
        parts = self.embed_parts(features)
        joined: Tensor = torch.cat(parts, dim=1) / len(parts) ** 0.5
        return joined

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        """Turn one trunk activation (B, ...) per backbone into (B, P * D) unit embeddings."""
        return self.embed(self.pool(activations))


def _build_adapter(n_features: int, sizes: EmbedderConfig) -> nn.Sequential:
    if sizes.hidden_dim == 0:
        return nn.Sequential(nn.Linear(n_features, sizes.embedding_dim))
    return nn.Sequential(
        nn.Linear(n_features, sizes.hidden_dim),
        nn.BatchNorm1d(sizes.hidden_dim),
        nn.ReLU(),
        nn.Dropout(sizes.dropout),
        nn.Linear(sizes.hidden_dim, sizes.embedding_dim),
    )


@dataclass(frozen=True, eq=False)
class Embedded:
    """The outcome for B images. Activations stay on the device, for Grad-CAM."""

    embeddings: NDArray[np.float32]  # (B, D) unit length
    descriptors: NDArray[np.float32]  # (B, P) unit length, pooled frozen activations (novelty)
    class_probs: NDArray[np.float32] | None = None  # (B, C) of a classifier; None: the KNN votes
    activations: tuple[Tensor, ...] = ()  # per backbone (V, B, ...)
    late: tuple[Tensor, ...] = ()  # per backbone (V, B, ...): what Grad-CAM begins with
    view_embeddings: NDArray[np.float32] | None = None  # (V, B, D) of each view alone
    view_probs: NDArray[np.float32] | None = None  # (V, B, C) of a classifier, of each view alone

    def without_tensors(self) -> "Embedded":
        """The outcome alone: what may be kept for many images."""
        return Embedded(self.embeddings, self.descriptors, self.class_probs)


@dataclass(frozen=True, eq=False)
class FrozenTail:
    """A tail that is trained no more: its body in the fastest form, its top ready for Grad-CAM."""

    body: Run  # trunk activation (N, ...) -> late activation (N, ...)
    tail: Tail  # whose top goes on from there, in its own precision

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters of the top."""
        return next(self.tail.parameters()).dtype


@dataclass(frozen=True, eq=False)
class Embedder:
    """Frozen trunks and the trained net on one device. Read-only: shared by every user."""

    backbones: tuple[Backbone, ...]
    net: EmbeddingNet
    config: RunConfig
    device: torch.device
    frozen_tails: tuple[FrozenTail, ...] = ()  # of a finished model; empty while it is trained

    @property
    def precision(self) -> str:
        """How the trunks run here: "float32", "bfloat16", or "mixed"."""
        names = {str(b.dtype).removeprefix("torch.") for b in self.backbones}
        return names.pop() if len(names) == 1 else "mixed"

    def run_trunks(self, batch: Tensor) -> list[Tensor]:
        """Run every trunk once on (B, 3, S, S) in [0, 1]; activations in the trunk's precision."""
        batch = batch.to(self.device)
        return [backbone.run_trunk(batch) for backbone in self.backbones]

    def run_bodies(self, activations: Sequence[Tensor]) -> list[Tensor]:
        """Run every tail up to where Grad-CAM begins, on one (N, ...) activation per backbone."""
        with torch.inference_mode():
            if self.frozen_tails:
                pairs = zip(self.frozen_tails, activations, strict=True)
                return [frozen.body(a.to(self.device)) for frozen, a in pairs]
            tails = zip(self.backbones, activations, strict=True)
            return [b.tail.body(a.to(self.device).float()) for b, a in tails]

    def run_tops(self, late: Sequence[Tensor]) -> Tensor:
        """Finish what ``run_bodies`` began: (N, F) features, float32; differentiable."""
        if self.frozen_tails:
            pairs = zip(self.frozen_tails, late, strict=True)
            features = [f.tail.top(x.to(f.dtype)).float() for f, x in pairs]
        else:
            features = [b.tail.top(x) for b, x in zip(self.backbones, late, strict=True)]
        return torch.cat(features, dim=1)

    def freeze(self, *, name: str) -> "Embedder":
        """The same model for answering alone: its tails run the fastest way found here.

        Args:
            name: of the trained parameters (their hash); compiled tails are kept by it.
        """
        precision = choose_precision(self.config.embedder.precision, self.device)
        may_be_half = precision == "bfloat16"
        frozen = tuple(
            _freeze_tail(
                backbone, name=f"{name}:{index}", device=self.device, may_be_half=may_be_half
            )
            for index, backbone in enumerate(self.backbones)
        )
        return replace(self, frozen_tails=frozen)

    def embed_activations(self, activations: Sequence[Tensor]) -> Embedded:
        """Run the tails on the (V, B, ...) activations of B images, one tensor per backbone.

        Embeddings are the mean over the views, back on the unit sphere; a classifier's
        probabilities are the mean over the views.
        """
        n_views = activations[0].shape[0]
        self.net.eval()
        with torch.inference_mode():
            late = self.run_bodies([a.flatten(0, 1) for a in activations])
            features = self.run_tops(late)
            flat = self.net.embed(features)
            # Every adapter has its own sphere, on which its views are merged.
            n_parts = max(1, len(self.net.adapters))
            parts = flat.reshape(n_views, -1, flat.shape[1]).chunk(n_parts, dim=2)
            merged = torch.cat([merge_views(part) for part in parts], dim=1) / n_parts**0.5
            probs = by_view = None
            if self.net.classifier is not None:
                flat_probs = self.net.classifier(features).softmax(dim=1)
                by_view = _to_numpy(flat_probs.reshape(n_views, -1, N_CLASSES))
                probs = by_view.mean(axis=0)
        return Embedded(
            _to_numpy(merged),
            self._compute_descriptors([a[0] for a in activations]),
            probs,
            activations=tuple(activations),
            late=tuple(x.reshape(n_views, -1, *x.shape[1:]) for x in late),
            view_embeddings=_to_numpy(flat.reshape(n_views, -1, flat.shape[1])),
            view_probs=by_view,
        )

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> Embedded:
        """Embed a few images at once and keep their activations.

        Args:
            images: each (H, W, 3) uint8 RGB.
        """
        return embed_together([self], images)[0]

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
        batches, pending, n_done = list[Embedded](), list[NDArray[np.uint8]](), 0

        def flush() -> None:
            nonlocal n_done
            batches.append(self.embed_batch(pending).without_tensors())
            n_done += len(pending)
            pending.clear()
            if progress and n_images:
                progress(n_done / n_images, f"{n_done} of {n_images} images embedded")

        for image in images:
            pending.append(image)
            if len(pending) == _BATCH_SIZE:
                flush()
        if pending or not batches:
            flush()
        return join_embedded(batches)

    def _compute_descriptors(self, activations: Sequence[Tensor]) -> NDArray[np.float32]:
        """Pool (B, ...) frozen activations: per backbone unit length, then concatenated."""
        pooled = [
            nn.functional.normalize(backbone.tail.pool(a.float()), dim=1)
            for backbone, a in zip(self.backbones, activations, strict=True)
        ]
        return _to_numpy(nn.functional.normalize(torch.cat(pooled, dim=1), dim=1))


def join_embedded(batches: Sequence[Embedded]) -> Embedded:
    """Put the outcomes of several batches into one, without activations."""
    probs = [batch.class_probs for batch in batches if batch.class_probs is not None]
    return Embedded(
        np.concatenate([batch.embeddings for batch in batches]),
        np.concatenate([batch.descriptors for batch in batches]),
        np.concatenate(probs) if probs else None,
    )


def embed_together(
    embedders: Sequence[Embedder], images: Sequence[NDArray[np.uint8]]
) -> list[Embedded]:
    """Embed images with several models; a trunk that they have in common runs once.

    Args:
        embedders: the models, one or more.
        images: each (H, W, 3) uint8 RGB.

    Returns:
        One outcome per model, in order.
    """
    views: dict[tuple[object, ...], Tensor] = {}
    outputs: dict[tuple[object, ...], Tensor] = {}
    embedded = []
    for embedder in embedders:
        config = embedder.config
        shape: tuple[object, ...] = (config.preprocess.input_size, config.embedder.n_test_views)
        if config.embedder.exposure_views:
            shape = (*shape, config.preprocess)
        if shape not in views:
            views[shape] = build_test_views(images, config)
        seen = views[shape]
        keys = [(b.trunk_hash, b.dtype, *shape) for b in embedder.backbones]
        missing = [i for i, key in enumerate(keys) if key not in outputs]
        if missing:
            part = replace(embedder, backbones=tuple(embedder.backbones[i] for i in missing))
            for index, output in zip(missing, part.run_trunks(seen.flatten(0, 1)), strict=True):
                outputs[keys[index]] = output.reshape(len(seen), -1, *output.shape[1:])
        embedded.append(embedder.embed_activations([outputs[key] for key in keys]))
    return embedded


def _freeze_tail(
    backbone: Backbone, *, name: str, device: torch.device, may_be_half: bool
) -> FrozenTail:
    tail = backbone.tail
    if backbone.dtype == torch.bfloat16 and backbone.keeps_half:
        half = copy.deepcopy(tail).to(torch.bfloat16)
        return FrozenTail(lambda a: half.body(a.to(torch.bfloat16)), half)
    compiled = None
    is_mixed = backbone.dtype == torch.bfloat16 and device.type == "cpu"
    if backbone.compiled is not None or is_mixed:
        example = backbone.run_trunk(backbone.draw_example()).float()
        precisions = ("f32", "bf16") if may_be_half else ("f32",)
        compiled = compile_part(_Body(tail), example, name=name, precisions=precisions)
    return FrozenTail(compiled or (lambda a: tail.body(a.float())), tail)


class _Body(nn.Module):
    """The body of a tail as a plain module."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.tail = tail

    def forward(self, activation: Tensor) -> Tensor:
        return self.tail.body(activation)


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
        settings: device, threads and where local weights lie.
        shared: backbones of another model; those that this one needs too lend it their trunks.
        known: the trunks of a finished model, whose tails the caller loads; where one of them was
            compiled on this machine before, its pretrained weights are not read.

    Raises:
        BackboneError: no weights were found.
        ConfigError: the asked-for device is not there.
    """
    if settings.n_threads:
        torch.set_num_threads(settings.n_threads)
    device = choose_device(settings.device)
    backbones = tuple(
        _borrow(name, config, shared, device=device)
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
    """A finished model's trunk as it was compiled here before."""
    for info in known:
        if info.name == name:
            sketch = sketch_backbone(
                info,
                input_size=config.preprocess.input_size,
                tail_depth=config.embedder.tail_depth,
            )
            if sketch is not None:
                half = _is_half(config.embedder.precision, sketch, device)
                return sketch.find_fast(half=half, device=device)
    return None


def _borrow(
    name: str, config: RunConfig, shared: Sequence[Backbone], *, device: torch.device
) -> Backbone | None:
    """The same trunk with a tail of one's own, whose parameters the caller loads."""
    wanted = (name, config.preprocess.input_size, config.embedder.tail_depth)
    for backbone in shared:
        half = _is_half(config.embedder.precision, backbone, device)
        is_same = (backbone.name, backbone.input_size, backbone.tail_depth) == wanted
        if is_same and half == (backbone.dtype == torch.bfloat16):
            return replace(backbone, tail=copy.deepcopy(backbone.tail))
    return None


def _is_half(asked: str, backbone: Backbone, device: torch.device) -> bool:
    """Whether a trunk runs in bfloat16: as asked for, else where that is fast and harmless."""
    half = choose_precision(asked, device) == "bfloat16"
    return half and (asked != "auto" or backbone.keeps_half)


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


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a GPU, bytes."""

    name: str
    peak_bytes: int  # most that this process ever reserved on it
    free_bytes: int  # free now, with what this process holds


def read_gpu_memory(device: torch.device) -> GpuMemory | None:
    """What a CUDA device has and this process took; None for every other device."""
    if device.type != "cuda":
        return None
    free, _total = torch.cuda.mem_get_info(device)
    return GpuMemory(
        name=torch.cuda.get_device_name(device),
        peak_bytes=int(torch.cuda.max_memory_reserved(device)),
        free_bytes=int(free + torch.cuda.memory_reserved(device)),
    )


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
