"""Image + model -> Diagnosis: the single call behind the page, the command line, a notebook.

Owns the order of the steps, the soft vote of the members, and the decision to answer or abstain.
A single model is an ensemble of one. Images go one at a time under the model's lock: several users
share one model, and Grad-CAM puts hooks on it.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core import evaluation
from core.bundle import Member, ModelBundle
from core.burned_in import find_text
from core.datasets import Dataset, Record, load_record
from core.diagnosis import Diagnosis, Heatmap, LeftOut, MemberVote, Neighbour, Novelty
from core.embedder import Embedded, embed_together
from core.ensemble import Model
from core.errors import CoreError, DataError, ImageError
from core.evidence import Vote, compute_close_limit, draw_heatmaps, measure_views
from core.image_io import Image, thumbnail
from core.knn import Ballot, cast_votes
from core.phantom import find_mark

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
_SHOWN_PX = 1024
_BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class SplitReading:
    """A model's answers on one split, before they are summed up."""

    keys: tuple[str, ...]
    truth: NDArray[np.bool_]  # (N,)
    p_disease: NDArray[np.float64]  # (N,)
    member_p: NDArray[np.float64]  # (M, N)
    is_novel: NDArray[np.bool_]  # (N,)
    groups: tuple[str, ...]
    unreadable: Mapping[str, str]
    embeddings: tuple[NDArray[np.float32], ...] = ()  # per member (N, D)
    barred: tuple[tuple[tuple[int, ...], ...], ...] = ()  # per member and image: rows that may
    # not vote on it
    percentile: NDArray[np.float64] | None = None  # (N,) of the novelty distance, 0..100


def diagnose(
    model: Model,
    images: Sequence[Image],
    *,
    explain: bool = True,
    progress: Progress | None = None,
) -> list[Diagnosis]:
    """Answer with the evidence, one Diagnosis per image, in order.

    Args:
        model: a model or an ensemble.
        images: decoded images; what could not be decoded goes through ``reject``.
        explain: compute the heatmaps of both classes and each view's own answer (on a CPU they
            take longer than the rest).
        progress: told the share done after each image.

    Returns:
        Status "answered", or "abstained" when the calibrated probability is too near 0.5 or the
        image is not of the kind the model knows. An image that fails is "rejected", alone.
    """
    diagnoses = []
    for index, image in enumerate(images):
        try:
            with model.lock:
                diagnoses.append(_diagnose_one(model, image, with_maps=explain))
        except CoreError as err:
            diagnoses.append(reject(image.name, err, model=model))
        if progress:
            progress((index + 1) / len(images), f"{index + 1} of {len(images)} images")
    return diagnoses


def reject(name: str, error: CoreError, *, model: Model) -> Diagnosis:
    """The record of a file that got no answer, with the reason."""
    return Diagnosis(
        file=name,
        status="rejected",
        model_id=model.model_id,
        data_id=model.data_id,
        created=_now(),
        disease_class=model.disease_class,
        error=str(error),
        error_code=error.code,
        error_params=dict(error.params),
    )


