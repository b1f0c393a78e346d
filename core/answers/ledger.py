"""The vote ledger: one readable line per training image that voted.

Owns the order of the album's images, the merged shares, the common distance scale, and the list of
excluded images.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.answers.diagnosis import LeftOut, Neighbour
from core.answers.votes import Vote
from core.models.ensemble import Model


def list_left_out(votes: Sequence[Vote]) -> tuple[LeftOut, ...]:
    """Training images excluded from the vote on this image, with the reason, by album position."""
    left_out = {}
    for vote in votes:
        for row, why in vote.related.items():
            place = int(vote.member.album_rows[row])
            reason: Literal["duplicate", "group"] = "duplicate" if why == "duplicate" else "group"
            left_out[place] = LeftOut(place, vote.member.bundle.gallery.keys[row], reason)
    return tuple(left_out[place] for place in sorted(left_out))


def measure_distances(votes: Sequence[Vote]) -> NDArray[np.float64]:
    """Distance to every training image, on the one scale used throughout a case.

    The mean over the members that have the training image and let it vote, with their ensemble
    weights. A classifier's distances come from another space and do not decide the answer: they are
    used only if no member votes.

    Returns:
        (album size,) distance by album position; inf if no member lets the image vote.
    """
    n_places = 1 + max(int(vote.member.album_rows.max()) for vote in votes)
    sums, weights = np.zeros(n_places), np.zeros(n_places)
    for vote in _list_voting(votes):
        gallery, places = vote.member.bundle.gallery, vote.member.album_rows
        may_vote = np.ones(len(gallery), dtype=bool)
        may_vote[[*vote.related, *gallery.silent]] = False
        apart = np.linalg.norm(gallery.embeddings - vote.embedding, axis=1)
        # add.at: a gallery may contain an image twice
        np.add.at(sums, places[may_vote], vote.member.weight * apart[may_vote])
        np.add.at(weights, places[may_vote], vote.member.weight)
    distances = np.full(n_places, np.inf)
    np.divide(sums, weights, out=distances, where=weights > 0)
    return distances


def _list_voting(votes: Sequence[Vote]) -> list[Vote]:
    return [v for v in votes if v.member.bundle.has_vote] or list(votes)


def write_ledger(
    model: Model, votes: Sequence[Vote], distances: NDArray[np.float64]
) -> tuple[Neighbour, ...]:
    """One line per training image: the members' shares, weighted as the members are.

    Args:
        model: the model or ensemble.
        votes: one per member.
        distances: as returned by ``measure_distances``. A rank is the position in their order; a
            rank may be missing, because an image can be close on average and yet not be among the
            neighbours of any member.
    """
    voting = _list_voting(votes)
    total = sum(vote.member.weight for vote in voting)
    shares: dict[int, float] = {}
    weights: dict[int, float] = {}
    for vote in voting:
        part = vote.member.weight / total
        lines = zip(vote.ballot.rows, vote.ballot.shares, vote.ballot.weights, strict=True)
        for row, share, weight in lines:
            place = int(vote.member.album_rows[row])
            shares[place] = shares.get(place, 0.0) + part * float(share)
            weights[place] = weights.get(place, 0.0) + part * float(weight)
    ranks = _rank(distances)
    return tuple(
        _describe_neighbour(
            model,
            rank=int(ranks[place]),
            place=place,
            distance=float(distances[place]),
            weight=weights[place],
            share=shares[place],
        )
        for place in sorted(shares, key=ranks.__getitem__)
    )


def _rank(distances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank positions from 1, the nearest; on a tie the lower position comes first."""
    ranks = np.empty(len(distances), dtype=np.int64)
    ranks[np.argsort(distances, kind="stable")] = np.arange(1, len(distances) + 1)
    return ranks


def _describe_neighbour(
    model: Model, *, rank: int, place: int, distance: float, weight: float, share: float
) -> Neighbour:
    member, row = model.find_image(place)
    label = int(member.bundle.gallery.labels[row])
    class_name = member.bundle.class_names[label]
    return Neighbour(
        rank=rank,
        index=place,
        key=member.bundle.gallery.keys[row],
        label=model.class_names.index(class_name),
        class_name=class_name,
        distance=distance,
        weight=weight,
        share=share,
    )


def find_nearest_other(
    model: Model,
    ledger: Sequence[Neighbour],
    distances: NDArray[np.float64],
    *,
    predicted: str,
) -> Neighbour | None:
    """The nearest case of the class not predictedon the ledger's scale (share 0: no vote)."""
    is_other = _read_labels(model) != model.class_names.index(predicted)
    others = np.where(is_other, distances, np.inf)
    place = int(others.argmin())
    if not np.isfinite(others[place]):
        return None
    for neighbour in ledger:
        if neighbour.index == place:
            return neighbour
    distance = float(distances[place])
    return _describe_neighbour(
        model,
        rank=int(_rank(distances)[place]),
        place=place,
        distance=distance,
        weight=1.0 / max(distance, 1e-9),
        share=0.0,
    )


def _read_labels(model: Model) -> NDArray[np.int64]:
    """Label at every album position, as ``model.find_image`` finds it; the lead member decides."""
    labels = np.zeros(1 + max(int(m.album_rows.max()) for m in model.members), dtype=np.int64)
    for member in sorted(reversed(model.members), key=lambda m: m.bundle is model.lead):
        names = [model.class_names.index(name) for name in member.bundle.class_names]
        labels[member.album_rows] = np.array(names)[member.bundle.gallery.labels]
    return labels
