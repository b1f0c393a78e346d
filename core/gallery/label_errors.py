"""Find probable label errors from two opinions that did not see the label.

Owns the ranking. The first opinion is the leave-one-out vote in the trained embedding; but a
network may have learnt a wrong label by heart, and then its embedding agrees with it. The second
is a linear classifier on the frozen trunks' descriptors, cross-validated, patients kept whole: it
was never shown the label of the image it judges.

Reference: Northcutt, Jiang, Chuang 2021, JAIR 70 (self-confidence of held-out probabilities).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from core.errors import check_shape

_N_FOLDS = 5
_STRENGTH = 0.01  # inverse regularisation on standardised descriptors, of which there are many
_MAX_FITTED = 20_000  # rows; beyond it a fit takes minutes and the vote judges alone


def judge_held_out(
    descriptors: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Sequence[str],
    *,
    n_classes: int,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Class probabilities of each row from a classifier that was fitted without it.

    Args:
        descriptors: (N, P) pooled activations of the frozen trunks.
        labels: (N,) as given.
        groups: patient of each row, empty where unknown; a patient is never in two folds.
        n_classes: C.
        seed: of the folds.

    Returns:
        (N, C) rows sum to 1; nan where there is too little to fit (fewer than 5 patients in a
        class) or too much (over 20,000 rows).
    """
    n = len(labels)
    check_shape("descriptors", descriptors, (n, None))
    probs = np.full((n, n_classes), np.nan, dtype=np.float32)
    names = np.array([group or f"\0{row}" for row, group in enumerate(groups)])
    per_class = [len(np.unique(names[labels == label])) for label in range(n_classes)]
    if min(per_class) < _N_FOLDS or n > _MAX_FITTED:
        return probs
    folds = StratifiedGroupKFold(_N_FOLDS, shuffle=True, random_state=seed)
    for known, held_out in folds.split(descriptors, labels, names):
        if len(np.unique(labels[known])) < n_classes:
            continue  # one patient holds nearly all of a class
        scaler = StandardScaler().fit(descriptors[known])
        classifier = LogisticRegression(C=_STRENGTH, max_iter=500)
        classifier.fit(scaler.transform(descriptors[known]), labels[known])
        probs[held_out] = classifier.predict_proba(scaler.transform(descriptors[held_out]))
    return probs


def score_labels(
    vote_probs: NDArray[np.floating],
    held_out_probs: NDArray[np.floating],
    labels: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Suspicion of each label: one minus what both opinions give it, on average.

    Args:
        vote_probs: (N, C) leave-one-out vote.
        held_out_probs: (N, C) of ``judge_held_out``.
        labels: (N,) as given.

    Returns:
        (N,) in 0..1, larger is more suspect; an opinion that is nan is left out, nan where both
        are.
    """
    check_shape("held_out_probs", held_out_probs, vote_probs.shape)
    check_shape("labels", labels, vote_probs.shape[:1])
    rows = np.arange(len(labels))
    own = np.stack([vote_probs[rows, labels], held_out_probs[rows, labels]])
    n_opinions = (~np.isnan(own)).sum(axis=0)
    total = np.nansum(own, axis=0)
    score = np.where(n_opinions > 0, 1.0 - total / np.maximum(n_opinions, 1), np.nan)
    return score.astype(np.float32)
