"""The gallery as a table: each image, its leave-one-out answer, the effect of a correction.

Owns the table behind the Explore page: one row per image of the lead's gallery, every column an
array. In a notebook, call ``explore``. Answers on training images are leave-one-out, but the
network was trained on these images, so they look better than on new ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.data import manifest
from core.errors import DataError
from core.exploring.map_store import load_neighbours
from core.gallery.corrections import Change
from core.gallery.leave_one_out import LeaveOneOut, NeighbourTable, compute_leave_one_out
from core.models.bundle import Member
from core.models.corrected import curate
from core.models.ensemble import Model

Progress = Callable[[float, str], None]
_MAX_VALUES = 12  # a numeric column with more distinct values is shown as a scale
ManifestStatus = Literal["read", "absent", "moved"]


@dataclass(frozen=True, eq=False)
class Exploration:
    """All training images with labels, votes and columns. Row i is row i of the lead's gallery."""

    class_names: tuple[str, ...]
    disease_index: int
    keys: tuple[str, ...]
    labels: NDArray[np.int64]  # (N,) current labels
    given_labels: NDArray[np.int64]  # (N,) labels at training
    may_vote: NDArray[np.bool_]  # (N,)
    p_disease: NDArray[np.float64]  # (N,) leave-one-out, calibrated; nan if no image could vote
    predicted: NDArray[np.int64]  # (N,) class index; -1 if no image could vote
    is_wrong: NDArray[np.bool_]  # (N,) the leave-one-out answer differs from the label
    lead: LeaveOneOut  # of the lead only: shares, purity, distances
    columns: Mapping[str, NDArray[Any]]  # name -> (N,) text or numbers, for colour and filters

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def accuracy(self) -> float:
        """Leave-one-out accuracy of the voting images; nan if there are none."""
        counted = self.may_vote & (self.predicted >= 0)
        return float((~self.is_wrong[counted]).mean()) if counted.any() else float("nan")


def prepare(
    model: Model, checkpoints: Path, *, progress: Progress | None = None
) -> tuple[NeighbourTable, ...]:
    """Load or compute every member's neighbour table; slow for a large gallery."""
    tables = []
    for number, member in enumerate(model.members):

        def report(share: float, text: str, number: int = number) -> None:
            if progress:
                progress((number + share) / len(model.members), text)

        tables.append(load_neighbours(checkpoints, member.bundle, progress=report))
    return tuple(tables)


