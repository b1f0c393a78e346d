"""Heatmap faithfulness over a split, per backbone and method, against baselines.

Owns the study: pointing game and energy on lesion masks, deletion and insertion of the vote, the
weight-randomisation check, agreement between backbones. The individual measures are in
core.explanations.faithfulness.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.data.datasets import Dataset, Record, load_record
from core.errors import DataError, ImageError
from core.explanations import grad_cam
from core.explanations.faithfulness import compute_agreement, compute_energy, has_hit, measure
from core.explanations.methods import explain_vote, list_studied
from core.images.decode import Image, load
from core.models.bundle import Member
from core.models.ensemble import Model
from core.network.embedder import Embedded, Progress, embed_together
from core.stats.proportions import Mean, Share, measure_mean, measure_share

_BASELINE_PX = 9  # cells per side of the random maps, as coarse as the heatmaps
_TOLERANCE_PX = 15
_N_FAITHFUL = 16
_N_STEPS = 5
_N_RANDOM = 2  # random orders per image
_N_CHECKED = 8  # images in the weight-randomisation check
Maps = dict[tuple[str, str], NDArray[np.float32]]  # (backbone, method) -> (h, w)


@dataclass(frozen=True)
class Row:
    """One backbone and method, or a baseline, over all images."""

    backbone: str  # "mean" is the mean of the backbones' maps; "-" for a baseline
    method: str
    n: int
    n_masks: int
    n_faithful: int  # images used for deletion and insertion
    pointing_game: float | None  # None without masks
    pointing_ci95: tuple[float, float] | None  # all intervals are from resampling patients
    pointing_game_15px: float | None  # with the tolerance of the pointing-game paper
    energy_in_mask: float | None
    energy_ci95: tuple[float, float] | None
    deletion_auc: float | None
    deletion_ci95: tuple[float, float] | None
    insertion_auc: float | None
    insertion_ci95: tuple[float, float] | None
    better_than_random: float | None  # fraction of the images


def has_masks(dataset: Dataset, split: str) -> bool:
    """Whether any image of a split has a lesion mask."""
    return any(record.mask is not None for record in dataset.subset(split))


def study_heatmaps(
    model: Model,
    dataset: Dataset,
    *,
    split: str,
    methods: Sequence[str] | None = None,
    n_images: int | None = None,
    n_faithful: int = _N_FAITHFUL,
    n_steps: int = _N_STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Explain the vote for disease on diseased images, and measure the maps.

    Args:
        model: a model or an ensemble.
        dataset: with the model's classes.
        split: of the images: those with a mask if there are masks, else all diseased ones.
        methods: keys of ``core.explanations.methods``; ``randomisation`` and ``agreement`` are
            computed for the first. None: all methods that are studied.
        n_images: maximum number of images, sampled; None for all.
        n_faithful: number of images for deletion and insertion.
        n_steps: points of their curves; each costs a run of the model per map and image.
        seed: for the sample, the random maps and the random orders.
        progress: called with the fraction done.

    Returns:
        ``{"n", "n_masks", "rows": [Row], "randomisation": {backbone: rank correlation with the
        maps of a net with random tails}, "agreement": mean rank correlation between backbones,
        "checked_method": the method of these two}``.

    Raises:
        DataError: no diseased image can be read.
    """
    methods = list(methods or list_studied())
    rng = np.random.default_rng(seed)
    disease = model.disease_class  # the data may have been loaded for another model
    diseased = [r for r in dataset.subset(split) if dataset.class_names[r.label] == disease]
    records = _choose(diseased, n_images=n_images, rng=rng)
    tally = _Tally()
    for done, record in enumerate(records):
        if progress:
            progress(done / len(records), f"{done} of {len(records)} images explained")
        try:
            image = load_record(record)
        except ImageError:
            continue
        with model.lock:
            _study_one(
                model,
                image,
                read_mask(record, image),
                group=record.group or "",
                methods=methods,
                n_steps=n_steps if tally.n < n_faithful else 0,
                is_checked=tally.n < _N_CHECKED,
                rng=rng,
                tally=tally,
            )
    if tally.n == 0:
        raise DataError(
            f"no diseased image of {split} can be read; nothing to explain.",
            code="evaluation.one_class",
        )
    return {**tally.sum_up(seed=seed), "checked_method": methods[0]}


def find_checked_method(study: Mapping[str, Any]) -> str:
    """The method for which a study computed ``randomisation`` and ``agreement``."""
    default = (
        study["rows"][0]["method"] if study["rows"] else list_studied()[0]
    )  # saved before the field existed
    return str(study.get("checked_method", default))


