"""The votes of the members as lines that people read: one per training image.

Owns the places of the album, the merged shares and distances, and who was left out.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from core.diagnosis import LeftOut, Neighbour
from core.ensemble import Model
from core.evidence import Vote


def list_left_out(votes: Sequence[Vote]) -> tuple[LeftOut, ...]:
    """The training images that may not vote on this one, with the reason, by album place."""
    left_out = {}
    for vote in votes:
        for row, why in vote.related.items():
            place = int(vote.member.album_rows[row])
            reason: Literal["duplicate", "group"] = "duplicate" if why == "duplicate" else "group"
            left_out[place] = LeftOut(place, vote.member.bundle.gallery.keys[row], reason)
    return tuple(left_out[place] for place in sorted(left_out))


def write_ledger(model: Model, votes: Sequence[Vote]) -> tuple[Neighbour, ...]:
    """One line per training image: the members' shares, weighted as the members are."""
    voting = [v for v in votes if v.member.bundle.has_vote] or list(votes)
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
    # A classifier's distances are of another space, and did not decide: they order nothing here.
    distances = {place: _measure_distance(voting, place) for place in shares}
    ordered = sorted(shares, key=lambda place: (distances[place], place))
    return tuple(
        _describe_neighbour(
            model,
            rank=rank,
            place=place,
            distance=distances[place],
            weight=weights[place],
            share=shares[place],
        )
        for rank, place in enumerate(ordered, start=1)
    )


def _measure_distance(votes: Sequence[Vote], place: int) -> float:
    """Mean distance over the members that know the training image, weighted as they are."""
    known = [(vote, vote.member.find_row(place)) for vote in votes]
    pairs = [
        (float(np.linalg.norm(vote.member.bundle.gallery.embeddings[row] - vote.embedding)), vote)
        for vote, row in known
        if row is not None
    ]
    return float(np.average([d for d, _ in pairs], weights=[v.member.weight for _, v in pairs]))


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
    model: Model, lead: Vote, ledger: Sequence[Neighbour], *, predicted: str
) -> Neighbour | None:
    """The lead's nearest case of the class not predicted; share 0 if it did not vote."""
    gallery = lead.member.bundle.gallery
    label = lead.member.bundle.class_names.index(predicted)
    all_distances = np.linalg.norm(gallery.embeddings - lead.embedding, axis=1)
    distances = all_distances.copy()
    distances[gallery.labels == label] = np.inf
    distances[[*lead.related, *gallery.silent]] = np.inf
    row = int(distances.argmin())
    if not np.isfinite(distances[row]):
        return None
    place = int(lead.member.album_rows[row])
    for neighbour in ledger:
        if neighbour.index == place:
            return neighbour
    distance = float(distances[row])
    return _describe_neighbour(
        model,
        rank=int((all_distances < distance).sum()) + 1,
        place=place,
        distance=distance,
        weight=1.0 / max(distance, 1e-9),
        share=0.0,
    )
