"""Images to unit embeddings: trunks, tails, adapter, views.

The trunks run without gradients, compiled where that is faster: in bfloat16 if the machine supports
it and the backbone's answers do not change, else in float32. Tails are trained in float32. In a
finished model they run like its trunks, or compiled in bfloat16 if a trial finds that faster and in
agreement. Gallery and queries go through the same function. Knows nothing of neighbours, labels or
files.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.config import RunConfig
from core.network.backbone import Backbone, Tail
from core.network.devices import choose_precision
from core.network.net import N_CLASSES, EmbeddingNet
from core.network.openvino import Run, compile_part
from core.network.transforms import build_batch, build_test_views, merge_views

Progress = Callable[[float, str], None]
_BATCH_SIZE = 8


@dataclass(frozen=True, eq=False)
class Embedded:
    """The output for B images. Activations stay on the device, for Grad-CAM."""

    embeddings: NDArray[np.float32]  # (B, D) unit length
    descriptors: NDArray[np.float32]  # (B, P) unit length, pooled frozen activations (novelty)
    class_probs: NDArray[np.float32] | None = None  # (B, C) of a classifier; None: KNN vote
    activations: tuple[Tensor, ...] = ()  # per backbone (V, B, ...)
    late: tuple[Tensor, ...] = ()  # per backbone (V, B, ...): input of Grad-CAM
    view_embeddings: NDArray[np.float32] | None = None  # (V, B, D) of each view alone
    view_probs: NDArray[np.float32] | None = None  # (V, B, C) of a classifier, of each view alone

    def without_tensors(self) -> "Embedded":
        """Return the output without activations, small enough to store for many images."""
        return Embedded(self.embeddings, self.descriptors, self.class_probs)


@dataclass(frozen=True, eq=False)
class FrozenTail:
    """A tail after training: its body in the fastest form, its top ready for Grad-CAM."""

    body: Run  # trunk activation (N, ...) -> late activation (N, ...)
    tail: Tail  # its top continues from there, in its own precision

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the top's parameters."""
        return next(self.tail.parameters()).dtype


@dataclass(frozen=True, eq=False)
class Embedder:
    """Frozen trunks and the trained net on one device. Read-only, because shared by all users."""

    backbones: tuple[Backbone, ...]
    net: EmbeddingNet
    config: RunConfig
    device: torch.device
    frozen_tails: tuple[FrozenTail, ...] = ()  # of a finished model; empty during training

    @property
    def precision(self) -> str:
        """The precision of the trunks: "float32", "bfloat16", or "mixed"."""
        names = {str(b.dtype).removeprefix("torch.") for b in self.backbones}
        return names.pop() if len(names) == 1 else "mixed"

    def run_trunks(self, batch: Tensor) -> list[Tensor]:
        """Run every trunk once on (B, 3, S, S) in [0, 1]; activations in the trunk's precision."""
        batch = batch.to(self.device)
        return [backbone.run_trunk(batch) for backbone in self.backbones]

    def run_bodies(self, activations: Sequence[Tensor]) -> list[Tensor]:
        """Run every tail up to Grad-CAM's input, on one (N, ...) activation per backbone."""
        with torch.inference_mode():
            if self.frozen_tails:
                pairs = zip(self.frozen_tails, activations, strict=True)
                return [frozen.body(a.to(self.device)) for frozen, a in pairs]
            tails = zip(self.backbones, activations, strict=True)
            return [b.tail.body(a.to(self.device).float()) for b, a in tails]

    def run_tops(self, late: Sequence[Tensor]) -> Tensor:
        """Run the rest of the tails after ``run_bodies``: (N, F) float32; differentiable."""
        if self.frozen_tails:
            pairs = zip(self.frozen_tails, late, strict=True)
            features = [f.tail.top(x.to(f.dtype)).float() for f, x in pairs]
        else:
            features = [b.tail.top(x) for b, x in zip(self.backbones, late, strict=True)]
        return torch.cat(features, dim=1)

    def freeze(self, *, name: str) -> "Embedder":
        """Prepare the model for inference, with its tails in their fastest form.

        Args:
            name: hash of the trained parameters, under which compiled tails are cached.
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

        Embeddings are the mean over the views, renormalised; a classifier's
        probabilities are the mean over the views.
        """
        n_views = activations[0].shape[0]
        self.net.eval()
        with torch.inference_mode():
            late = self.run_bodies([a.flatten(0, 1) for a in activations])
            features = self.run_tops(late)
            flat = self.net.embed(features)
            # Views are merged on each adapter's own unit sphere.
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

    def embed_cached(self, batches: Iterable[Sequence[Tensor]]) -> Embedded:
        """Embed activations batch by batch (see ``embed_activations``), without keeping them."""
        return join_embedded([self.embed_activations(b).without_tensors() for b in batches])

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> Embedded:
        """Embed a few images at once keeping their activations.

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
            n_images: their number, for progress reports.
            progress: called with the fraction done after each batch.

        Raises:
            ShapeError: an image has the wrong shape, or there are no images.
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

    def describe(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Descriptors (B, P) of a few images, as in ``Embedded``, without their embeddings.

        Args:
            images: each (H, W, 3) uint8 RGB.
        """
        batch = build_batch(images, size=self.config.preprocess.input_size)
        with torch.inference_mode():
            return self._compute_descriptors(self.run_trunks(batch))

    def _compute_descriptors(self, activations: Sequence[Tensor]) -> NDArray[np.float32]:
        """Pool (B, ...) frozen activations: unit length per backbone, then concatenated."""
        pooled = [
            nn.functional.normalize(backbone.tail.pool(a.float()), dim=1)
            for backbone, a in zip(self.backbones, activations, strict=True)
        ]
        return _to_numpy(nn.functional.normalize(torch.cat(pooled, dim=1), dim=1))


def join_embedded(batches: Sequence[Embedded]) -> Embedded:
    """Concatenate the outputs of several batches, without activations."""
    probs = [batch.class_probs for batch in batches if batch.class_probs is not None]
    return Embedded(
        np.concatenate([batch.embeddings for batch in batches]),
        np.concatenate([batch.descriptors for batch in batches]),
        np.concatenate(probs) if probs else None,
    )


def embed_together(
    embedders: Sequence[Embedder], images: Sequence[NDArray[np.uint8]]
) -> list[Embedded]:
    """Embed images with several models; trunks that they share run once.

    Args:
        embedders: the models, one or more.
        images: each (H, W, 3) uint8 RGB.

    Returns:
        One output per model, in order.
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
        half = tail.copy_with(lambda p: p.to(torch.bfloat16)).to(torch.bfloat16)
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


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
