"""The trainable part of the network: tails, adapters, classifier."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from core.config import EmbedderConfig, RunConfig
from core.network.backbone import Tail

N_CLASSES = 2  # normal and disease


class EmbeddingNet(nn.Module):
    """The trained and stored parameters: one tail per backbone, and adapters or a classifier.

    There is one adapter for the triplet objective and three for the metric ensemble. Cross-entropy
    has a linear classifier instead, and its embedding is the pooled features themselves.

    BatchNorm layers inside the tails keep their pretrained statistics even in training: batches of
    cached activations are too small and too similar to re-estimate them.
    """

    def __init__(self, tails: Sequence[Tail], *, n_features: int, config: RunConfig) -> None:
        super().__init__()
        self.n_features = n_features
        self.tails = nn.ModuleList(tails)
        sizes = config.embedder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.adapters = nn.ModuleList(
                _build_adapter(n_features, sizes) for _ in range(config.objective.n_adapters)
            )
            is_classifier = config.objective.n_adapters == 0
            self.classifier = nn.Linear(n_features, N_CLASSES) if is_classifier else None
        self.arrange()

    def arrange(self) -> Self:
        """Set the memory layout that is fastest for convolutions."""
        self.tails.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

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
        """Turn (B, F) features into (B, P * D) unit embeddings, with the parts concatenated."""
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
