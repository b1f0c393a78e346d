"""What a reader asks for after the answer: are the heatmaps true, how does the case compare.

Owns what is worked out on demand for the one case on view, because it costs more than the answer:
heatmaps by integrated gradients, the test of heatmaps on this very image, a training image as
large as it can be had, and how far the model's figures may be trusted, from its validation images.
The caller need not hold the model's lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.answers.diagnosis import Diagnosis, Heatmap
from core.answers.heatmaps import draw_heatmaps
from core.errors import ConfigError, ImageError, ShapeError
from core.explanations import faithfulness
from core.explanations.faithfulness import Faithfulness
from core.explanations.integrated_gradients import INTEGRATED, integrate_vote, prepare_views
from core.images.decode import Image, decode, load, thumbnail
from core.models.ensemble import Model, mix_validation
from core.network.embedder import Embedder, embed_together
from core.stats import metrics

GRAD_CAM = "grad-cam"
# How heatmaps may be drawn -> the name in exports; the first comes with the answer.
HEATMAP_METHODS = {GRAD_CAM: "Grad-CAM", INTEGRATED: "integrated gradients of the vote"}
COVERAGES = (1.0, 0.9, 0.8)
_MIN_VALIDATION = 20  # images; below, shares of them say nothing


@dataclass(frozen=True)
class MapScrutiny:
    """What one backbone's heatmap of one case is worth."""

    test: Faithfulness
    view_agreement: float | None  # mean rank correlation of the views' own maps, -1..1


@dataclass(frozen=True)
class Scrutiny:
    """The heatmaps of one case that argue for one class, drawn one way, tested."""

    class_name: str
    method: str  # one of HEATMAP_METHODS
    maps: tuple[Heatmap, ...]  # one per backbone: what was tested
    by_backbone: dict[str, MapScrutiny]
    map_agreement: float | None  # mean rank correlation of the backbones' maps, -1..1


@dataclass(frozen=True)
class Coverage:
    """Accuracy when only the surest share of the images is answered."""

    share: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """How a model's probabilities did on its validation images."""

    n: int
    ece_before: float | None  # of the raw vote; None for a vote of several models
    ece: float  # calibration error of the probabilities shown
    method: str  # "temperature", "isotonic", or "vote" of several models
    is_held_out: bool  # whether ``ece`` is of folds that the calibration did not see
    coverage: tuple[Coverage, ...]  # at COVERAGES
    answered: Coverage | None  # at the model's own abstain zone; None where it answers nothing


def draw_maps(
    model: Model, diagnosis: Diagnosis, *, class_name: str, method: str = GRAD_CAM
) -> tuple[Heatmap, ...]:
    """The heatmaps of a case, one per backbone: those it came with, or drawn another way now.

    Integrated gradients need the network once more: it is run on the picture that is shown, at
    most 1024 px of the file's.

    Args:
        model: the one that answered.
        diagnosis: with pixels and maps.
        class_name: the class to argue for.
        method: one of HEATMAP_METHODS.

    Raises:
        ShapeError: the case has no heatmap for that class, or no pixels.
        ConfigError: an unknown method.
    """
    if method not in HEATMAP_METHODS:
        known = ", ".join(HEATMAP_METHODS)
        raise ConfigError(f"unknown method {method!r}; choose one of {known}.")
    maps = tuple(m for m in diagnosis.maps if m.class_name == class_name)
    if diagnosis.pixels is None or not maps:
        raise ShapeError(f"expected a case with pixels and heatmaps for {class_name!r}, got none.")
    if method == GRAD_CAM:
        return maps
    with model.lock:
        return draw_heatmaps(
            model.members,
            embed_together([m.bundle.embedder for m in model.members], [diagnosis.pixels]),
            class_names=[class_name],
            excluded=_list_excluded(model, diagnosis),
            method=method,
            compute=_integrate,
        )


def _integrate(
    embedder: Embedder, activations: Sequence[Any], **target: Any
) -> dict[str, NDArray[np.float32]]:
    """Integrated gradients of every view, as the study of the Evaluate page draws them."""
    shares = integrate_vote(embedder, activations, **target)
    return {name: prepare_views(maps) for name, maps in shares.items()}


def scrutinise(model: Model, diagnosis: Diagnosis, maps: Sequence[Heatmap]) -> Scrutiny:
    """Test heatmaps of a case on its own picture.

    Args:
        model: the one that answered.
        diagnosis: with pixels.
        maps: one per backbone, of one class and one method (``draw_maps``).

    Raises:
        ShapeError: no pixels, or no maps of one kind.
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
    """Per member the gallery rows that were kept out of the vote."""
    found = [[m.find_row(item.index) for item in diagnosis.left_out] for m in model.members]
    return [[row for row in rows if row is not None] for rows in found]


def load_image(model: Model, index: int) -> tuple[Image, bool]:
    """A training image as one to be answered, and whether it is the original.

    That is the file where it still lies and is the same, else the thumbnail, which bears the
    file's sha256: either way neither the image nor its patient votes on it.

    Args:
        model: whose album is meant.
        index: place in the album.
    """
    member, row = model.find_image(index)
    bundle = member.bundle
    key, sha256 = bundle.gallery.keys[row], bundle.gallery.sha256[row]
    path = Path(bundle.config.data_root) / key
    if path.is_file():
        try:
            image = load(path)
        except ImageError:
            pass  # it was another file when the model was trained
        else:
            if image.sha256 == sha256:
                return replace(image, name=key), True
    return replace(decode(bundle.encoded_thumbnail(row), name=key), sha256=sha256), False


def load_case(model: Model, index: int, *, max_px: int = 1024) -> NDArray[np.uint8]:
    """The pixels of ``load_image``.

    Args:
        model: whose album is meant.
        index: place in the album.
        max_px: longer side at most.

    Returns:
        (h, w, 3) uint8.
    """
    return thumbnail(load_image(model, index)[0].pixels, max_px=max_px)


def describe_reliability(model: Model) -> Reliability | None:
    """What the model's validation images say of its probabilities.

    None where too few images were held out, or where members of a vote held out different ones.
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
    """Accuracy on the surest share of the images, rounded up to whole images.

    Args:
        is_disease: (N,) truth, N of at least 1.
        p_disease: (N,) probability; sure is far from 0.5.
        share: 0..1; ties at the border go in order.
    """
    n = max(1, int(np.ceil(share * len(p_disease) - 1e-9)))
    surest = np.argsort(-np.abs(p_disease - 0.5), kind="stable")[:n]
    right = (p_disease[surest] > 0.5) == is_disease[surest]
    return Coverage(share, float(right.mean()), n)


def _read_validation(model: Model) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Truth and the members' mixed probabilities; empty where they cannot be put together."""
    mixed = mix_validation(
        [member.bundle.metrics for member in model.members],
        data_ids=[member.bundle.config.data_id for member in model.members],
        weights=[member.weight for member in model.members],
    )
    if mixed is None:
        return np.zeros(0, bool), np.zeros(0)
    return np.array(mixed["is_disease"], dtype=bool), mixed["p_disease"]
