"""How good a linear adapter is before training: PCA or whitening, fitted on training images only.

Whitening is not used in the recipes, because it gave no gain after training (docs/results.md).

    PYTHONPATH=. python benchmarks/bench_adapter_start.py --data ../shared/data [--only idrid]

Uses frozen features of `offline`, averaged over the four test-time views, as in
``bench_input_size.py`` (and its --work folder). Compares the vote of the 30 nearest on the features
themselves, on their first 128 principal components and on 128 whitened axes (without augmented
views), and logistic regression. Two designs: five-fold cross-validation by patient with three
shuffles, giving the AUROC gain of whitening over PCA with its 95 % interval over shuffles and
patients; and shifted images, holding out one of four clusters of a class at a time together with a
quarter of the other class (mean of the eight). Test images are only read with --test, once, after
fitting on all training images, as the baseline for a fine-tuned model. Result:
results/adapter_start.json.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from bench_input_size import (
    N_FOLDS,
    N_SHUFFLES,
    Images,
    Judge,
    build_parser,
    compare,
    embed,
    judge,
    list_images,
    measure,
    read_chosen,
    regress,
    vote,
)
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from core.config import build_preset
from core.data.datasets import Dataset
from core.stats.metrics import rank_auroc

SIZES = {"idrid": (288, 512), "busi": (288,), "kermany_cxr_1639": (288,)}
K = 30
N_CLUSTERS = 4
N_COMPONENTS = 256  # used to estimate the within-class covariance
Array = NDArray[np.float64]


def vote_by_angle(train: Array, truth: NDArray[np.bool_], held: Array) -> Array:
    """Disease fraction among the nearest by angle."""
    return vote(normalize(train), truth, normalize(held), k=K)


def vote_on(axes: Array, train: Array, truth: NDArray[np.bool_], held: Array) -> Array:
    """The vote in the subspace of some axes, centred on the training images."""
    centre = train.mean(axis=0)
    return vote_by_angle((train - centre) @ axes.T, truth, (held - centre) @ axes.T)


def fit_pca(features: Array, size: int) -> Array:
    """Fit (D, F) principal components, the initial values of a linear adapter."""
    components: Array = PCA(min(size, *features.shape), svd_solver="full").fit(features).components_
    return components


def fit_whitening(features: Array, truth: NDArray[np.bool_], size: int) -> Array:
    """Fit (D, F) axes along which the within-class variance is the same in every direction.

    Reference: Hatch, Kajarekar and Stolcke 2006, Within-class covariance normalization for
    SVM-based speaker recognition, Interspeech; shrunk by Ledoit and Wolf 2004.
    """
    components = fit_pca(features, N_COMPONENTS)
    points = features @ components.T
    means = np.array([points[truth == value].mean(axis=0) for value in (False, True)])
    within, _ = ledoit_wolf(points - means[truth.astype(int)], assume_centered=True)
    variances, axes = np.linalg.eigh(within)
    whitening = axes / np.sqrt(np.maximum(variances, variances[-1] * 1e-9))  # columns
    directions = np.linalg.eigh(np.cov(points @ whitening, rowvar=False))[1][:, ::-1]
    found: Array = (components.T @ whitening @ directions[:, :size]).T
    return found


def list_judges(size: int) -> dict[str, Judge]:
    """List the compared classifiers by name: on the features, on some axes, and another."""
    return {
        "features": vote_by_angle,
        "pca": lambda t, y, h: vote_on(fit_pca(t, size), t, y, h),
        "whitening": lambda t, y, h: vote_on(fit_whitening(t, y, size), t, y, h),
        "logistic_regression": lambda t, y, h: regress(normalize(t), y, normalize(h)),
    }


def hold_clusters_out(
    features: Array, images: Images
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield training rows and held-out rows with no patient in both."""
    rng, groups = np.random.default_rng(0), images.groups
    for value in (False, True):
        mine, others = np.flatnonzero(images.truth == value), images.truth != value
        found = KMeans(N_CLUSTERS, n_init=5, random_state=0).fit_predict(features[mine])
        for cluster in range(N_CLUSTERS):
            names = rng.permutation(np.unique(groups[others]))
            held = others & np.isin(groups, names[: len(names) // N_CLUSTERS])
            held[mine[found == cluster]] = True
            learnt = ~held & ~np.isin(groups, groups[held])
            yield np.flatnonzero(learnt), np.flatnonzero(held)


def run(dataset: Dataset, *, name: str, size: int, work: Path, is_test: bool) -> dict[str, Any]:
    """Run one data set at one input size."""
    images, kept = list_images(dataset), f"{name}-{dataset.data_id}-{size}"
    truth = images.truth
    features = embed(images.records, size, work / f"{kept}.npy").astype(float)
    judges = list_judges(build_preset("offline").embedder.embedding_dim)
    votes = judge(features, images, judges)
    row: dict[str, Any] = {"data": name, "n": len(truth), "input_size": size}
    row |= {key: dict[str, Any](measure(found, truth)) for key, found in votes.items()}
    splits = list(hold_clusters_out(features, images))
    for key, ask in judges.items():
        figures = []
        for train, held in splits:
            found = ask(features[train], truth[train], features[held])
            right = (found > 0.5) == truth[held]
            figures.append((right.mean(), rank_auroc(truth[held], found)))
        accuracy, auroc = np.mean(figures, axis=0)
        unlike = {"accuracy": round(float(accuracy), 4), "auroc": round(float(auroc), 4)}
        row[key]["clusters_out"] = unlike
    if is_test:
        tested = dataset.subset("test")
        asked = embed(tested, size, work / f"{kept}-test.npy").astype(float)
        is_disease = np.array([r.label == dataset.disease_index for r in tested])
        for key, ask in judges.items():
            row[key]["test"] = measure(ask(features, truth, asked)[None], is_disease)
    gain = compare(votes["whitening"], votes["pca"], images)
    print(row := row | {"auroc_gain_of_whitening_over_pca": gain}, flush=True)
    return row


def main() -> None:
    """Run every available data set, then write the result."""
    parser = build_parser(__doc__, tuple(SIZES))
    parser.add_argument("--test", action="store_true", help="look at the test images too")
    options = parser.parse_args()
    rows = [
        run(dataset, name=name, size=size, work=options.work, is_test=options.test)
        for name, dataset in read_chosen(options)
        for size in SIZES[name]
    ]
    settings = {"preset": "offline", "n_threads": torch.get_num_threads(), "k": K}
    settings |= {"n_folds": N_FOLDS, "n_shuffles": N_SHUFFLES, "n_clusters": N_CLUSTERS}
    harness.write_result("adapter_start", {**settings, "rows": rows})


if __name__ == "__main__":
    main()
