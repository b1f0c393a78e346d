"""Choose K on the validation images with a single neighbour search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from core.errors import DataError
from core.gallery.search import Gallery, split_parts
from core.gallery.voting import vote


@dataclass(frozen=True)
class KScore:
    """Validation metrics of one K."""

    k: int
    accuracy: float
    auroc: float


@dataclass(frozen=True)
class KSearch:
    """The chosen K and the scores of all candidates."""

    k: int
    scores: tuple[KScore, ...]


def search_k(
    gallery: Gallery,
    queries: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    candidates: Sequence[int],
    disease_index: int,
    excluded: Sequence[NDArray[np.int64]] | None = None,
    rule: str = "best",
) -> KSearch:
    """Choose K on the validation images with a single neighbour search.

    The best accuracy wins. Ties go to the larger K, whose vote depends less on single images. The
    rule "one-standard-error" extends this to every K that validation cannot tell from the best.

    Args:
        gallery: the training rows.
        queries: (Q, D) validation embeddings.
        labels: (Q,) their true classes, both classes present.
        candidates: the values to try; those above the gallery's size are dropped.
        disease_index: the positive class.
        excluded: for each query, the rows excluded from the vote; if fewer than K remain, all of
            them vote.
        rule: "best", or "one-standard-error": the largest K whose accuracy is within one standard
            error of the best.

    Raises:
        DataError: no candidate fits, or validation has only one class.

    Reference: Breiman et al. 1984, Classification and Regression Trees, section 3.4.3 (the rule).
    """
    n_voters = len(gallery.voters)
    fitting = sorted({k for k in candidates if k <= n_voters})
    if not fitting:
        raise DataError(
            f"K is searched among {sorted(candidates)}, but the gallery has only {n_voters} "
            "images; add images or set knn.k_candidates.",
            code="knn.k",
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            "validation holds one class only; K cannot be chosen. Add images of the other class.",
            code="knn.one_class",
        )
    found = [
        part.search(points, fitting[-1], excluded=excluded)
        for part, points in zip(gallery.parts, split_parts(queries, gallery.n_parts), strict=True)
    ]
    n_classes = int(max(gallery.labels.max(), labels.max())) + 1
    scores = []
    for k in fitting:
        votes = [
            vote(distances[:, :k], gallery.labels[rows[:, :k]], n_classes=n_classes)
            for distances, rows in found
        ]
        probs = np.mean(votes, axis=0)
        accuracy = float(np.mean(probs.argmax(1) == labels))
        auroc = float(roc_auc_score(labels == disease_index, probs[:, disease_index]))
        scores.append(KScore(k, accuracy, auroc))
    top = max(score.accuracy for score in scores)
    slack = (top * (1.0 - top) / len(labels)) ** 0.5 if rule == "one-standard-error" else 0.0
    return KSearch(max(s.k for s in scores if s.accuracy >= top - slack), tuple(scores))
