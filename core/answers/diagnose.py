"""Diagnose images with a model: the one call behind the page, the command line and notebooks.

Owns the order of the steps and the decision to answer or abstain. A single model is treated as an
ensemble of one. Images are processed one at a time under the model's lock, because several users
share one model and Grad-CAM registers hooks on it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from core.answers.diagnosis import Diagnosis, Heatmap, MemberVote, Novelty
from core.answers.heatmaps import draw_heatmaps
from core.answers.ledger import find_nearest_other, list_left_out, measure_distances, write_ledger
from core.answers.votes import (
    compute_close_limit,
    join_novelty,
    measure_views,
    mix_votes,
    read_batch,
)
from core.config import describe_software
from core.errors import CoreError
from core.images.aspect import fit_mask
from core.images.burned_in_text import find_text
from core.images.decode import Image, thumbnail
from core.images.phantom import find_mark
from core.models.ensemble import Model
from core.network.embedder import Progress

_SHOWN_PX = 1024


def diagnose(
    model: Model,
    images: Sequence[Image],
    *,
    explain: bool = True,
    progress: Progress | None = None,
) -> list[Diagnosis]:
    """Diagnose images: one Diagnosis with its evidence per image, in order.

    Args:
        model: a model or an ensemble.
        images: decoded images; for a file that could not be decoded, call ``reject``.
        explain: also compute the heatmaps of both classes and the probability of each test-time
            view (on a CPU this takes longer than everything else).
        progress: called with the fraction done after each image.

    Returns:
        One record per image. Its status is "answered", or "abstained" if the calibrated probability
        is too close to 0.5 or the image is out of distribution. An image that fails is "rejected";
        the others are not affected.
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
    """Build the record of a file that got no answer, with the reason."""
    return Diagnosis(
        file=name,
        status="rejected",
        model_id=model.model_id,
        data_id=model.data_id,
        model_identity=model.identity,
        created=_now(),
        software=describe_software(),
        disease_class=model.disease_class,
        error=str(error),
        error_code=error.code,
        error_params=dict(error.params),
    )


def _diagnose_one(model: Model, image: Image, *, with_maps: bool) -> Diagnosis:
    batches, embedded = read_batch(model, [image], groups=[""])
    votes = batches[0]
    p_disease, novelty = mix_votes(votes), join_novelty(votes)
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
    distances = measure_distances(votes)
    ledger = write_ledger(model, votes, distances)
    text, mark = find_text(image.pixels), find_mark(image.pixels)
    has_voted = any(vote.member.bundle.has_vote for vote in votes)
    return Diagnosis(
        file=image.name,
        status="abstained" if reason else "answered",
        model_id=model.model_id,
        data_id=model.data_id,
        model_identity=model.identity,
        created=_now(),
        software=describe_software(),
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
        nearest_other=find_nearest_other(model, ledger, distances, predicted=predicted),
        left_out=list_left_out(votes),
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
        sha256=image.sha256,
        frame=image.frame,
        n_frames=image.n_frames,
        window=image.window,
        is_inverted=image.is_inverted,
        burned_in=tuple(r for r in text if mark is None or not r.lies_in(mark)),
        has_synthetic_mark=mark is not None,
        notices=image.notices,
        overlay=None
        if image.overlay is None
        else fit_mask(image.overlay, height=shown.shape[0], width=shown.shape[1]),
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
