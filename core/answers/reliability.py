"""How accurate and how well calibrated a model was on its validation images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.models.ensemble import Model, mix_validation
from core.stats import metrics

COVERAGES = (1.0, 0.9, 0.8)
_MIN_VALIDATION = 20  # images; with fewer, the proportions mean little


@dataclass(frozen=True)
class Coverage:
    """Accuracy when only the most confident fraction of the images is answered."""

    share: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """Calibration and coverage of a model on its validation images."""

    n: int
    ece_before: float | None  # of the uncalibrated vote; None for an ensemble
    ece: float  # calibration error of the probabilities shown
    method: str  # "temperature", "isotonic", or "vote" for an ensemble
    is_held_out: bool  # whether ``ece`` comes from folds held out from the calibration
    coverage: tuple[Coverage, ...]  # at COVERAGES
    answered: Coverage | None  # outside the model's own abstain zone; None if it answers nothing


def describe_reliability(model: Model) -> Reliability | None:
    """Describe the model's calibration and coverage on its validation images.

    None if too few images were held out, or if an ensemble's members held out different ones.
    """
    truth, p_disease = _read_validation(model)
    if len(truth) < _MIN_VALIDATION or len(np.unique(truth)) < 2:
        return None
    sure = np.abs(p_disease - 0.5) >= model.abstain_margin
    right = (p_disease > 0.5) == truth
    calibration = model.members[0].bundle.contents.calibration
    is_single = len(model.members) == 1
    return Reliability(
        n=len(truth),
        ece_before=calibration.ece_before if is_single else None,
        ece=calibration.ece_after if is_single else metrics.compute_ece(truth, p_disease),
        method=calibration.method if is_single else "vote",
        is_held_out=is_single and calibration.n_folds > 0,
        coverage=tuple(compute_coverage(truth, p_disease, share=share) for share in COVERAGES),
        answered=Coverage(float(sure.mean()), float(right[sure].mean()), int(sure.sum()))
        if sure.any()
        else None,
    )


def compute_coverage(
    is_disease: NDArray[np.bool_], p_disease: NDArray[np.floating], *, share: float
) -> Coverage:
    """Compute the accuracy on the most confident fraction of the images, rounded up.

    Args:
        is_disease: (N,) true labels, N of at least 1.
        p_disease: (N,) probability of disease; confidence is the distance from 0.5.
        share: 0..1, the fraction to keep; ties at the cut-off are taken in order.
    """
    n = max(1, int(np.ceil(share * len(p_disease) - 1e-9)))
    surest = np.argsort(-np.abs(p_disease - 0.5), kind="stable")[:n]
    right = (p_disease[surest] > 0.5) == is_disease[surest]
    return Coverage(share, float(right.mean()), n)


def _read_validation(model: Model) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """True labels and the members' combined probabilities; empty if they cannot be combined."""
    mixed = mix_validation(
        [member.bundle.metrics for member in model.members],
        data_ids=[member.bundle.config.data_id for member in model.members],
        weights=[member.weight for member in model.members],
    )
    if mixed is None:
        return np.zeros(0, bool), np.zeros(0)
    return np.array(mixed["is_disease"], dtype=bool), mixed["p_disease"]
