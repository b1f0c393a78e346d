"""On-demand checks of one case: heatmaps by other methods, and whether heatmaps are faithful.

Owns the computations that cost more than the answer itself and are therefore run only for the case
on view: heatmaps by another method, and the faithfulness tests of heatmaps on this image.
The caller need not hold the model's lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.answers.diagnosis import Diagnosis, Heatmap
from core.answers.heatmaps import draw_heatmaps
from core.errors import ShapeError
from core.explanations import faithfulness
from core.explanations.faithfulness import Faithfulness
from core.explanations.methods import SHOWN, find_method
from core.models.ensemble import Model
from core.network.embedder import embed_together


@dataclass(frozen=True)
class MapScrutiny:
    """Test results for one backbone's heatmap of one case."""

    test: Faithfulness
    view_agreement: float | None  # mean rank correlation between the views' maps, -1..1


@dataclass(frozen=True)
class Scrutiny:
    """One case's heatmaps for one class by one method, with their tests."""

    class_name: str
    method: str  # of core.explanations.methods
    maps: tuple[Heatmap, ...]  # one per backbone: the maps tested
    by_backbone: dict[str, MapScrutiny]
    map_agreement: float | None  # mean rank correlation between the backbones' maps, -1..1


def draw_maps(
    model: Model, diagnosis: Diagnosis, *, class_name: str, method: str = SHOWN
) -> tuple[Heatmap, ...]:
    """Return a case's heatmaps, one per backbone; another method's are computed on demand.

    Integrated gradients need another pass through the network. It is run on the displayed image,
    which is at most 1024 px.

    Args:
        model: the model that produced the diagnosis.
        diagnosis: with pixels and maps.
        class_name: the class to explain.
        method: a key of ``core.explanations.methods``.

    Raises:
        ShapeError: the case has no heatmap for that class, or no pixels.
        ConfigError: the method is unknown.
    """
    draw_views = find_method(method).draw_views
    maps = tuple(m for m in diagnosis.maps if m.class_name == class_name)
    if diagnosis.pixels is None or not maps:
        raise ShapeError(f"expected a case with pixels and heatmaps for {class_name!r}, got none.")
    if method == SHOWN:
        return maps
    with model.lock:
        return draw_heatmaps(
            model.members,
            embed_together([m.bundle.embedder for m in model.members], [diagnosis.pixels]),
            class_names=[class_name],
            excluded=_list_excluded(model, diagnosis),
            method=method,
            draw_views=draw_views,
        )


def scrutinise(model: Model, diagnosis: Diagnosis, maps: Sequence[Heatmap]) -> Scrutiny:
    """Test a case's heatmaps on its own image.

    Args:
        model: the model that produced the diagnosis.
        diagnosis: with pixels.
        maps: one per backbone, all for one class and by one method (``draw_maps``).

    Raises:
        ShapeError: there are no pixels or no maps, or the maps differ in class or method.
    """
    if diagnosis.pixels is None or len({(m.class_name, m.method) for m in maps}) != 1:
        raise ShapeError("expected a case with pixels and heatmaps of one class and method.")
    class_name, method = maps[0].class_name, maps[0].method
    with model.lock:
        tests = faithfulness.measure(
            model.members,
            diagnosis.pixels,
            {m.backbone: m.values for m in maps},
            class_name=class_name,
            excluded=_list_excluded(model, diagnosis),
        )
    return Scrutiny(
        class_name=class_name,
        method=method,
        maps=tuple(maps),
        by_backbone={
            m.backbone: MapScrutiny(tests[m.backbone], _agree(list(m.views))) for m in maps
        },
        map_agreement=compute_map_agreement(maps),
    )


def compute_map_agreement(maps: Sequence[Heatmap]) -> float | None:
    """Mean rank correlation over the pairs of maps; None for a single one."""
    return _agree([m.values for m in maps])


def _agree(maps: Sequence[NDArray[np.float32]]) -> float | None:
    pairs = [(a, b) for i, a in enumerate(maps) for b in maps[i + 1 :]]
    if not pairs:
        return None
    return float(np.mean([faithfulness.compute_agreement(a, b) for a, b in pairs]))


def _list_excluded(model: Model, diagnosis: Diagnosis) -> list[list[int]]:
    """For each member, the gallery rows excluded from the vote."""
    found = [[m.find_row(item.index) for item in diagnosis.left_out] for m in model.members]
    return [[row for row in rows if row is not None] for rows in found]
