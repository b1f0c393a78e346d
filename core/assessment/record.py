"""The Evaluation record: one model measured on one split.

Storage is in core.assessment.store.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.images.decode import decode
from core.stats.shift import Answers


def name_evaluation(data_id: str, split: str) -> str:
    """Build the folder name of an evaluation."""
    return f"{data_id}-{split}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model's answers and metrics on one split."""

    result: Mapping[str, Any]  # the ``evaluate`` JSON of DESIGN section 4
    weights_sha256: str
    gallery_id: str  # of the gallery that voted: training data and correction version
    created: str  # ISO 8601, UTC
    seconds: float
    data_name: str
    data_root: str
    disease_class: str
    other_class: str
    is_synthetic: bool
    abstain_margin: float
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]  # extra columns of the manifest
    k_curves: Mapping[str, tuple[Mapping[str, float], ...]]  # member -> k, accuracy, auroc
    k_validation: Mapping[str, tuple[Mapping[str, float], ...]]  # on validation, where K was chosen
    is_disease: NDArray[np.bool_]  # (N,)
    p_disease: NDArray[np.float64]  # (N,)
    member_p: NDArray[np.float64]  # (M, N)
    is_novel: NDArray[np.bool_]  # (N,)
    percentile: NDArray[np.float64]  # (N,) of the novelty score
    distance: NDArray[np.float64]  # (N,) mean embedding distance to the 5 nearest gallery images
    embeddings: tuple[NDArray[np.float32], ...]  # per member (N, D)
    thumbnails: tuple[bytes, ...]  # encoded pictures

    @property
    def name(self) -> str:
        """The name of the evaluation's folder."""
        return name_evaluation(str(self.result["data"]), str(self.result["split"]))

    @property
    def model_id(self) -> str:
        """The id of the model that was evaluated."""
        return str(self.result["model_id"])

    @property
    def is_same_data(self) -> bool:
        """Whether the images are from the same data set that the model was trained on."""
        return str(self.result["data"]) in self.gallery_id.split("+")

    @property
    def n_known(self) -> int:
        """Number of images used to train or calibrate the model, wherever they are stored now."""
        counts = ("n_in_gallery", "n_in_validation")  # older evaluations did not count them
        return sum(int(self.result.get(name, 0)) for name in counts)

    @property
    def is_internal(self) -> bool:
        """Whether any of the images are from the data that the model was trained on."""
        return self.is_same_data or self.n_known > 0

    @property
    def is_fitted_on(self) -> bool:
        """Whether the model was trained, or its K or calibration fitted, on any of these images."""
        return self.n_known > 0 or self.is_own_split

    @property
    def is_own_split(self) -> bool:
        """Whether this is the split that the model was trained or calibrated on."""
        return self.is_same_data and self.result["split"] in ("train", "val")

    def to_answers(self) -> Answers:
        """The subset that core.stats.shift compares."""
        return Answers(self.is_disease, self.p_disease, self.distance, self.is_novel, self.groups)

    def find_cell(self, cell: str, *, threshold: float = 0.5) -> NDArray[np.int64]:
        """Rows of a cell of the confusion matrix ("tn", "fp", "fn", "tp"), most confident first."""
        called = self.p_disease > threshold
        is_called, is_diseased = cell[1] == "p", cell in ("tp", "fn")
        rows = np.flatnonzero((called == is_called) & (self.is_disease == is_diseased))
        order = np.argsort(-np.abs(self.p_disease[rows] - 0.5), kind="stable")
        return rows[order]

    def find_disputed(self) -> NDArray[np.int64]:
        """Rows on which the members disagree."""
        calls = self.member_p > 0.5
        return np.flatnonzero((calls != calls[0]).any(axis=0))

    def thumbnail(self, row: int) -> NDArray[np.uint8]:
        """Thumbnail of a row, (h, w, 3) uint8."""
        return decode(self.thumbnails[row], name=self.keys[row]).pixels


def order_pair(first: Evaluation, second: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Put the evaluation on the training data set first; otherwise keep the order."""
    if second.is_same_data and not first.is_same_data:
        return second, first
    return first, second


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The ``evaluate`` JSON of DESIGN section 4, plus ``is_fitted_on``."""
    return {**evaluation.result, "is_fitted_on": evaluation.is_fitted_on}


def say_seen(evaluation: Evaluation) -> str:
    """A warning if the model has seen some of the images; empty otherwise."""
    if evaluation.is_own_split:
        return (
            "These are images that the model was trained on or that its K and calibration were "
            "fitted on: every figure, the calibration error above all, looks better than on new "
            "ones."
        )
    if evaluation.n_known:
        return (
            f"The model was trained or calibrated on {evaluation.n_known} of these "
            f"{len(evaluation.keys)} images: the figures look better than on new ones, and are "
            "not those of an external test."
        )
    return ""
