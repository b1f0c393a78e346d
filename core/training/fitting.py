"""The training loop: batches from the trunk cache, the loss, Lightning, checkpoints.

Owns what one optimiser step sees and how the loop survives being killed. Every random draw depends
only on the run's seed and the step, so a run that was killed and resumed gives the same result as
an uninterrupted one.
"""

import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - Lightning's own idiom
import numpy as np
import torch
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.config import RunConfig
from core.network.embedder import Embedder, Progress
from core.network.net import N_CLASSES, EmbeddingNet
from core.training.objectives import LOSSES, Batch
from core.training.trunk_cache import TrunkCache

_STEPS_PER_GROUP = 20  # steps between two checkpoints: the most a kill can lose
_COLLAPSED = 0.02  # spread below this: all images point in nearly the same direction ...
_SEPARATION_ROWS = 256  # images compared with all others at a time
_NOT_APART = 1.1  # ... and between-class distances no larger than within-class distances

Log = Callable[[str], None]
Watch = Callable[[dict[str, float]], None]  # receives the metrics of the latest step


@dataclass(frozen=True)
class Step:
    """One optimiser step: which rows of the cache, and which view of each."""

    rows: tuple[int, ...]
    views: tuple[int, ...]


def draw_steps(
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    n_images_per_class: int,
    n_views: int,
    seed: int,
    epoch: int,
    is_stored: bool = True,
) -> list[Step]:
    """Draw one epoch of P x M batches: M images of every class, each with one view.

    An epoch shows the larger class once; the smaller class is oversampled.

    Args:
        labels: (N,) class of each row.
        rows: (N,) cache rows.
        n_images_per_class: M.
        n_views: augmented views to choose from, in addition to the clean one.
        seed: of the run.
        epoch: the same seed and epoch give the same steps.
        is_stored: False: use a fresh augmented view per epoch instead of a stored one.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    classes = [rows[labels == label] for label in np.unique(labels)]
    n_steps = max(1, round(max(len(c) for c in classes) / n_images_per_class))
    shown = []
    for members in classes:
        n_needed = n_steps * n_images_per_class
        n_rounds = -(-n_needed // len(members))
        order = np.concatenate([rng.permutation(members) for _ in range(n_rounds)])[:n_needed]
        shown.append(order.reshape(n_steps, n_images_per_class))
    steps = []
    for step_rows in np.concatenate(shown, axis=1):
        drawn = rng.integers(0, n_views + 1, len(step_rows)) if is_stored else None
        views = drawn.tolist() if drawn is not None else [epoch + 1] * len(step_rows)
        steps.append(Step(tuple(step_rows.tolist()), tuple(views)))
    return steps


class _StepDataset(Dataset[tuple[list[Tensor], Tensor]]):
    """Reads the batch of a step from the cache."""

    def __init__(self, cache: TrunkCache, steps: list[Step]) -> None:
        self.cache = cache
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        step = self.steps[index]
        labels = torch.tensor([self.cache.records[row].label for row in step.rows])
        return self.cache.read_views(step.rows, step.views), labels


class FittingModule(L.LightningModule):  # type: ignore[misc]
    """The loss of the objective on tails and adapters, each with its own learning rate.

    One Lightning epoch is a group of steps here, so that a checkpoint is written every few seconds,
    however long a pass over the data takes.
    """

    def __init__(self, net: EmbeddingNet, config: RunConfig, *, cache: TrunkCache) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.cache = cache
        aim = LOSSES[config.objective.name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.loss = aim.build(config)
            self.loss_lr = config.train.adapter_lr * aim.lr_factor
            has_auxiliary = config.objective.auxiliary_weight > 0 and net.classifier is None
            self.auxiliary = nn.Linear(net.n_features, N_CLASSES) if has_auxiliary else None
        rows = cache.find_rows("train")
        labels = np.array([cache.records[row].label for row in rows], dtype=np.int64)
        self.steps = [
            step
            for epoch in range(config.train.epochs)
            for step in draw_steps(
                labels,
                rows,
                n_images_per_class=config.train.n_images_per_class,
                n_views=config.train.n_views,
                seed=config.train.seed,
                epoch=epoch,
                is_stored=cache.is_stored,
            )
        ]

    @property
    def n_groups(self) -> int:
        """Number of Lightning epochs in the run."""
        return -(-len(self.steps) // _STEPS_PER_GROUP)

    def train_dataloader(self) -> DataLoader[tuple[list[Tensor], Tensor]]:
        """The steps of the current group; rebuilt for every group."""
        start = self.current_epoch * _STEPS_PER_GROUP
        chosen = self.steps[start : start + _STEPS_PER_GROUP]
        return DataLoader(_StepDataset(self.cache, chosen), batch_size=None, shuffle=False)

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW with differential learning rates; optional warm-up, then cosine decay to zero."""
        config = self.config.train
        heads = [self.net.adapters, self.net.classifier, self.auxiliary]
        head_params = [p for head in heads if head is not None for p in head.parameters()]
        groups: list[dict[str, object]] = [
            {"params": head_params, "lr": config.adapter_lr},
            {"params": list(self.net.tails.parameters()), "lr": config.tail_lr},
        ]
        if own := list(self.loss.parameters()):
            groups.append({"params": own, "lr": self.loss_lr})
        optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        schedule: torch.optim.lr_scheduler.LRScheduler
        n_warmup = round(config.warmup_share * len(self.steps))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, T_max=len(self.steps) - n_warmup
        )
        if n_warmup:
            rise = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=n_warmup)
            schedule = torch.optim.lr_scheduler.SequentialLR(
                optimiser, [rise, schedule], milestones=[n_warmup]
            )
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also read checkpoints of version 0.1, which stored the proxies under another name."""
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("proxies.")]:
            state[f"loss.{key}"] = state.pop(key)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:  # noqa: ARG002
        """Seed dropout from the step number, so that a resumed run draws the same masks."""
        torch.manual_seed(self.config.train.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch, and log the spread of the embeddings."""
        activations, labels = batch
        features = self.net.pool(activations)
        parts = self.net.embed_parts(features)
        seen = Batch(features, parts, labels, self.global_step, len(self.steps))
        loss: Tensor = self.loss(self.net, seen)
        if self.auxiliary is not None:
            # The auxiliary classifier lets features learn from every image, not only the hardest;
            # it is discarded afterwards (Luo et al. 2019, arXiv:1903.07071).
            weight = self.config.objective.auxiliary_weight
            loss = loss + weight * nn.functional.cross_entropy(self.auxiliary(features), labels)
        points = parts[0].detach().cpu().numpy()
        measured = {
            "spread": compute_spread(points),
            "separation": compute_separation(points, labels.cpu().numpy()),
            "active": compute_active(
                points, labels.cpu().numpy(), margin=self.config.objective.margin
            ),
        }
        self.log_dict({"loss": loss, **measured}, batch_size=len(labels))
        return loss


