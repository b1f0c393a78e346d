"""Images to unit embeddings: trunks, tails, adapter; device and precision."""

from core.embedder.building import build_embedder
from core.embedder.devices import (
    GpuMemory,
    choose_device,
    choose_precision,
    read_gpu_memory,
)
from core.embedder.embedding import (
    Embedded,
    Embedder,
    FrozenTail,
    Progress,
    embed_together,
    join_embedded,
)
from core.embedder.net import N_CLASSES, EmbeddingNet

__all__ = [
    "N_CLASSES",
    "Embedded",
    "Embedder",
    "EmbeddingNet",
    "FrozenTail",
    "GpuMemory",
    "Progress",
    "build_embedder",
    "choose_device",
    "choose_precision",
    "embed_together",
    "join_embedded",
    "read_gpu_memory",
]
