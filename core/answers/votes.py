"""The vote of each member on an image, and the combined vote.

Owns the soft vote and which gallery rows are excluded. Takes no lock: the caller holds it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.answers.diagnosis import Novelty
from core.gallery.voting import Ballot, cast_votes, read_shares
from core.images.decode import Image
from core.models.bundle import Member, ModelBundle
from core.models.ensemble import Model
from core.network.embedder import Embedded, embed_together


@dataclass(frozen=True, eq=False)
class Vote:
    """One member's vote on one image."""

    member: Member
    ballot: Ballot  # for a classifier, its nearest images, which did not vote
    embedding: NDArray[np.float32]  # (D,)
    p_disease: float  # calibrated
    related: Mapping[int, str]  # gallery row -> reason it was excluded from the vote
    novelty: Novelty

    @property
    def excluded(self) -> NDArray[np.int64]:
        """Rows excluded from the vote, ascending."""
        return np.array(sorted(self.related), dtype=np.int64)


def read_batch(
    model: Model, images: Sequence[Image], *, groups: Sequence[str]
) -> tuple[list[tuple[Vote, ...]], list[Embedded]]:
    """Every member's vote on each image, and each member's embeddings of the batch."""
    pixels = [image.pixels for image in images]
    embedded = embed_together([m.bundle.embedder for m in model.members], pixels)
    votes = [
        vote_batch(member, outcome, images, groups=groups)
        for member, outcome in zip(model.members, embedded, strict=True)
    ]
    return list(zip(*votes, strict=True)), embedded


def vote_batch(
    member: Member, embedded: Embedded, images: Sequence[Image], *, groups: Sequence[str]
) -> list[Vote]:
    """One member's vote on each image; gallery rows of the same image or group are excluded."""
    novelties = _measure_novelty(member.bundle, embedded)
    votes = []
    for index, (image, group) in enumerate(zip(images, groups, strict=True)):
        ballot, related = _cast_vote(member, embedded.embeddings[index], image=image, group=group)
        p_disease = _compute_probability(member.bundle, embedded, ballot, index=index)
        votes.append(
            Vote(member, ballot, embedded.embeddings[index], p_disease, related, novelties[index])
        )
    return votes


def _cast_vote(
    member: Member, embedding: NDArray[np.float32], *, image: Image, group: str
) -> tuple[Ballot, Mapping[int, str]]:
    gallery = member.bundle.gallery
    related = gallery.find_related(sha256=image.sha256, group=group)
    excluded = [np.array(sorted(related), dtype=np.int64)]
    ballot = cast_votes(gallery, embedding[None], member.bundle.n_shown, excluded=excluded)[0]
    if not member.bundle.has_vote:
        ballot = dataclasses.replace(ballot, shares=np.zeros_like(ballot.shares))
    return ballot, related


def _compute_probability(
    bundle: ModelBundle, embedded: Embedded, ballot: Ballot, *, index: int
) -> float:
    disease = bundle.config.disease_index
    if embedded.class_probs is not None:
        score = float(embedded.class_probs[index, disease])
    else:
        score = float(read_shares([ballot], bundle.gallery.labels, class_index=disease)[0])
    return float(bundle.contents.calibration.apply(np.array([score]))[0])


def _measure_novelty(bundle: ModelBundle, embedded: Embedded) -> list[Novelty]:
    reference = bundle.contents.novelty
    scores = reference.score(embedded.descriptors)
    percentiles = reference.compute_percentiles(scores)
    return [
        Novelty(float(percentile), bool(score > bundle.novelty_limit))
        for score, percentile in zip(scores, percentiles, strict=True)
    ]


def mix_votes(votes: Sequence[Vote]) -> float:
    """The soft vote: P = sum(w_i P_i) / sum(w_i)."""
    weights = [vote.member.weight for vote in votes]
    return float(np.average([vote.p_disease for vote in votes], weights=weights))


def join_novelty(votes: Sequence[Vote]) -> Novelty:
    """Combine novelty: an image that is novel to one member is novel to all."""
    return Novelty(
        max(vote.novelty.distance_percentile for vote in votes),
        any(vote.novelty.is_novel for vote in votes),
    )


def measure_views(votes: Sequence[Vote], embedded: Sequence[Embedded]) -> tuple[float, ...]:
    """The probability of disease from each test-time view alone, combined over the members.

    Args:
        votes: one per member.
        embedded: each member's output for this one image, with its activations.

    Returns:
        One probability per view, in the order of ``transforms.build_test_views``, calibrated like
        the whole vote. Only the views that every member has are included.
    """
    by_member = []
    for vote, outcome in zip(votes, embedded, strict=True):
        bundle = vote.member.bundle
        by_member.append(_answer_views(bundle, outcome, vote.excluded))
    n_views = min(len(answers) for answers in by_member)
    weights = [vote.member.weight for vote in votes]
    mixed = np.average([answers[:n_views] for answers in by_member], axis=0, weights=weights)
    return tuple(float(p) for p in mixed)


def _answer_views(
    bundle: ModelBundle, seen: Embedded, excluded: NDArray[np.int64]
) -> NDArray[np.float64]:
    disease = bundle.config.disease_index
    if seen.view_probs is not None:
        scores = seen.view_probs[:, 0, disease].astype(np.float64)
    else:
        assert seen.view_embeddings is not None  # only ``without_tensors`` drops them
        views = seen.view_embeddings[:, 0]
        barred = [excluded] * len(views)
        ballots = cast_votes(bundle.gallery, views, bundle.n_shown, excluded=barred)
        scores = read_shares(ballots, bundle.gallery.labels, class_index=disease)
    return bundle.contents.calibration.apply(scores)


def compute_close_limit(votes: Sequence[Vote]) -> float:
    """The distance beyond which no training image is called similar.

    It is the median distance between two training images of the same class, averaged over the
    voting members. An image closer than that is more similar than the shared label alone explains.
    """
    voting = [v for v in votes if v.member.bundle.has_vote] or list(votes)
    limits = [vote.member.bundle.typical_distance for vote in voting]
    return float(np.average(limits, weights=[vote.member.weight for vote in voting]))