class _Tally:
    """Measurements of each image, by backbone and method."""

    def __init__(self) -> None:
        self.n_masks = 0
        self.groups: list[str] = []  # of every image so far
        self.values: dict[tuple[str, str], dict[str, list[float]]] = {}
        self.rows: dict[str, list[int]] = {}  # measure -> the images that have it
        self.agreement: list[float] = []
        self.randomised: dict[str, list[float]] = {}

    @property
    def n(self) -> int:
        """Images so far."""
        return len(self.groups)

    def start_image(self, group: str) -> None:
        self.groups.append(group)

    def add(self, key: tuple[str, str], name: str, value: float) -> None:
        self.values.setdefault(key, {}).setdefault(name, []).append(value)
        known = self.rows.setdefault(name, [])
        if not known or known[-1] != self.n - 1:
            known.append(self.n - 1)

    def sum_up(self, *, seed: int) -> dict[str, Any]:
        rows = [self._describe(key, figures) for key, figures in self.values.items()]
        return {
            "n": self.n,
            "n_masks": self.n_masks,
            "seed": seed,
            "rows": [dataclasses.asdict(row) for row in rows],
            "randomisation": {k: float(np.mean(v)) for k, v in self.randomised.items()},
            "agreement": float(np.mean(self.agreement)) if self.agreement else None,
        }

    def _describe(self, key: tuple[str, str], figures: Mapping[str, list[float]]) -> Row:
        hits = self._share(figures, "hit")
        energy, deletion, insertion = (
            self._mean(figures, name) for name in ("energy", "deletion", "insertion")
        )
        near, better = self._mean(figures, "near"), self._mean(figures, "better")
        return Row(
            backbone=key[0],
            method=key[1],
            n=self.n,
            n_masks=hits.n if hits else 0,
            n_faithful=deletion.n if deletion else 0,
            pointing_game=hits.share if hits else None,
            pointing_ci95=(hits.low, hits.high) if hits else None,
            pointing_game_15px=near.mean if near else None,
            energy_in_mask=energy.mean if energy else None,
            energy_ci95=(energy.low, energy.high) if energy else None,
            deletion_auc=deletion.mean if deletion else None,
            deletion_ci95=(deletion.low, deletion.high) if deletion else None,
            insertion_auc=insertion.mean if insertion else None,
            insertion_ci95=(insertion.low, insertion.high) if insertion else None,
            better_than_random=better.mean if better else None,
        )

    def _share(self, figures: Mapping[str, list[float]], name: str) -> Share | None:
        if name not in figures:
            return None
        groups = [self.groups[row] for row in self.rows[name]]
        return measure_share(np.array(figures[name]) > 0, groups=groups)

    def _mean(self, figures: Mapping[str, list[float]], name: str) -> Mean | None:
        if name not in figures:
            return None
        groups = [self.groups[row] for row in self.rows[name]]
        return measure_mean(figures[name], groups=groups)


def _choose(
    diseased: Sequence[Record], *, n_images: int | None, rng: np.random.Generator
) -> list[Record]:
    masked = [r for r in diseased if r.mask is not None]
    records = masked or list(diseased)
    order = rng.permutation(len(records))[: n_images or len(records)]
    return [records[i] for i in order]


def read_mask(record: Record, image: Image) -> NDArray[np.bool_] | None:
    """Read the lesion mask, (H, W), true on the lesion; None if missing or empty."""
    if record.mask is None:
        return None
    try:
        grey = load(record.mask).pixels.max(axis=2)
    except ImageError:  # an empty mask is a constant image, which is refused
        return None
    height, width = image.pixels.shape[:2]
    sized = cv2.resize(grey, (width, height), interpolation=cv2.INTER_NEAREST)
    mask: NDArray[np.bool_] = np.asarray(sized > sized.max() / 2)
    return mask if mask.any() else None


