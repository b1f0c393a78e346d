"""The ModelBundle record: a loaded model with its configuration and arrays.

Owns the attributes through which the rest of the app uses a model. Reads and writes no files.
"""

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import RunConfig
from core.data.options import DataOptions, TrainingData
from core.errors import ConfigError
from core.files.names import find_path, read_path
from core.gallery.corrections import GalleryState
from core.gallery.novelty import NoveltyReference
from core.gallery.projection import Projection
from core.gallery.search import Gallery
from core.images.decode import decode
from core.models.marks import MODEL_ID
from core.network.backbone import BackboneInfo
from core.network.embedder import Embedder
from core.stats.calibration import Calibration

_N_SHOWN_BY_CLASSIFIER = 15
_N_SAMPLED = 512  # gallery rows sampled for the typical distance


@dataclass(frozen=True)
class BundleConfig:
    """config.json: everything needed to rebuild and describe the model."""

    model_id: str
    created: str  # ISO 8601, UTC
    run: RunConfig
    class_names: tuple[str, ...]  # in label order, normal first
    disease_index: int
    data_id: str
    data_root: str  # folder of the training images
    is_synthetic: bool
    backbones: tuple[BackboneInfo, ...]
    precision: str  # of the trunks when the gallery was embedded
    weights_sha256: str
    data_options: DataOptions = field(default_factory=DataOptions)  # how the data were read
    disease_reason: str = ""  # how it was decided which class is the disease; "" in old models

    @property
    def training_data(self) -> TrainingData:
        """What it was trained on, for reading data for it."""
        disease = self.class_names[self.disease_index]
        return TrainingData(disease, self.data_root, self.data_options)


@dataclass(frozen=True, eq=False)
class Contents:
    """The arrays and reports of a bundle, apart from its config and network."""

    gallery: Gallery
    novelty: NoveltyReference
    gallery_xy: NDArray[np.float32]  # (N, 2)
    projection_key: str
    calibration: Calibration
    metrics: dict[str, Any]
    thumbnails: tuple[bytes, ...]  # encoded images, at most 256 px; entry i is gallery row i
    card: str
    log: str = ""


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a vote: its weight, and how its gallery rows map to the ensemble's album."""

    bundle: "ModelBundle"
    weight: float
    album_rows: NDArray[np.int64]  # (N,) gallery row -> album position

    def find_row(self, place: int) -> int | None:
        """The gallery row of an album position; None if this member does not have the image."""
        return self._row_of.get(place)

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {place: row for row, place in enumerate(self.album_rows.tolist())}


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A loaded model. Shared by all users, so read-only; hold ``lock`` while it computes."""

    config: BundleConfig
    embedder: Embedder
    contents: Contents
    projection: Projection
    novelty_limit: float
    curation: GalleryState = field(default_factory=GalleryState)  # corrections made since training
    identity: str = ""  # hash of all that answers; empty for a model of an earlier version
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def model_id(self) -> str:
        """Name of the model's folder."""
        return self.config.model_id

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order, normal first."""
        return self.config.class_names

    @property
    def disease_class(self) -> str:
        """Name of the positive class."""
        return self.config.class_names[self.config.disease_index]

    @property
    def other_class(self) -> str:
        """Name of the class that is not the disease."""
        return self.config.class_names[1 - self.config.disease_index]

    @property
    def abstain_margin(self) -> float:
        """The model abstains if the probability is within this distance of 0.5."""
        return self.config.run.knn.abstain_margin

    @property
    def has_vote(self) -> bool:
        """Whether the nearest images decide the answer; a classifier only shows them."""
        return self.config.run.objective.n_adapters > 0

    @property
    def n_shown(self) -> int:
        """Number of neighbours shown: the K of the vote, or a fixed number for a classifier."""
        return self.contents.calibration.k if self.has_vote else _N_SHOWN_BY_CLASSIFIER

    @property
    def lead(self) -> "ModelBundle":
        """The model whose map is shown: itself."""
        return self

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The model itself, as the only member."""
        return (Member(self, 1.0, np.arange(len(self.gallery), dtype=np.int64)),)

    def find_image(self, index: int) -> tuple[Member, int]:
        """The member and gallery row behind an album position."""
        return self.members[0], index

    @property
    def training_data(self) -> TrainingData:
        """What it was trained on, for reading data for it."""
        return self.config.training_data

    @property
    def data_id(self) -> str:
        """Short hash of the training data, with the gallery's version if it was corrected."""
        version = self.curation.version
        return f"{self.config.data_id}+g{version}" if version else self.config.data_id

    @property
    def created(self) -> str:
        """When training finished, ISO 8601, UTC."""
        return self.config.created

    @property
    def is_synthetic(self) -> bool:
        """Whether it was trained on the synthetic demo images."""
        return self.config.is_synthetic

    @cached_property
    def gallery(self) -> Gallery:
        """The images that vote, with corrections applied."""
        return self.curation.apply(self.contents.gallery, self.class_names)

    @cached_property
    def typical_distance(self) -> float:
        """Median distance between two gallery images of one class, over a fixed sample.

        Infinite if no class has two images.
        """
        rng = np.random.default_rng(0)
        n = min(len(self.gallery), _N_SAMPLED)
        rows = np.sort(rng.choice(len(self.gallery), n, replace=False))
        points = self.gallery.embeddings[rows].astype(np.float64)
        apart = np.sqrt(np.maximum(2.0 - 2.0 * points @ points.T, 0.0))
        labels = self.gallery.labels[rows]
        is_pair = (labels[:, None] == labels[None]) & np.triu(np.ones((n, n), dtype=bool), k=1)
        return float(np.median(apart[is_pair])) if is_pair.any() else float("inf")

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return self.contents.metrics

    def thumbnail(self, index: int) -> NDArray[np.uint8]:
        """Thumbnail of a gallery row, (h, w, 3) uint8, at most 256 px."""
        return decode(self.encoded_thumbnail(index), name=self.gallery.keys[index]).pixels

    def encoded_thumbnail(self, index: int) -> bytes:
        """The same thumbnail as the stored PNG or JPEG file."""
        return self.contents.thumbnails[index]

    def has_original(self, index: int) -> bool:
        """Whether the training image is still at its original path."""
        root = read_path(self.config.data_root)
        return root.is_file() or find_path(root, self.gallery.keys[index]).is_file()


def check_model_id(model_id: str) -> str:
    """Return the id if it is a safe folder name.

    Raises:
        ConfigError: it is not safe.
    """
    if not MODEL_ID.fullmatch(model_id):
        raise ConfigError(
            f"model name {model_id!r}: expected 1 to 64 letters, digits, dots, dashes or "
            "underscores, beginning with a letter or digit.",
            code="config.model_id",
        )
    return model_id
