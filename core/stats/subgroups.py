"""Metrics by subgroup, with intervals and a warning for small groups.

Arrays in, frozen rows out; conventions as in core.stats.metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import ShapeError, check_shape
from core.stats.metrics import rank_auroc
from core.stats.proportions import Share, bound_figure, count_patients, find_clusters, measure_share

MIN_N = 30  # patients (or images) of either class: rows with fewer are flagged
MAX_GROUPS = 12
_N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Subgroup:
    """One value of a column."""

    value: str
    n: int
    n_disease: int
    accuracy: Share
    sensitivity: Share
    specificity: Share
    auroc: float | None  # None if a class is missing
    auroc_ci95: tuple[float, float] | None
    is_small: bool  # fewer than MIN_N patients in a class that is present


def split_by(
    is_disease: NDArray[np.bool_],
    p_disease: NDArray[np.floating],
    values: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Measure each value of a column separately, largest group first.

    A numeric column with more than MAX_GROUPS distinct values is cut into quartiles.

    Args:
        is_disease: (N,) true labels.
        p_disease: (N,) probability of disease.
        values: (N,) the column's value for each image; empty string if missing.
        groups: patient of each image: every interval resamples patients.
        seed: of the bootstrap.

    Raises:
        ShapeError: lengths differ, or a text column has more than MAX_GROUPS values.
    """
    truth, probs = np.asarray(is_disease, dtype=bool), np.asarray(p_disease, dtype=np.float64)
    check_shape("p_disease", probs, truth.shape)
    if len(values) != len(truth):
        raise ShapeError(f"values: expected {len(truth)}, got {len(values)}.")
    names = np.array(_name_parts(values), dtype=np.str_)
    found = [str(name) for name in np.unique(names)]
    if len(found) > MAX_GROUPS:
        raise ShapeError(
            f"the column has {len(found)} different words; at most {MAX_GROUPS} can be compared."
        )
    rows = []
    for name in found:
        mine = np.flatnonzero(names == name)
        patients = [groups[i] for i in mine.tolist()] if groups is not None else None
        rows.append(_measure(name, truth[mine], probs[mine], patients, seed=seed))
    return tuple(sorted(rows, key=lambda row: (-row.n, row.value)))


def can_split(values: Sequence[str]) -> bool:
    """Whether a column defines subgroups: several values, either few words or numbers."""
    n = len(set(values))
    return n > 1 and (n <= MAX_GROUPS or _to_numbers(values) is not None)


def _name_parts(values: Sequence[str]) -> list[str]:
    numbers = _to_numbers(values) if len(set(values)) > MAX_GROUPS else None
    if numbers is None:
        return list(values)
    edges = np.unique(np.quantile(numbers[np.isfinite(numbers)], [0, 0.25, 0.5, 0.75, 1]))
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(0, len(edges) - 2))
    said = _format_edges(edges)
    return [
        f"{said[p]} – {said[min(p + 1, len(edges) - 1)]}" if np.isfinite(number) else ""
        for p, number in zip(place, numbers, strict=True)
    ]


def _format_edges(edges: NDArray[np.float64]) -> list[str]:
    """Format distinct numbers with as few digits as distinguish them, at least six."""
    for digits in range(6, 18):
        said = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(said)) == len(said) and not any("e" in text for text in said):
            return said
    return [repr(float(edge)) for edge in edges]


def _to_numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        return np.array([float(v) if v else np.nan for v in values])
    except ValueError:
        return None


def _measure(
    name: str,
    truth: NDArray[np.bool_],
    probs: NDArray[np.float64],
    groups: Sequence[str] | None,
    *,
    seed: int,
) -> Subgroup:
    called = probs > 0.5
    has_both = bool(truth.any() and not truth.all())
    return Subgroup(
        value=name,
        n=len(truth),
        n_disease=int(truth.sum()),
        accuracy=measure_share(called == truth, groups=groups, seed=seed),
        sensitivity=measure_share(called, among=truth, groups=groups, seed=seed),
        specificity=measure_share(~called, among=~truth, groups=groups, seed=seed),
        auroc=rank_auroc(truth, probs) if has_both else None,
        auroc_ci95=_bootstrap_auroc(truth, probs, groups, seed=seed) if has_both else None,
        is_small=any(0 < count_patients(groups, rows) < MIN_N for rows in (truth, ~truth)),
    )


def _bootstrap_auroc(
    truth: NDArray[np.bool_],
    probs: NDArray[np.float64],
    groups: Sequence[str] | None,
    *,
    seed: int,
) -> tuple[float, float] | None:
    """Percentile bootstrap over patients; None for one patient or if no draw has both classes."""
    clusters = find_clusters(groups, len(truth))
    if len(clusters) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_N_BOOTSTRAP):
        picked = rng.integers(0, len(clusters), len(clusters))
        rows = np.concatenate([clusters[i] for i in picked])
        if truth[rows].any() and not truth[rows].all():
            drawn.append(rank_auroc(truth[rows], probs[rows]))
    if not drawn:
        return None
    return bound_figure(rank_auroc(truth, probs), drawn, truth=truth, groups=groups)
