"""timm backbones cut into a frozen trunk and a trainable tail.

Owns the cut and running the trunk. Knows nothing of adapters or images.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from timm.layers import global_pool_nlc
from torch import Tensor, nn

from core.errors import BackboneError
from core.network.openvino import Run, compile_part, find_compiled
from core.network.weight_sources import (
    WeightSource,
    create_model,
    find_normalisation,
    load_pretrained,
)

_CPU_ROWS = 4  # images at a time through a torch trunk on a CPU; more is slower (cache misses)
_MIN_COMPILED_SIZE = 128  # below this a trunk is too fast to be worth compiling
# In bfloat16 their activations have a cosine of 0.9999 with float32; EfficientNet's, 0.99.
_HALF_FAMILIES = ("ConvNeXt", "SwinTransformer", "VisionTransformer", "Beit")
_TOKEN_FAMILIES = ("VisionTransformer", "Beit")


@dataclass(frozen=True)
class BackboneInfo:
    """Identifies the frozen trunk of a finished model; checked when it is loaded."""

    name: str
    trunk_hash: str
    source_kind: str
    source_location: str
    licence: str


class Tail(nn.Module):
    """The unfrozen end of a backbone: trunk activation in, pooled features (B, F) out."""

    def __init__(self, model: nn.Module, *, blocks: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.family = type(model).__name__
        self.pool_type: str = getattr(model, "global_pool", "") if self.is_tokens else ""
        self.n_prefix = int(getattr(model, "num_prefix_tokens", 0)) if self.is_tokens else 0
        self.head = _pooling_head(model, is_tokens=self.is_tokens)
        for module in self.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = False  # Grad-CAM hooks need values that are not overwritten

    @property
    def is_tokens(self) -> bool:
        """Whether activations are (B, N, C) tokens rather than a spatial map."""
        return self.family in _TOKEN_FAMILIES

    @property
    def cam_layer(self) -> nn.Module:
        """The layer whose output Grad-CAM weights: the last spatial features before pooling."""
        if self.is_tokens:
            last = list(self.blocks.children())[-1]
            norm1 = last.norm1
            assert isinstance(norm1, nn.Module)
            return norm1
        return self.blocks if self.family == "ConvNeXt" else self.norm

    def to_map(self, activation: Tensor) -> Tensor:
        """Arrange the output of ``cam_layer`` as (B, C, h, w)."""
        if self.is_tokens:
            tokens = activation[:, self.n_prefix :]
            side = round(tokens.shape[1] ** 0.5)
            return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)
        return activation.permute(0, 3, 1, 2) if self.family == "SwinTransformer" else activation

    def pool(self, activation: Tensor) -> Tensor:
        """Average a trunk activation over space: (B, C)."""
        if self.is_tokens:
            return activation[:, self.n_prefix :].mean(dim=1)
        return activation.mean(dim=(1, 2) if self.family == "SwinTransformer" else (2, 3))

    def body(self, activation: Tensor) -> Tensor:
        """Run the layers before the one that Grad-CAM weights; ``top`` continues from there."""
        if self.is_tokens:
            x: Tensor = self.blocks[:-1](activation)  # type: ignore[index]
            return x
        x = self.blocks(activation)
        return x if self.family == "ConvNeXt" else self.norm(x)

    def top(self, late: Tensor) -> Tensor:
        """Run the rest of the tail after ``body``, and pool: (B, F). Grad-CAM needs only this part.

        For tokens this is the last block; for a map, where the layer is the body's output, pooling.
        """
        x = late
        if self.is_tokens:
            x = self.norm(self.blocks[-1](x))  # type: ignore[index]
            x = global_pool_nlc(x, pool_type=self.pool_type, num_prefix_tokens=self.n_prefix)
        elif self.family == "ConvNeXt":
            x = self.norm(x)
        out: Tensor = self.head(x)
        return out

    def copy_with(self, convert: Callable[[Tensor], Tensor]) -> Self:
        """Copy the tail with converted parameters; buffers are copied unchanged."""
        converted = {
            id(p): nn.Parameter(convert(p.detach()), requires_grad=p.requires_grad)
            for p in self.parameters()
        }
        return copy.deepcopy(self, converted)

    def forward(self, activation: Tensor) -> Tensor:
        """Run the tail and pool: (B, F) float."""
        return self.top(self.body(activation))


@dataclass(frozen=True)
class Backbone:
    """One backbone, cut into trunk and tail. The trunk is in eval mode and has no gradients."""

    name: str
    input_size: int
    tail_depth: int
    trunk: nn.Module
    tail: Tail
    n_features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: WeightSource
    trunk_hash: str
    dtype: torch.dtype = torch.float32  # of the trunk's activations
    compiled: Run | None = None  # compiled trunk, independent of ``trunk``'s parameters

    @property
    def info(self) -> BackboneInfo:
        """The BackboneInfo that a model's configuration stores."""
        source = self.source
        return BackboneInfo(
            self.name, self.trunk_hash, source.kind, source.location, source.licence
        )

    def run_trunk(self, batch: Tensor) -> Tensor:
        """Normalise a (B, 3, S, S) batch in [0, 1] and return the trunk's activation."""
        normalised = self._normalise(batch)
        if self.compiled is not None:
            return self.compiled(normalised).to(self.dtype)
        kind = batch.device.type
        n_rows = _CPU_ROWS if kind == "cpu" else len(batch)
        mixed = self.dtype == torch.bfloat16 and not self.keeps_half
        pixels = normalised if mixed else normalised.to(self.dtype)
        with torch.inference_mode(), torch.autocast(kind, dtype=torch.bfloat16, enabled=mixed):
            parts = [
                self.trunk.forward_features(part)  # type: ignore[operator]
                for part in torch.split(pixels, n_rows)
            ]
            out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out.to(self.dtype)

    @property
    def keeps_half(self) -> bool:
        """Whether parameters and activations in bfloat16 do not change the answer."""
        return self.tail.family in _HALF_FAMILIES

    def _normalise(self, batch: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=batch.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(1, 3, 1, 1)
        return (batch - mean) / std

    def draw_example(self) -> Tensor:
        """Fixed (1, 3, S, S) noise in [0, 1], on which compiled parts are tested."""
        size = self.input_size
        return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def make_fast(self, *, half: bool, device: torch.device) -> "Backbone":
        """Return the backbone with its trunk on a device, in the fastest form found there.

        Args:
            half: run it in bfloat16: compiled or with bfloat16 parameters (the float32 ones are
                discarded) or, for a family that loses too much precision, mixed with float32.
            device: to run on.
        """
        trunk = self.trunk.to(device)
        compiled = None
        if precisions := self.list_compiled(half=half, device=device):
            compiled = compile_part(
                _Features(trunk, torch.float32),
                self._normalise(self.draw_example()),
                name=self._compiled_name,
                precisions=precisions,
                rival=(lambda: _Features(copy.deepcopy(trunk), torch.bfloat16)) if half else None,
            )
        if half and self.keeps_half:
            trunk = trunk.to("meta") if compiled else trunk.to(torch.bfloat16)
        dtype = torch.bfloat16 if half else torch.float32
        return replace(self, trunk=trunk, dtype=dtype, compiled=compiled)

    @property
    def _compiled_name(self) -> str:
        """Key of a compiled trunk: all that a model's file, which may be edited, states of it."""
        return f"{self.name}:{self.tail_depth}:{self.trunk_hash}"

    def find_fast(self, *, half: bool, device: torch.device) -> "Backbone | None":
        """Return the backbone with a trunk compiled earlier on this machine, or None."""
        precisions = self.list_compiled(half=half, device=device)
        shape = (1, 3, self.input_size, self.input_size)
        compiled = precisions and find_compiled(
            shape, name=self._compiled_name, precisions=precisions
        )
        dtype = torch.bfloat16 if half else torch.float32
        return replace(self, dtype=dtype, compiled=compiled) if compiled else None

    def list_compiled(self, *, half: bool, device: torch.device) -> tuple[str, ...]:
        """The precisions in which the trunk can be compiled; empty: it runs in torch."""
        is_mixed = half and not self.keeps_half
        if device.type != "cpu" or self.input_size < _MIN_COMPILED_SIZE or is_mixed:
            return ()
        return ("bf16",) if half else ("f32",)


class _Features(nn.Module):
    """A trunk as a plain module: image in, activation out, both float32."""

    def __init__(self, trunk: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.trunk = trunk.to(dtype)
        self.dtype = dtype

    def forward(self, batch: Tensor) -> Tensor:
        out: Tensor = self.trunk.forward_features(batch.to(self.dtype))  # type: ignore[operator]
        return out.float()


def build_backbone(
    name: str,
    *,
    input_size: int,
    tail_depth: int = 1,
    weights_dir: Path | None = None,
    random_weights: bool = False,
) -> Backbone:
    """Build a pretrained backbone and cut it.

    Args:
        name: timm model name, with or without a weight tag.
        input_size: side of the square input in pixels.
        tail_depth: number of last stages in the tail (twice as many blocks for ViT and BEiT).
        weights_dir: folder with ``<name>.safetensors`` or ``.pth`` files, tried first.
        random_weights: for tests only; seeded random parameters.

    Raises:
        BackboneError: unknown model, unsupported family, or no source of weights.
    """
    model, source = load_pretrained(
        name, input_size=input_size, weights_dir=weights_dir, random_weights=random_weights
    )
    key = f"{source.sha256}:{type(model).__name__}:{tail_depth}:{input_size}"
    info = BackboneInfo(
        name,
        hashlib.sha256(key.encode()).hexdigest()[:16],
        source.kind,
        source.location,
        source.licence,
    )
    return _assemble(model, info, source, input_size=input_size, tail_depth=tail_depth)


def sketch_backbone(info: BackboneInfo, *, input_size: int, tail_depth: int) -> Backbone | None:
    """Build the backbone of a finished model without reading pretrained weights.

    Its trunk has no values and can run only in compiled form. The values of its tail are undefined
    until the model's own are loaded.

    Returns:
        The backbone; None for families whose tails have values that a model's file does not store.
    """
    with torch.device("meta"):
        model = create_model(info.name, input_size=input_size)
    source = WeightSource(info.source_kind, info.source_location, "", info.licence)
    sketch = _assemble(model, info, source, input_size=input_size, tail_depth=tail_depth)
    tail = sketch.tail
    if {name for name, _ in tail.named_buffers()} - set(tail.state_dict()):
        return None
    return replace(sketch, tail=tail.to_empty(device="cpu"))


def _assemble(
    model: nn.Module, info: BackboneInfo, source: WeightSource, *, input_size: int, tail_depth: int
) -> Backbone:
    """Cut a whole timm model, which becomes the trunk."""
    model.eval().requires_grad_(False)
    mean, std = find_normalisation(model, source)
    trunk, tail = cut(model, tail_depth=tail_depth)
    return Backbone(
        name=info.name,
        input_size=input_size,
        tail_depth=tail_depth,
        trunk=trunk,
        tail=tail,
        n_features=int(model.num_features),  # type: ignore[arg-type]
        mean=mean,
        std=std,
        source=source,
        trunk_hash=info.trunk_hash,
    )


def cut(model: nn.Module, *, tail_depth: int) -> tuple[nn.Module, Tail]:
    """Cut a timm model: ``tail(trunk.forward_features(x))`` equals its pooled features.

    The model itself becomes the trunk; its last stages and norm move into the tail.
    """
    family = type(model).__name__
    if family not in _CUTS:
        raise BackboneError(
            f"backbone family {family} cannot be cut; supported: {', '.join(sorted(_CUTS))}.",
            code="backbone.family",
        )
    stages_name, norm_names, per_depth = _CUTS[family]
    stages = list(getattr(model, stages_name).children())
    n_tail = tail_depth * per_depth
    if n_tail >= len(stages):
        raise BackboneError(
            f"tail_depth {tail_depth} leaves no trunk: {family} has {len(stages)} blocks.",
            code="backbone.tail_depth",
        )
    norm = nn.Sequential(*[getattr(model, n) for n in norm_names])
    tail = Tail(model, blocks=nn.Sequential(*stages[-n_tail:]), norm=norm)
    container = nn.ModuleList if isinstance(getattr(model, stages_name), nn.ModuleList) else None
    kept = stages[:-n_tail]
    setattr(model, stages_name, container(kept) if container else nn.Sequential(*kept))
    for moved in (*norm_names, "head", "fc_norm"):
        if hasattr(model, moved):
            setattr(model, moved, nn.Identity())  # now in the tail; forward_features skips them
    return model, tail


# family: (attribute with the stages, norm-like modules after them, stages per unit of depth)
_CUTS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "EfficientNet": ("blocks", ("conv_head", "bn2"), 1),
    "ConvNeXt": ("stages", ("norm_pre",), 1),
    "SwinTransformer": ("layers", ("norm",), 1),
    "VisionTransformer": ("blocks", ("norm",), 2),
    "Beit": ("blocks", ("norm",), 2),
}


class _PooledHead(nn.Module):
    """timm's ConvNeXt / Swin head without its classifier."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x, pre_logits=True)
        return out


def _pooling_head(model: nn.Module, *, is_tokens: bool) -> nn.Module:
    if is_tokens:
        fc_norm = getattr(model, "fc_norm", nn.Identity())
        assert isinstance(fc_norm, nn.Module)
        return fc_norm
    if type(model).__name__ == "EfficientNet":
        pool = model.global_pool
        assert isinstance(pool, nn.Module)
        return pool
    head = model.head
    assert isinstance(head, nn.Module)
    return _PooledHead(head)
