"""The table of heatmap methods, used by the diagnosis, the study, the pages and the exports.

A method computes a map for one class from every test-time view of an image. To add one, write its
``ViewMaps`` in a module of this package and add it to ``METHODS``.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.errors import ConfigError
from core.explanations.grad_cam import CAMS, compute_view_heatmaps, keep_positive
from core.explanations.integrated_gradients import integrate_views
from core.network.embedder import Embedder


class ViewMaps(Protocol):
    """Computes one model's maps of every view of one image, for one class."""

    def __call__(
        self,
        embedder: Embedder,
        activations: Sequence[Tensor],
        /,
        *,
        class_index: int,
        neighbours: Sequence[Sequence[NDArray[np.float32]]],
    ) -> dict[str, NDArray[np.float32]]:
        """Compute the maps.

        Args:
            embedder: the model.
            activations: per backbone, the (V, ...) trunk activations of the image's views.
            class_index: the class to explain.
            neighbours: as found by ``grad_cam.find_voters``; empty for a classifier.

        Returns:
            backbone name -> (V, h, w) float32, each view upright; negative where a position is
            evidence against the class.
        """


@dataclass(frozen=True)
class Method:
    """One way to draw a heatmap."""

    name: str  # in exports, and on the page if there is no translation
    draw_views: ViewMaps
    is_offered: bool = False  # to the reader of a case
    is_studied: bool = False  # on the Evaluate page


def _cam(method: str) -> ViewMaps:
    return functools.partial(compute_view_heatmaps, method=method)


SHOWN = "grad-cam"  # shown with the answer, because it needs only what the prediction computed
# A study reports randomisation and agreement for the first of the studied methods.
METHODS: Mapping[str, Method] = {
    "integrated": Method("integrated gradients of the vote", integrate_views, True, True),
    "grad-cam": Method("Grad-CAM", _cam("grad-cam"), True, True),
    "hirescam": Method("HiResCAM", _cam("hirescam"), False, True),
    "layercam": Method("LayerCAM", _cam("layercam"), False, True),
    "grad-cam++": Method("Grad-CAM++", _cam("grad-cam++")),
    "xgrad-cam": Method("XGrad-CAM", _cam("xgrad-cam")),
}
assert set(CAMS) <= set(METHODS)


def list_offered() -> list[str]:
    """List the methods that a reader can choose from, the default first."""
    offered = [key for key, method in METHODS.items() if method.is_offered]
    return sorted(offered, key=lambda key: key != SHOWN)


def list_studied() -> list[str]:
    """List the methods that the study of a split compares."""
    return [key for key, method in METHODS.items() if method.is_studied]


def find_method(key: str) -> Method:
    """Find a method by its key.

    Raises:
        ConfigError: there is none.
    """
    if key not in METHODS:
        raise ConfigError(f"unknown method {key!r}; choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[key]


def explain_vote(
    embedder: Embedder,
    activations: Sequence[Tensor],
    *,
    class_index: int,
    neighbours: Sequence[Sequence[NDArray[np.float32]]],
    method: str,
) -> dict[str, NDArray[np.float32]]:
    """Explain the vote for one class on one image; arguments as ``ViewMaps``, and a key of METHODS.

    Returns:
        backbone name -> (h, w) float32 in [0, 1]: the mean over the views, scaled to a peak of 1;
        all zero if nothing supports the class.

    Raises:
        ConfigError: the method is unknown.
    """
    by_view = find_method(method).draw_views(
        embedder, activations, class_index=class_index, neighbours=neighbours
    )
    return {name: keep_positive(maps.mean(axis=0)) for name, maps in by_view.items()}
