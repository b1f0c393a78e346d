"""What a linear adapter is worth before any training: PCA or whitening, on training images alone.

Whitening is not in the recipes: after training it brought nothing (README, what was tried).

    PYTHONPATH=. python benchmarks/bench_adapter_start.py --data ../shared/data [--only idrid]

Frozen features of `offline`, mean of the four test-time views, as in ``bench_input_size.py`` (whose
--work folder serves here too). A vote of the 30 nearest on the features themselves, on their first
128 principal components and on 128 whitened axes (no augmented views here), beside logistic
regression. Twice: five-fold cross-validation in whole patients, three shuffles, with what whitening
gains over PCA in AUROC and its 95 % interval over shuffles and patients; and with images unlike
those of training, one of four clusters of a class held out at a time, with a quarter of the other
class (mean of the eight). Test images are read with --test alone, once, all training images learnt
from: what a fine-tuned model has to beat. Result: results/adapter_start.json.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from bench_input_size import N_FOLDS, N_SHUFFLES, compare, embed, measure
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from core.config import build_preset
from core.datasets import read_dataset
from core.evaluation import rank_auroc
from core.proportions import find_clusters

SIZES = {"idrid": (288, 512), "busi": (288,), "kermany_cxr_1639": (288,)}
K = 30
N_CLUSTERS = 4
N_COMPONENTS = 256  # among which the covariance within classes is measured
Array = NDArray[np.float64]
Judge = Callable[[Array, NDArray[np.int64], Array], Array]


def vote(train: Array, labels: NDArray[np.int64], held: Array) -> Array:
    """Share of disease among the nearest by angle, weighted by distance."""
    neighbours = KNeighborsClassifier(K, weights="distance").fit(normalize(train), labels)
    shares: Array = neighbours.predict_proba(normalize(held))[:, 1]
    return shares


def vote_on(axes: Array, train: Array, labels: NDArray[np.int64], held: Array) -> Array:
    """The vote on some axes, from the centre of the training images."""
    centre = train.mean(axis=0)
    return vote((train - centre) @ axes.T, labels, (held - centre) @ axes.T)


def fit_pca(features: Array, size: int) -> Array:
    """(D, F) principal components, as a linear adapter begins."""
    components: Array = PCA(min(size, *features.shape), svd_solver="full").fit(features).components_
    return components


def fit_whitening(features: Array, labels: NDArray[np.int64], size: int) -> Array:
    """(D, F) axes on which images of one class differ equally in every direction.

    Reference: Hatch, Kajarekar and Stolcke 2006, Within-class covariance normalization for
    SVM-based speaker recognition, Interspeech; shrunk by Ledoit and Wolf 2004.
    """
    components = fit_pca(features, N_COMPONENTS)
    points = features @ components.T
    means = np.array([points[labels == label].mean(axis=0) for label in (0, 1)])
    within, _ = ledoit_wolf(points - means[labels], assume_centered=True)
    variances, axes = np.linalg.eigh(within)
    whitening = axes / np.sqrt(np.maximum(variances, variances[-1] * 1e-9))  # columns
    directions = np.linalg.eigh(np.cov(points @ whitening, rowvar=False))[1][:, ::-1]
    found: Array = (components.T @ whitening @ directions[:, :size]).T
    return found


def regress(train: Array, labels: NDArray[np.int64], held: Array) -> Array:
    """Logistic regression on the features of unit length."""
    model = LogisticRegression(C=10.0, max_iter=5000).fit(normalize(train), labels)
    probs: Array = model.predict_proba(normalize(held))[:, 1]
    return probs


def list_judges(size: int) -> dict[str, Judge]:
    """By name, from training features, their labels and held-out features to probabilities."""
    return {
        "features": vote,
        "pca": lambda t, y, h: vote_on(fit_pca(t, size), t, y, h),
        "whitening": lambda t, y, h: vote_on(fit_whitening(t, y, size), t, y, h),
        "logistic_regression": regress,
    }


def hold_clusters_out(
    features: Array, labels: NDArray[np.int64], groups: NDArray[np.str_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows held out; no patient in both."""
    rng = np.random.default_rng(0)
    for label in (0, 1):
        mine, others = np.flatnonzero(labels == label), labels != label
        found = KMeans(N_CLUSTERS, n_init=5, random_state=0).fit_predict(features[mine])
        for cluster in range(N_CLUSTERS):
            names = rng.permutation(np.unique(groups[others]))
            held = others & np.isin(groups, names[: len(names) // N_CLUSTERS])
            held[mine[found == cluster]] = True
            learnt = ~held & ~np.isin(groups, groups[held])
            yield np.flatnonzero(learnt), np.flatnonzero(held)


def run(name: str, *, data: Path, size: int, work: Path, is_test: bool) -> dict[str, Any]:
    """One data set at one input size."""
    dataset = read_dataset(data / name)
    records = [r for r in dataset.records if r.split != "test"]
    truth = np.array([r.label == dataset.disease_index for r in records])
    labels = truth.astype(np.int64)
    groups = np.array([r.group or r.key for r in records])
    features = embed(records, size, work / f"{name}-{dataset.data_id}-{size}.npy").astype(float)
    judges = list_judges(build_preset("offline").embedder.embedding_dim)
    votes = {judge: np.zeros((N_SHUFFLES, len(truth))) for judge in judges}
    for shuffle in range(N_SHUFFLES):
        folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=shuffle)
        for train, held in folds.split(features, truth, groups):
            for judge, ask in judges.items():
                votes[judge][shuffle, held] = ask(features[train], labels[train], features[held])
    unlike: dict[str, list[tuple[float, float]]] = {judge: [] for judge in judges}
    for train, held in hold_clusters_out(features, labels, groups):
        for judge, ask in judges.items():
            found = ask(features[train], labels[train], features[held])
            right = (found > 0.5) == truth[held]
            unlike[judge].append((float(right.mean()), rank_auroc(truth[held], found)))
    measured = {}
    if is_test:
        tested = dataset.subset("test")
        asked = embed(tested, size, work / f"{name}-{dataset.data_id}-{size}-test.npy").astype(
            float
        )
        is_disease = np.array([r.label == dataset.disease_index for r in tested])
        for judge, ask in judges.items():
            accuracy, auroc = measure(ask(features, labels, asked)[None], is_disease)
            measured[judge] = {"accuracy": round(accuracy, 4), "auroc": round(auroc, 4)}
    row: dict[str, Any] = {"data": name, "n": len(records), "input_size": size}
    for judge, found in votes.items():
        accuracy, auroc = measure(found, truth)
        far = np.mean(unlike[judge], axis=0)
        row[judge] = {"accuracy": round(accuracy, 4), "auroc": round(auroc, 4)}
        row[judge]["clusters_out"] = {
            "accuracy": round(float(far[0]), 4),
            "auroc": round(float(far[1]), 4),
        }
        if is_test:
            row[judge]["test"] = measured[judge]
    clusters = find_clusters([r.group or "" for r in records], len(records))
    gain = compare(votes["whitening"], votes["pca"], truth, clusters)
    print(row := row | {"auroc_gain_of_whitening_over_pca": gain}, flush=True)
    return row


def main() -> None:
    """Every data set that is there, then the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--work", type=Path, default=Path("checkpoints/.input-size"))
    parser.add_argument("--test", action="store_true", help="look at the test images too")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.only:
        if not (options.data / name).exists():
            print(f"{name}: left out, {options.data / name} is not there")
            continue
        shared = {"data": options.data, "work": options.work, "is_test": options.test}
        rows += [run(name, size=size, **shared) for size in SIZES[name]]
    settings = {"preset": "offline", "n_threads": torch.get_num_threads(), "k": K}
    settings |= {"n_folds": N_FOLDS, "n_shuffles": N_SHUFFLES, "n_clusters": N_CLUSTERS}
    harness.write_result("adapter_start", {**settings, "rows": rows})


if __name__ == "__main__":
    main()