def compute_spread(embeddings: NDArray[np.float32]) -> float:
    """Spread of (N, D) unit embeddings: 0 at a single point, 1 balanced over the sphere."""
    return float(1.0 - np.linalg.norm(embeddings.mean(axis=0)))


def compute_separation(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Ratio of mean between-class to mean within-class distance; 1 is chance."""
    points = embeddings.astype(np.float64)
    total, within = 0.0, 0.0
    for start in range(0, len(points), _SEPARATION_ROWS):  # all pairs would not fit in memory
        apart = cdist(points[start : start + _SEPARATION_ROWS], points)
        total += apart.sum()
        within += apart[labels[start : start + _SEPARATION_ROWS, None] == labels[None]].sum()
    n_same = sum(n * n for n in np.bincount(labels).tolist())
    mean_within = within / (n_same - len(labels))
    return float((total - within) / (len(labels) ** 2 - n_same) / max(mean_within, 1e-12))


def compute_active(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], *, margin: float
) -> float:
    """Fraction of a batch's images whose hardest triplet still has a non-zero loss.

    Args:
        embeddings: (B, D); labels (B,) with at least two images of every class.
        margin: the loss is zero if the negative is at least this much farther than the positive.
    """
    points = embeddings.astype(np.float64)
    apart = cdist(points, points)
    is_same = labels[:, None] == labels[None]
    farthest = np.where(is_same, apart, 0.0).max(axis=1)
    nearest = np.where(is_same, np.inf, apart).min(axis=1)
    return float(np.mean(farthest - nearest + margin > 0))


class _Saver(L.Callback):  # type: ignore[misc]
    """After each group of steps: save a checkpoint atomically, log a line, report progress."""

    def __init__(
        self, path: Path, *, log: Log, progress: Progress | None, watch: Watch | None
    ) -> None:
        self.path = path
        self.write_log = log
        self.progress = progress
        self.watch = watch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: FittingModule) -> None:
        temporary = self.path.with_suffix(".writing")
        trainer.save_checkpoint(temporary)
        with temporary.open("rb") as handle:  # a power cut must not leave an empty file
            os.fsync(handle.fileno())
        os.replace(temporary, self.path)
        metrics = trainer.callback_metrics
        loss, spread = float(metrics["loss"]), float(metrics["spread"])
        separation = float(metrics["separation"])
        n_done, n_steps = trainer.global_step, len(pl_module.steps)
        self.write_log(
            f"step {n_done} of {n_steps}: loss {loss:.4f}, spread {spread:.4f}, "
            f"separation {separation:.2f}"
        )
        warning = find_collapse(spread, separation)
        if warning:
            self.write_log(warning)
        if self.progress:
            self.progress(n_done / n_steps, f"step {n_done} of {n_steps}, loss {loss:.3f}")
        if self.watch:
            rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            measured = {"loss": loss, "spread": spread, "separation": separation}
            measured |= {"active": float(metrics["active"])}
            measured |= {"adapter_lr": float(rates[0]), "tail_lr": float(rates[1])}
            mode = pl_module.net.training
            self.watch({"step": float(n_done), "n_steps": float(n_steps), **measured})
            pl_module.net.train(mode)  # embedding images sets the net to eval mode


def find_collapse(spread: float, separation: float) -> str | None:
    """Return a warning if the embedding has collapsed, else None.

    A narrow cone alone is not a collapse: distances inside it can still separate the classes.
    """
    if spread >= _COLLAPSED or separation >= _NOT_APART:
        return None
    return (
        f"WARNING: the embedding has collapsed (spread {spread:.4f}, separation {separation:.2f}): "
        "all images are at nearly the same place, so neighbours mean nothing. Lower "
        "train.adapter_lr and train.tail_lr, raise train.n_images_per_class, and check the labels "
        "with audit."
    )


def _find_checkpoint(path: Path, *, log: Log) -> Path | None:
    """The checkpoint to resume from; None if there is none or it is incomplete."""
    if not path.is_file():
        log("training begins")
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format; every entry has a checksum
            is_whole = archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError):
        is_whole = False
    if is_whole:
        log("training goes on from the last checkpoint")
        return path
    log(
        "WARNING: the last checkpoint cannot be read (it did not reach the disk whole): training "
        "begins anew; what went through the trunks is kept"
    )
    return None


def fit(
    embedder: Embedder,
    cache: TrunkCache,
    folder: Path,
    *,
    log: Log,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> None:
    """Train the tails and the adapter in place, from the last checkpoint if one can be read.

    Args:
        embedder: its net is trained, and is frozen and in eval mode afterwards.
        cache: complete.
        folder: of the run; ``last.ckpt`` in it is replaced after every group of steps.
        log: receives one line per group.
        progress: called with the fraction of steps done.
        watch: called with the metrics after every group of steps; it may embed images, but must
            not use torch's random generator or change a parameter.
    """
    embedder.net.requires_grad_(True).train()  # Lightning keeps the current mode
    module = FittingModule(embedder.net, embedder.config, cache=cache)
    last = folder / "last.ckpt"
    checkpoint = _find_checkpoint(last, log=log)
    with warnings.catch_warnings():
        # Batches are read from a memory map, so loader processes would only add copies.
        warnings.simplefilter("ignore", PossibleUserWarning)
        # Lightning 2.6 still uses an API that torch 2.14 deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(embedder.device.type, embedder.device.type),
            devices=1,
            max_epochs=module.n_groups,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[_Saver(last, log=log, progress=progress, watch=watch)],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    embedder.net.to(embedder.device).requires_grad_(False).eval()