def evaluate(
    model: Model, dataset: Dataset, *, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a model on one split of a data set.

    Args:
        model: a model or an ensemble.
        dataset: with the same class names as the model's.
        split: "train", "val" or "test". Images that are in the gallery do not vote on themselves.

    Returns:
        The ``evaluate`` JSON of DESIGN section 4.

    Raises:
        DataError: other classes, an empty split, or one class only.
    """
    reading = read_split(model, dataset, split=split, progress=progress)
    return describe_reading(model, reading, data=dataset.data_id, split=split)


def read_split(
    model: Model, dataset: Dataset, *, split: str, progress: Progress | None = None
) -> SplitReading:
    """Answer on every image of a split; see ``evaluate`` for the arguments and errors."""
    if set(dataset.class_names) != set(model.class_names):
        raise DataError(
            f"model {model.model_id!r} knows the classes {', '.join(model.class_names)}; "
            f"the data has {', '.join(dataset.class_names)}. Rename the class folders to match.",
            code="data.classes",
        )
    records = dataset.subset(split)
    if not records:
        raise DataError(
            f"the data has no {split} split; it has "
            f"{', '.join(sorted({r.split for r in dataset.records}))}.",
            code="data.split",
        )
    unreadable: dict[str, str] = {}
    pending: list[Image] = []
    read: list[Record] = []
    votes: list[tuple[Vote, ...]] = []

    def flush() -> None:
        groups = [record.group or "" for record in read[len(votes) :]]
        with model.lock:
            votes.extend(_read_batch(model, pending, groups=groups)[0])
        pending.clear()

    for index, record in enumerate(records):
        try:
            pending.append(load_record(record))
        except ImageError as err:
            unreadable[record.key] = str(err)
        else:
            read.append(record)
        if pending and (len(pending) == _BATCH_SIZE or index == len(records) - 1):
            flush()
        if progress:
            progress((index + 1) / len(records), f"{index + 1} of {len(records)} images")
    return SplitReading(
        keys=tuple(record.key for record in read),
        truth=np.array([dataset.class_names[r.label] == model.disease_class for r in read], bool),
        p_disease=np.array([_mix(v) for v in votes], dtype=np.float64),
        member_p=np.array([[one.p_disease for one in v] for v in votes], dtype=np.float64).T,
        is_novel=np.array([_join_novelty(v).is_novel for v in votes], dtype=bool),
        groups=tuple(record.group or "" for record in read),
        unreadable=unreadable,
        embeddings=tuple(
            np.array([v[m].embedding for v in votes], dtype=np.float32)
            for m in range(len(model.members))
        ),
        barred=tuple(
            tuple(tuple(sorted(v[m].related)) for v in votes) for m in range(len(model.members))
        ),
        percentile=np.array([_join_novelty(v).distance_percentile for v in votes]),
    )


def describe_reading(
    model: Model, reading: SplitReading, *, data: str, split: str
) -> dict[str, Any]:
    """Sum a reading up as the ``evaluate`` JSON of DESIGN section 4."""
    truth, p_disease = reading.truth, reading.p_disease
    report = evaluation.evaluate(truth, p_disease, groups=reading.groups)
    unsure = np.abs(p_disease - 0.5) < model.abstain_margin
    answered = ~unsure & ~reading.is_novel
    right = (p_disease > 0.5) == truth
    members = []
    for member, probs in zip(model.members, reading.member_p, strict=True):
        own = evaluation.evaluate(truth, probs, groups=reading.groups)
        members.append(
            {
                "model_id": member.bundle.model_id,
                "weight": member.weight,
                "accuracy": own.accuracy,
                "auroc": own.auroc,
                "k": member.bundle.contents.calibration.k,
            }
        )
    return {
        "model_id": model.model_id,
        "data": data,
        "split": split,
        **dataclasses.asdict(report),
        "k": model.lead.contents.calibration.k,
        "tta": model.lead.config.run.embedder.tta,
        "members": members,
        "agreement": _describe_agreement(model, reading),
        "coverage_at_abstention": {
            "coverage": float(answered.mean()),
            "accuracy": float(right[answered].mean()) if answered.any() else None,
            "n_answered": int(answered.sum()),
            "n_uncertain": int((unsure & ~reading.is_novel).sum()),
            "n_novel": int(reading.is_novel.sum()),
        },
        "unreadable": dict(reading.unreadable),
    }


def _describe_agreement(model: Model, reading: SplitReading) -> dict[str, Any]:
    """On how many images all members call the same class, and the list of the others."""
    calls = reading.member_p > 0.5
    is_disputed = (calls != calls[0]).any(axis=0)

    def name(is_disease: bool) -> str:
        return model.disease_class if is_disease else model.other_class

    return {
        "agree": int((~is_disputed).sum()),
        "disagree": int(is_disputed.sum()),
        "disputed": [
            {
                "file": reading.keys[i],
                "truth": name(bool(reading.truth[i])),
                "answer": name(bool(reading.p_disease[i] > 0.5)),
                "members": {
                    member.bundle.model_id: name(bool(calls[m, i]))
                    for m, member in enumerate(model.members)
                },
            }
            for i in np.flatnonzero(is_disputed)
        ],
    }


def _read_batch(
    model: Model, images: Sequence[Image], *, groups: Sequence[str]
) -> tuple[list[tuple[Vote, ...]], list[Embedded]]:
    """Every member's vote on each image, and what each member made of the batch."""
    pixels = [image.pixels for image in images]
    embedded = embed_together([m.bundle.embedder for m in model.members], pixels)
    votes = [
        _vote_batch(member, outcome, images, groups=groups)
        for member, outcome in zip(model.members, embedded, strict=True)
    ]
    return list(zip(*votes, strict=True)), embedded


def _vote_batch(
    member: Member, embedded: Embedded, images: Sequence[Image], *, groups: Sequence[str]
) -> list[Vote]:
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
    # A copy of a gallery image brings its whole patient: none of that patient may vote.
    for row in [row for row, reason in related.items() if reason == "duplicate"]:
        others = gallery.find_related(sha256=image.sha256, group=gallery.groups[row])
        related = {**others, **related}
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
        score = float(ballot.sum_by_class(bundle.gallery.labels, n_classes=2)[disease])
    return float(bundle.contents.calibration.apply(np.array([score]))[0])


def _measure_novelty(bundle: ModelBundle, embedded: Embedded) -> list[Novelty]:
    reference = bundle.contents.novelty
    scores = reference.score(embedded.descriptors)
    percentiles = reference.compute_percentiles(scores)
    return [
        Novelty(float(percentile), bool(score > bundle.novelty_limit))
        for score, percentile in zip(scores, percentiles, strict=True)
    ]


def _mix(votes: Sequence[Vote]) -> float:
    """The soft vote: P = sum(w_i P_i) / sum(w_i)."""
    weights = [vote.member.weight for vote in votes]
    return float(np.average([vote.p_disease for vote in votes], weights=weights))


def _join_novelty(votes: Sequence[Vote]) -> Novelty:
    """An image that one member does not know is answered by none."""
    return Novelty(
        max(vote.novelty.distance_percentile for vote in votes),
        any(vote.novelty.is_novel for vote in votes),
    )


def _diagnose_one(model: Model, image: Image, *, with_maps: bool) -> Diagnosis:
    batches, embedded = _read_batch(model, [image], groups=[""])
    votes = batches[0]
    p_disease, novelty = _mix(votes), _join_novelty(votes)
    is_disease = p_disease > 0.5
    predicted = model.disease_class if is_disease else model.other_class
    reason = _find_abstain_reason(model, p_disease, novelty)
    shown = thumbnail(image.pixels, max_px=_SHOWN_PX)
    maps: tuple[Heatmap, ...] = ()
    if with_maps:
        barred = [vote.excluded.tolist() for vote in votes]
        maps = draw_heatmaps(
            model.members, embedded, class_names=model.class_names, excluded=barred
        )
    views = measure_views(votes, embedded) if with_maps else ()
    lead = next(vote for vote in votes if vote.member.bundle is model.lead)
    xy = model.lead.projection.place(model.lead.gallery, lead.embedding[None])[0]
    ledger = _write_ledger(model, votes)
    text, mark = find_text(image.pixels), find_mark(image.pixels)
    has_voted = any(vote.member.bundle.has_vote for vote in votes)
    return Diagnosis(
        file=image.name,
        status="abstained" if reason else "answered",
        model_id=model.model_id,
        data_id=model.data_id,
        created=_now(),
        disease_class=model.disease_class,
        predicted_class=predicted,
        probabilities=_name_probabilities(model, p_disease),
        vote_shares={
            name: sum(n.share for n in ledger if n.class_name == name)
            for name in model.class_names
            if has_voted
        },
        k=len(ledger),
        neighbours=ledger,
        nearest_other=_find_nearest_other(model, lead, ledger, predicted=predicted),
        left_out=_list_left_out(votes),
        members=tuple(
            MemberVote(
                vote.member.bundle.model_id,
                _name_probabilities(model, vote.p_disease),
                vote.member.weight,
            )
            for vote in votes
        ),
        novelty=novelty,
        maps=maps,
        view_probabilities=views,
        close_limit=compute_close_limit(votes),
        map_xy=(float(xy[0]), float(xy[1])),
        pixels=shown,
        abstain_reason=reason,
        frame=image.frame,
        window=image.window,
        is_inverted=image.is_inverted,
        burned_in=tuple(r for r in text if mark is None or not r.lies_in(mark)),
        has_synthetic_mark=mark is not None,
    )


def _name_probabilities(model: Model, p_disease: float) -> dict[str, float]:
    return {
        name: p_disease if name == model.disease_class else 1.0 - p_disease
        for name in model.class_names
    }


def _find_abstain_reason(
    model: Model, p_disease: float, novelty: Novelty
) -> Literal["uncertain", "novel"] | None:
    if novelty.is_novel:
        return "novel"
    return "uncertain" if abs(p_disease - 0.5) < model.abstain_margin else None


def _list_left_out(votes: Sequence[Vote]) -> tuple[LeftOut, ...]:
    left_out = {}
    for vote in votes:
        for row, why in vote.related.items():
            place = int(vote.member.album_rows[row])
            reason: Literal["duplicate", "group"] = "duplicate" if why == "duplicate" else "group"
            left_out[place] = LeftOut(place, vote.member.bundle.gallery.keys[row], reason)
    return tuple(left_out[place] for place in sorted(left_out))


def _write_ledger(model: Model, votes: Sequence[Vote]) -> tuple[Neighbour, ...]:
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


def _find_nearest_other(
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
