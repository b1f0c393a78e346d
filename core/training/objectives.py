"""The table of training objectives: the loss of each, and how the report describes it.

To add one, put its loss here, an entry in ``LOSSES``, and its name with its number of adapters in
``core.config.sections.OBJECTIVES``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import (
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.miners import (
    BatchHardMiner,
    MultiSimilarityMiner,
    TripletMarginMiner,
)
from torch import Tensor, nn

from core.config import ObjectiveConfig, RunConfig
from core.network.net import N_CLASSES, EmbeddingNet

_PROXY_LR_FACTOR = 100.0  # proxies start at random and must move far (Kim et al. 2020, section 4.2)


@dataclass(frozen=True, eq=False)
class Batch:
    """Input to a loss for one optimiser step, from a single run of the net."""

    features: Tensor  # (B, F), pooled
    parts: list[Tensor]  # per adapter (B, D) unit embeddings
    labels: Tensor  # (B,) class index
    step: int  # step number in the run, from 0
    n_steps: int


class ClassifierLoss(nn.Module):
    """Cross-entropy of the net's own classifier."""

    def forward(self, net: EmbeddingNet, batch: Batch) -> Tensor:
        """The loss of one batch."""
        assert net.classifier is not None
        return nn.functional.cross_entropy(net.classifier(batch.features), batch.labels)


class TripletLoss(nn.Module):
    """Triplet loss with batch-hard mining on the first adapter's embedding.

    Mining the hardest pairs from the start can collapse all images into one point
    (Schroff et al. 2015, arXiv:1503.03832, section 3.2): semi-hard pairs can be used first.

    Reference: Hermans et al. 2017, arXiv:1703.07737.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        aim = config.objective
        distance = LpDistance(p=2, power=1, normalize_embeddings=False)
        self.semihard_share = aim.semihard_share
        self.batch_hard = BatchHardMiner(distance=distance)
        self.semi_hard = TripletMarginMiner(
            margin=aim.margin, type_of_triplets="semihard", distance=distance
        )
        self.triplet = TripletMarginLoss(margin=aim.margin, distance=distance)

    def forward(self, net: EmbeddingNet, batch: Batch) -> Tensor:  # noqa: ARG002
        """The loss of one batch."""
        points, labels = batch.parts[0], batch.labels
        is_early = batch.step < round(self.semihard_share * batch.n_steps)
        miner = self.semi_hard if is_early else self.batch_hard
        loss: Tensor = self.triplet(points, labels, miner(points, labels))
        return loss


class MetricEnsembleLoss(nn.Module):
    """Three adapters, each with a loss of its own: triplet, multi-similarity, proxy-anchor.

    Reference: Wang et al. 2019, arXiv:1904.06627 (multi-similarity); Kim et al. 2020,
    arXiv:2003.13911 (proxy-anchor).
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.triplet = TripletLoss(config)
        self.similarity_miner = MultiSimilarityMiner()
        self.similarity = MultiSimilarityLoss()
        self.proxies = ProxyAnchorLoss(
            num_classes=N_CLASSES, embedding_size=config.embedder.embedding_dim
        )

    def forward(self, net: EmbeddingNet, batch: Batch) -> Tensor:
        """The loss of one batch."""
        _, similar, near_proxy = batch.parts
        labels = batch.labels
        loss: Tensor = self.triplet(net, batch)
        loss = loss + self.similarity(similar, labels, self.similarity_miner(similar, labels))
        loss = loss + self.proxies(near_proxy, labels)
        return loss


@dataclass(frozen=True)
class Loss:
    """One objective: how its loss is built, and how a report describes it."""

    build: Callable[[RunConfig], nn.Module]  # its own parameters are trained with the adapters
    describe: Callable[[ObjectiveConfig], str]  # a noun phrase
    lr_factor: float = 1.0  # learning rate of the loss's own parameters, relative to the adapters'


def _describe_triplet(aim: ObjectiveConfig) -> str:
    text = f"triplet loss, margin {aim.margin:g}, on the hardest triplets of a batch"
    if aim.semihard_share:
        text += f" (on semi-hard ones in the first {aim.semihard_share:.0%} of the steps)"
    return text


LOSSES: Mapping[str, Loss] = {
    "triplet": Loss(TripletLoss, _describe_triplet),
    "cross-entropy": Loss(
        lambda _config: ClassifierLoss(), lambda _aim: "cross-entropy of the classifier"
    ),
    "metric-ensemble": Loss(
        MetricEnsembleLoss,
        lambda aim: (
            f"{_describe_triplet(aim)}, multi-similarity loss and proxy-anchor loss, each on an "
            "adapter of its own"
        ),
        lr_factor=_PROXY_LR_FACTOR,
    ),
}
