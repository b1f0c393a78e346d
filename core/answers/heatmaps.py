"""Heatmaps of one case for either class, merged over the members that share a backbone.

Owns how the members' heatmaps are merged into one per backbone, the heatmap of each test-time view,
and drawing by other methods. Maps stay at the network's own resolution (a few hundred values) and
are upsampled where they are shown (``core.explanations.grad_cam.resize_heatmap``).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.answers.diagnosis import Heatmap
from core.explanations import grad_cam
from core.explanations.methods import SHOWN, ViewMaps
from core.models.bundle import Member, ModelBundle
from core.network.embedder import Embedded


def draw_heatmaps(
    members: Sequence[Member],
    embedded: Sequence[Embedded],
    *,
    class_names: Sequence[str],
    excluded: Sequence[Sequence[int]],
    method: str = SHOWN,
    draw_views: ViewMaps | None = None,
) -> tuple[Heatmap, ...]:
    """One heatmap per class and backbone: the weighted mean over the members that use it.

    Args:
        members: the members of the model.
        embedded: each member's output for this one image, with its activations.
        class_names: the classes to explain.
        excluded: for each member, the gallery rows excluded from the vote.
        method: the name of the method behind ``draw_views``, stored with the maps.
        draw_views: computes one member's maps for every view. None: Grad-CAM from the activations
            that the prediction already computed.
    """
    drawn: dict[tuple[str, str], list[tuple[float, NDArray[np.float32]]]] = {}
    for member, outcome, rows in zip(members, embedded, excluded, strict=True):
        bundle = member.bundle
        neighbours: Sequence[Sequence[NDArray[np.float32]]] = ()
        if bundle.has_vote:
            neighbours = grad_cam.find_voters(
                bundle.gallery, outcome.embeddings[0], k=bundle.n_shown, excluded=rows
            )
        asked = [bundle.class_names.index(name) for name in class_names]
        by_class = _compute_maps(bundle, outcome, neighbours, draw_views, asked=asked)
        for class_name, found in zip(class_names, by_class, strict=True):
            for backbone, views in found.items():
                drawn.setdefault((class_name, backbone), []).append((member.weight, views))
    return tuple(
        _merge(maps, class_name=class_name, backbone=backbone, method=method)
        for (class_name, backbone), maps in drawn.items()
    )


def _compute_maps(
    bundle: ModelBundle,
    outcome: Embedded,
    neighbours: Sequence[Sequence[NDArray[np.float32]]],
    draw_views: ViewMaps | None,
    *,
    asked: Sequence[int],
) -> list[dict[str, NDArray[np.float32]]]:
    """One member's maps of every view, for each requested class."""
    if draw_views is None:
        late = [activation[:, 0] for activation in outcome.late]
        both = grad_cam.compute_class_heatmaps(bundle.embedder, late, neighbours=neighbours)
        return [both[index] for index in asked]
    activations = [a[:, 0] for a in outcome.activations]
    return [
        draw_views(bundle.embedder, activations, class_index=index, neighbours=neighbours)
        for index in asked
    ]


def _merge(
    maps: Sequence[tuple[float, NDArray[np.float32]]],
    *,
    class_name: str,
    backbone: str,
    method: str,
) -> Heatmap:
    """Merge members' (V, h, w) maps, which may differ in views and in resolution."""
    whole = [(weight, grad_cam.keep_positive(views.mean(axis=0))) for weight, views in maps]
    n_views = min(len(views) for _, views in maps)
    by_view = [
        grad_cam.merge_heatmaps([(w, grad_cam.keep_positive(views[index])) for w, views in maps])
        for index in range(n_views)
    ]
    return Heatmap(
        backbone=backbone,
        class_name=class_name,
        values=grad_cam.merge_heatmaps(whole),
        views=np.stack(by_view).astype(np.float32),
        method=method,
    )
