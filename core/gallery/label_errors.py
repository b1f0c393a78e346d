"""Find probable label errors from two opinions that did not see the label.

Owns the ranking. The first opinion is the leave-one-out vote in the trained embedding. But the
network may have memorised a wrong label, and then its embedding agrees with it. So the second
opinion is a linear classifier on the frozen trunks' descriptors, cross-validated by patient: it was
never trained on the label of the image it judges.

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
_STRENGTH = 0.01  # inverse regularisation on standardised descriptors, which are high-dimensional
_MAX_FITTED = 20_000  # rows; above this a fit takes minutes, so only the vote is used


def judge_held_out(
    descriptors: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Sequence[str],
    *,
    n_classes: int,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Compute each row's class probabilities from a classifier fitted without it.

    Args:
        descriptors: (N, P) pooled activations of the frozen trunks.
        labels: (N,) labels as given.
        groups: patient of each row, empty if unknown; a patient is never split across folds.
        n_classes: C.
        seed: of the folds.

    Returns:
        (N, C), rows sum to 1; nan if there is too little to fit (fewer than 5 patients in a class)
        or too much (over 20,000 rows).
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
            continue  # nearly all images of a class are one patient's
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
    """Score how suspect each label is: one minus its mean probability in both opinions.

    Args:
        vote_probs: (N, C) leave-one-out vote.
        held_out_probs: (N, C) as returned by ``judge_held_out``.
        labels: (N,) labels as given.

    Returns:
        (N,) in 0..1, larger is more suspect. An opinion that is nan is ignored; nan if both are.
    """
    check_shape("held_out_probs", held_out_probs, vote_probs.shape)
    check_shape("labels", labels, vote_probs.shape[:1])
    rows = np.arange(len(labels))
    own = np.stack([vote_probs[rows, labels], held_out_probs[rows, labels]])
    n_opinions = (~np.isnan(own)).sum(axis=0)
    total = np.nansum(own, axis=0)
    score = np.where(n_opinions > 0, 1.0 - total / np.maximum(n_opinions, 1), np.nan)
    return score.astype(np.float32)