def explore(
    model: Model,
    tables: Sequence[NeighbourTable],
    *,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> Exploration:
    """Build the table; fast, because the neighbours are already known.

    Args:
        model: with its corrections applied.
        tables: as returned by ``prepare``, in the order of the members.
        extra: additional columns, from ``read_manifest``.
    """
    lead = model.lead
    gallery, given = lead.gallery, lead.contents.gallery
    votes = [
        _leave_one_out(member, table) for member, table in zip(model.members, tables, strict=True)
    ]
    p_disease = _mix(model.members, votes, n=len(gallery))
    disease = lead.config.disease_index
    predicted = np.where(p_disease > 0.5, disease, 1 - disease)
    predicted[np.isnan(p_disease)] = -1
    is_wrong = (predicted >= 0) & (predicted != gallery.labels)
    may_vote = gallery.may_vote if gallery.may_vote is not None else np.ones(len(gallery), bool)
    is_guest = np.zeros(len(gallery), bool) if given.may_vote is None else ~given.may_vote
    own = next(v for m, v in zip(model.members, votes, strict=True) if m.bundle is lead)
    names = np.array([*lead.class_names, ""])
    columns: dict[str, NDArray[Any]] = {
        "label": names[gallery.labels],
        "split": np.array(gallery.splits),
        "prediction": names[predicted],
        "outcome": np.where(predicted < 0, "", np.where(is_wrong, "wrong", "right")),
        "confidence": np.maximum(p_disease, 1.0 - p_disease),
        "purity": own.purity.astype(np.float64),
        "vote": np.where(is_guest, "looks on", np.where(may_vote, "votes", "set aside")),
        "corrected": np.where(gallery.labels == given.labels, "as trained", "relabelled"),
    }
    return Exploration(
        class_names=lead.class_names,
        disease_index=disease,
        keys=gallery.keys,
        labels=gallery.labels,
        given_labels=given.labels,
        may_vote=may_vote,
        p_disease=p_disease,
        predicted=predicted,
        is_wrong=is_wrong,
        lead=own,
        columns={**columns, **{k: v for k, v in (extra or {}).items() if k not in columns}},
    )


def list_neighbours(
    model: Model, tables: Sequence[NeighbourTable], row: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the lead's nearest voting images to a row: rows and distances, ascending."""
    lead = next(i for i, member in enumerate(model.members) if member.bundle is model.lead)
    rows, distances = tables[lead].rows[0][row], tables[lead].distances[0][row]
    votes = (rows >= 0) & np.isin(rows, model.gallery.voters)
    k = model.lead.n_shown
    return rows[votes][:k], distances[votes][:k]


def _leave_one_out(member: Member, table: NeighbourTable) -> LeaveOneOut:
    bundle = member.bundle
    return compute_leave_one_out(
        table,
        bundle.gallery.labels,
        k=bundle.n_shown,
        n_classes=len(bundle.class_names),
        may_vote=bundle.gallery.may_vote,
    )


def _mix(members: Sequence[Member], votes: Sequence[LeaveOneOut], *, n: int) -> NDArray[np.float64]:
    """The soft vote on the lead's rows, over the members that vote and have the image."""
    voting = [pair for pair in zip(members, votes, strict=True) if pair[0].bundle.has_vote]
    total, weight = np.zeros(n), np.zeros(n)
    for member, loo in voting or list(zip(members, votes, strict=True)):
        bundle = member.bundle
        share = loo.probs[:, bundle.config.disease_index].astype(np.float64)
        p = bundle.contents.calibration.apply(share) if bundle.has_vote else share
        known = (member.album_rows < n) & ~np.isnan(p)
        total[member.album_rows[known]] += member.weight * p[known]
        weight[member.album_rows[known]] += member.weight
    mixed: NDArray[np.float64] = np.full(n, np.nan)
    np.divide(total, weight, out=mixed, where=weight > 0)
    return mixed


@dataclass(frozen=True)
class Effect:
    """The predicted effect of corrections; accuracies are leave-one-out."""

    accuracy_before: float
    accuracy_after: float
    n_mended: int  # other images that change from wrong to right
    n_broken: int  # other images that change from right to wrong


def preview(model: Model, tables: Sequence[NeighbourTable], changes: Sequence[Change]) -> Effect:
    """Recompute the votes with unsaved corrections.

    Raises:
        DataError: the changes would leave a class without voting images.
    """
    scope = model.lead.config.data_id
    before = explore(model, tables)
    changed = curate(model, {scope: model.lead.curation.change(changes)})
    after = explore(changed, tables)
    touched = {change.key for change in changes if change.field != "note"}
    is_other = np.array([key not in touched for key in before.keys], dtype=bool)
    is_other &= before.may_vote & (before.predicted >= 0) & (after.predicted >= 0)
    return Effect(
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        n_mended=int((is_other & before.is_wrong & ~after.is_wrong).sum()),
        n_broken=int((is_other & ~before.is_wrong & after.is_wrong).sum()),
    )


def read_manifest(
    root: Path, keys: Sequence[str]
) -> tuple[dict[str, NDArray[Any]], ManifestStatus]:
    """Read extra columns of the training images from the data folder's manifest.csv.

    Args:
        root: the training data folder.
        keys: keys of the gallery's images.

    Returns:
        name -> (N,) values (numeric if all given values are numbers), and whether the manifest was
        read, is absent (the folder has none), or the folder has moved.
    """
    if not root.exists():
        return {}, "moved"
    if not (root / manifest.NAME).is_file():
        return {}, "absent"
    try:
        columns = manifest.read_columns(root, keys, with_patients=True)
    except DataError:
        return {}, "absent"
    return {name: _read_column(values) for name, values in columns.items()}, "read"


def _read_column(values: Sequence[str]) -> NDArray[Any]:
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return np.array(values)
    return numbers if len(set(values)) > _MAX_VALUES else np.array(values)