def _study_one(
    model: Model,
    image: Image,
    mask: NDArray[np.bool_] | None,
    *,
    group: str,
    methods: Sequence[str],
    n_steps: int,
    is_checked: bool,
    rng: np.random.Generator,
    tally: _Tally,
) -> None:
    embedded = embed_together([m.bundle.embedder for m in model.members], [image.pixels])
    barred = [
        sorted(m.bundle.gallery.find_related(sha256=image.sha256, group=group))
        for m in model.members
    ]
    tally.start_image(group)
    maps: Maps = {}
    for method in methods:
        drawn = _draw(model.members, embedded, model.disease_class, barred, method=method)
        maps |= {(backbone, method): heatmap for backbone, heatmap in drawn.items()}
        if len(drawn) > 1:
            maps["mean", method] = grad_cam.merge_heatmaps([(1.0, h) for h in drawn.values()])
    backbones = [name for name, method in maps if method == methods[0] and name != "mean"]
    pairs = [(a, b) for i, a in enumerate(backbones) for b in backbones[i + 1 :]]
    tally.agreement += [
        compute_agreement(maps[a, methods[0]], maps[b, methods[0]]) for a, b in pairs
    ]
    if is_checked:
        _check_randomised(model, embedded, barred, maps, method=methods[0], tally=tally)
    random_map = rng.random((_BASELINE_PX, _BASELINE_PX)).astype(np.float32)
    maps["-", "random"], maps["-", "centre"] = random_map, _draw_centre()
    if mask is not None:
        tally.n_masks += 1
        for key, heatmap in maps.items():
            tally.add(key, "hit", float(has_hit(heatmap, mask)))
            tally.add(key, "near", float(has_hit(heatmap, mask, tolerance_px=_TOLERANCE_PX)))
            tally.add(key, "energy", compute_energy(heatmap, mask))
    if n_steps:
        _add_faithfulness(model, image, maps, barred, n_steps=n_steps, tally=tally)


def _draw_centre() -> NDArray[np.float32]:
    """A central Gaussian: the score of a map that ignores the image."""
    places = np.linspace(-1, 1, _BASELINE_PX)
    bell = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 0.35**2))
    centre: NDArray[np.float32] = bell.astype(np.float32)
    return centre


def _draw(
    members: Sequence[Member],
    embedded: Sequence[Embedded],
    class_name: str,
    barred: Sequence[Sequence[int]],
    *,
    method: str,
) -> dict[str, NDArray[np.float32]]:
    """Draw one map per backbone: the weighted mean over the members that use it."""
    drawn: dict[str, list[tuple[float, NDArray[np.float32]]]] = {}
    for member, outcome, rows in zip(members, embedded, barred, strict=True):
        bundle = member.bundle
        heatmaps = explain_vote(
            bundle.embedder,
            [a[:, 0] for a in outcome.activations],
            class_index=bundle.class_names.index(class_name),
            neighbours=grad_cam.find_voters(
                bundle.gallery, outcome.embeddings[0], k=bundle.n_shown, excluded=rows
            )
            if bundle.has_vote
            else (),
            method=method,
        )
        for name, heatmap in heatmaps.items():
            drawn.setdefault(name, []).append((member.weight, heatmap))
    return {name: grad_cam.merge_heatmaps(maps) for name, maps in drawn.items()}


def _check_randomised(
    model: Model,
    embedded: Sequence[Embedded],
    barred: Sequence[Sequence[int]],
    maps: Maps,
    *,
    method: str,
    tally: _Tally,
) -> None:
    """Compare with maps of nets with re-initialised trained layers on the same trunks."""
    members = [
        dataclasses.replace(
            m,
            bundle=dataclasses.replace(
                m.bundle, embedder=grad_cam.randomise_net(m.bundle.embedder)
            ),
        )
        for m in model.members
    ]
    random = _draw(members, embedded, model.disease_class, barred, method=method)
    for name, heatmap in random.items():
        agreement = compute_agreement(maps[name, method], heatmap)
        tally.randomised.setdefault(name, []).append(agreement)


def _add_faithfulness(
    model: Model,
    image: Image,
    maps: Maps,
    barred: Sequence[Sequence[int]],
    *,
    n_steps: int,
    tally: _Tally,
) -> None:
    named = {f"{a}\t{b}": heatmap for (a, b), heatmap in maps.items() if b != "random"}
    figures = measure(
        model.members,
        image.pixels,
        named,
        class_name=model.disease_class,
        excluded=barred,
        n_steps=n_steps,
        n_random=_N_RANDOM,
    )
    for name, result in figures.items():
        backbone, method = name.split("\t")
        tally.add((backbone, method), "deletion", result.deletion)
        tally.add((backbone, method), "insertion", result.insertion)
        tally.add((backbone, method), "better", float(result.is_better_than_random))
    chance = next(iter(figures.values()))
    tally.add(("-", "random"), "deletion", chance.deletion_random)
    tally.add(("-", "random"), "insertion", chance.insertion_random)
