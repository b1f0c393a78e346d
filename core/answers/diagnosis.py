"""The Diagnosis record: one image's answer and all the evidence behind it.

Owns the record that the command line, the pages and notebooks share. Computes nothing: everything
a page shows is already in the record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.images.notices import Notice
from core.images.text_region import TextRegion

RESEARCH_USE = "Research use, not a diagnosis."
Status = Literal["answered", "abstained", "rejected"]


def write_percent(share: float) -> str:
    """Format a fraction as a percentage: "<1 %" or ">99 %" where it would round to 0 or 100 %."""
    if 1e-6 < share < 0.005:
        return "<1 %"
    if 0.995 <= share < 1.0 - 1e-6:
        return ">99 %"
    return f"{share * 100:.0f} %"


@dataclass(frozen=True)
class Neighbour:
    """One line of the vote ledger: a training image and what it contributed."""

    rank: int  # by distance among all eligible images; 1 is the nearest
    index: int  # row of the gallery
    key: str  # image key: the path inside the data folder
    label: int
    class_name: str
    distance: float  # Euclidean, between unit embeddings, 0..2; in an ensemble, the members' mean
    weight: float  # 1 / distance; in an ensemble, the mean over its members
    share: float  # share of the vote; the shares in a ledger sum to 1


@dataclass(frozen=True)
class Novelty:
    """How far the image lies from the gallery in the frozen backbones' feature space."""

    distance_percentile: float  # among the gallery's own leave-one-out distances, 0..100
    is_novel: bool  # beyond the limit: out of distribution

    @property
    def is_beyond_all(self) -> bool:
        """Whether the image is farther from the gallery than every training image."""
        return self.distance_percentile >= 100.0


@dataclass(frozen=True)
class MemberVote:
    """One model's probabilities and its weight in the ensemble (1.0 for a single model)."""

    model_id: str
    probabilities: dict[str, float]
    weight: float

    @property
    def leaning(self) -> str:
        """The more probable class; the first class on a tie."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


@dataclass(frozen=True)
class LeftOut:
    """A gallery image that was excluded from the vote on this image, and why."""

    index: int
    key: str
    reason: Literal["duplicate", "group"]


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One backbone's heatmap for one class."""

    backbone: str
    class_name: str
    values: NDArray[np.float32]  # (h, w) in [0, 1], at the network's resolution
    views: NDArray[np.float32]  # (V, h, w) one per test-time view, mapped back to upright
    method: str = "grad-cam"  # a key of ``core.explanations.methods``


@dataclass(frozen=True)
class ReaderRead:
    """A reader's committed read, and whether it came before the answer was shown."""

    class_name: str
    confidence: float  # 0.5 (a guess) to 1 (certain)
    created: str  # ISO 8601, UTC
    is_before_answer: bool = True


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Everything known about one image. A rejected file has an ``error`` and no evidence."""

    file: str
    status: Status
    model_id: str
    data_id: str
    created: str  # ISO 8601, UTC
    disease_class: str
    predicted_class: str | None = None  # if abstained, the more probable class; None if rejected
    probabilities: dict[str, float] = field(default_factory=dict)  # calibrated, sum to 1
    vote_shares: dict[str, float] = field(default_factory=dict)  # ledger shares summed by class
    k: int = 0
    neighbours: tuple[Neighbour, ...] = ()
    nearest_other: Neighbour | None = None  # nearest case of the class not predicted
    left_out: tuple[LeftOut, ...] = ()
    members: tuple[MemberVote, ...] = ()
    novelty: Novelty | None = None
    maps: tuple[Heatmap, ...] = ()  # per class and backbone
    view_probabilities: tuple[float, ...] = ()  # of disease, from each test-time view alone
    close_limit: float = float("inf")  # a case closer than this counts as similar
    map_xy: tuple[float, float] | None = None
    pixels: NDArray[np.uint8] | None = None  # (H, W, 3), what the model was given, at most 1024 px
    abstain_reason: Literal["uncertain", "novel"] | None = None
    sha256: str = ""  # of the file's bytes; empty if it was not read
    frame: int = 0  # index within the file, from 0
    n_frames: int = 1  # in the file
    window: tuple[float, float] | None = None  # centre and width, if one was applied
    is_inverted: bool = False
    burned_in: tuple[TextRegion, ...] = ()  # regions that look like text, except the mark below
    has_synthetic_mark: bool = False  # has the mark of core.images.phantom: synthetic
    notices: tuple[Notice, ...] = ()  # how the file was read, where that is not obvious
    overlay: NDArray[np.bool_] | None = None  # (H, W) of pixels: graphics beside it, never read
    reader: ReaderRead | None = None
    software: str = ""  # the NeighborDx version that produced the answer
    model_identity: str = ""  # hash of the model's files; empty for a model of an earlier version
    error: str | None = None
    error_code: str | None = None
    error_params: Mapping[str, object] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model and the start of its identity, for exports."""
        known = f" ({self.model_identity[:16]})" if self.model_identity else ""
        return f"{self.model_id}{known}"

    @property
    def answer(self) -> str | None:
        """The predicted class; None if the model abstained or the file was rejected."""
        return self.predicted_class if self.status == "answered" else None

    @property
    def heatmaps(self) -> dict[str, NDArray[np.float32]]:
        """Backbone name -> (h, w) heatmap for the predicted class."""
        return self.heatmaps_for(self.predicted_class or "")

    def heatmaps_for(self, class_name: str) -> dict[str, NDArray[np.float32]]:
        """Backbone name -> (h, w) heatmap in [0, 1] for a class."""
        return {m.backbone: m.values for m in self.maps if m.class_name == class_name}

    @property
    def members_agree(self) -> bool:
        """Whether all models favour the same class."""
        return len({member.leaning for member in self.members}) <= 1

    @property
    def has_close_case(self) -> bool:
        """Whether the nearest training image is within ``close_limit``."""
        return bool(self.neighbours) and self.nearest_distance <= self.close_limit

    @property
    def nearest(self) -> Neighbour | None:
        """The nearest training image shown, whether or not it voted."""
        shown = (*self.neighbours, *filter(None, [self.nearest_other]))
        return min(shown, key=lambda n: n.distance, default=None)

    @property
    def nearest_distance(self) -> float:
        """Distance to the nearest training image shown; inf if there is none."""
        return self.nearest.distance if self.nearest else float("inf")
