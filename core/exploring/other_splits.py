"""Show images of other splits beside the gallery without letting them vote.

Owns guests: images from the model's saved evaluations on the validation or test split of its own
data. They are appended to the gallery as non-voting rows, so no answer changes. Nothing is embedded
and no image is read here, because the evaluation stores everything needed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.assessment.record import Evaluation
from core.assessment.store import Summary, list_evaluations, load_evaluation
from core.gallery.leave_one_out import NeighbourTable, find_neighbours_of
from core.gallery.projection import Projection
from core.gallery.search import Gallery
from core.models.bundle import Member, ModelBundle
from core.models.ensemble import Ensemble, Model


def list_guests(checkpoints: Path, model: Model) -> list[Summary]:
    """List saved evaluations that can be shown: other splits, same data, same parameters."""
    return [
        summary
        for summary in list_evaluations(checkpoints, model.model_id)
        if summary.is_same_net
        and summary.split != "train"
        and summary.data_id == model.lead.config.data_id
    ]


def load_guests(checkpoints: Path, model: Model, names: Sequence[str]) -> list[Evaluation]:
    """Read some of the listed evaluations.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    return [load_evaluation(checkpoints, model.model_id, name) for name in names]


def widen(model: Model, evaluations: Sequence[Evaluation]) -> Model:
    """Append guests to the model's gallery; networks are shared, answers unchanged.

    Args:
        model: with its corrections applied.
        evaluations: of this model, on splits that share no image.

    Returns:
        The new model. Row N + i of the lead is guest i, with ``may_vote`` False.
    """
    if not evaluations:
        return model
    if isinstance(model, ModelBundle):
        return _widen_bundle(model, evaluations, part=0)
    n, n_guests = len(model.gallery), sum(len(e.keys) for e in evaluations)
    members = tuple(
        Member(
            bundle=_widen_bundle(member.bundle, evaluations, part=part),
            weight=member.weight,
            album_rows=_shift(member.album_rows, n, n_guests),
        )
        for part, member in enumerate(model.members)
    )
    return Ensemble(model.record, members, model.metrics, model.lock, model.identity)


def _shift(album_rows: NDArray[np.int64], n: int, n_guests: int) -> NDArray[np.int64]:
    """Make room for the guests between the lead's images and those the lead does not have."""
    guests = np.arange(n, n + n_guests, dtype=np.int64)
    return np.concatenate([np.where(album_rows < n, album_rows, album_rows + n_guests), guests])


def _widen_bundle(
    bundle: ModelBundle, evaluations: Sequence[Evaluation], *, part: int
) -> ModelBundle:
    contents, given = bundle.contents, bundle.contents.gallery
    embeddings = np.concatenate([e.embeddings[part] for e in evaluations])
    is_disease = np.concatenate([e.is_disease for e in evaluations])
    disease = bundle.config.disease_index
    keys = tuple(key for e in evaluations for key in e.keys)
    gallery = Gallery(
        embeddings=np.concatenate([given.embeddings, embeddings]),
        labels=np.concatenate([given.labels, np.where(is_disease, disease, 1 - disease)]),
        keys=(*given.keys, *keys),
        splits=(*given.splits, *(str(e.result["split"]) for e in evaluations for _ in e.keys)),
        groups=(*given.groups, *(group for e in evaluations for group in e.groups)),
        sha256=(*given.sha256, *keys),  # unknown, so not a copy of any image
        n_parts=given.n_parts,
        may_vote=np.arange(len(given) + len(keys)) < len(given),
    )
    places = bundle.projection.place(given, embeddings)
    xy = np.concatenate([contents.gallery_xy, places])
    pictures = (*contents.thumbnails, *(p for e in evaluations for p in e.thumbnails))
    return replace(
        bundle,
        contents=replace(contents, gallery=gallery, gallery_xy=xy, thumbnails=pictures),
        projection=Projection(xy, bundle.projection.cache_key),
    )


def widen_tables(
    model: Model, wide: Model, tables: Sequence[NeighbourTable]
) -> tuple[NeighbourTable, ...]:
    """Extend the neighbour tables by a row for each guest: its nearest training images.

    Args:
        model: without guests.
        wide: as returned by ``widen``.
        tables: of the model, in the order of the members.
    """
    found = []
    for member, wider, table in zip(model.members, wide.members, tables, strict=True):
        gallery, with_guests = member.bundle.contents.gallery, wider.bundle.contents.gallery
        n = len(gallery)
        guests = find_neighbours_of(
            gallery,
            with_guests.embeddings[n:],
            table.rows.shape[2],
            groups=with_guests.groups[n:],
        )
        found.append(
            NeighbourTable(
                np.concatenate([table.rows, guests.rows], axis=1),
                np.concatenate([table.distances, guests.distances], axis=1),
            )
        )
    return tuple(found)


def widen_map(model: Model, wide: Model, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Extend a map: each guest is placed near its nearest training images: (N + G, 2 or 3)."""
    gallery = model.lead.contents.gallery
    guests = wide.lead.contents.gallery.embeddings[len(gallery) :]
    if not len(guests):
        return coordinates
    places = Projection(coordinates, "").place(gallery, guests)
    return np.concatenate([coordinates, places])
