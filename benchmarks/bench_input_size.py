"""The value of a larger input before training: frozen features of the training images.

    PYTHONPATH=. python benchmarks/bench_input_size.py --data ../shared/data [--only idrid]

For each data set and size, the pooled features of both `offline` backbones, averaged over the four
test-time views, are evaluated by five-fold cross-validation by patient (three shuffles) with plain
KNN and logistic regression: accuracy, AUROC, and each size's AUROC gain over the preset's own size
with a 95 % interval over shuffles and patients. Test images are never read. Features are cached in
--work, so a killed run continues where it stopped. Result: results/input_size.json.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier

from core.config import Settings, build_preset
from core.data.datasets import Dataset, Record, load_record, read_dataset
from core.network.build import build_embedder
from core.stats.metrics import rank_auroc
from core.stats.paired_tests import compute_interval
from core.stats.proportions import find_clusters

SIZES = {  # up to the images' original size
    "idrid": (224, 288, 384, 448, 512),
    "busi": (224, 288, 384),
    "kermany_cxr_1639": (160, 192, 224, 288, 448),
}
N_FOLDS, N_SHUFFLES = 5, 3
Array = NDArray[np.floating[Any]]
# From training features, whether each is diseased, and held-out features to probabilities.
Judge = Callable[[Array, NDArray[np.bool_], Array], NDArray[np.float64]]
Votes = dict[str, NDArray[np.float64]]  # judge -> (shuffle, image) probability of disease


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a data set to train on, with their labels and patients."""

    records: list[Record]
    truth: NDArray[np.bool_]  # diseased
    groups: NDArray[np.str_]  # patients
    clusters: list[NDArray[np.int64]]


def vote(
    train: Array, truth: NDArray[np.bool_], held: Array, *, k: int = 20
) -> NDArray[np.float64]:
    """Disease fraction among the k nearest, weighted by distance."""
    neighbours = KNeighborsClassifier(k, weights="distance").fit(train, truth)
    shares: NDArray[np.float64] = neighbours.predict_proba(held)[:, 1]
    return shares


def regress(train: Array, truth: NDArray[np.bool_], held: Array) -> NDArray[np.float64]:
    """Probability of disease by logistic regression."""
    model = LogisticRegression(C=10.0, max_iter=5000).fit(train, truth)
    probs: NDArray[np.float64] = model.predict_proba(held)[:, 1]
    return probs


JUDGES: dict[str, Judge] = {"knn": vote, "logistic_regression": regress}


def list_images(dataset: Dataset) -> Images:
    """List all images except the test images."""
    records = [r for r in dataset.records if r.split != "test"]
    return Images(
        records,
        np.array([r.label == dataset.disease_index for r in records]),
        np.array([r.group or r.key for r in records]),
        find_clusters([r.group or "" for r in records], len(records)),
    )


def embed(records: list[Record], size: int, path: Path) -> NDArray[np.float32]:
    """Compute frozen features (N, F) at an input size, or read them from the cache."""
    if path.is_file():
        kept: NDArray[np.float32] = np.load(path)
        return kept
    changes = [f"preprocess.input_size={size}", "objective.name=cross-entropy"]
    config = build_preset("offline", recipe="report").with_overrides(changes)
    embedder = build_embedder(config, Settings.from_env())
    features = embedder.embed(load_record(r).pixels for r in records).embeddings
    np.save(path, features)
    return features


def judge(features: Array, images: Images, judges: Mapping[str, Judge]) -> Votes:
    """Cross-validate by patient: every image's probability of disease."""
    truth = images.truth
    votes = {name: np.zeros((N_SHUFFLES, len(truth))) for name in judges}
    for shuffle in range(N_SHUFFLES):
        folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=shuffle)
        for train, held in folds.split(features, truth, images.groups):
            for name, ask in judges.items():
                votes[name][shuffle, held] = ask(features[train], truth[train], features[held])
    return votes


def measure(votes: NDArray[np.float64], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Compute accuracy and AUROC, mean over the shuffles."""
    accuracy = float(np.mean((votes > 0.5) == truth))
    auroc = float(np.mean([rank_auroc(truth, v) for v in votes]))
    return {"accuracy": round(accuracy, 4), "auroc": round(auroc, 4)}


def compare(
    first: NDArray[np.float64], other: NDArray[np.float64], images: Images
) -> dict[str, Any]:
    """AUROC gain of the first over the other, with its interval."""
    truth = images.truth

    def gain(shuffles: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
        if len(set(truth[rows].tolist())) < 2:
            return float("nan")
        pairs = [(first[s, rows], other[s, rows]) for s in shuffles]
        return float(
            np.mean([rank_auroc(truth[rows], a) - rank_auroc(truth[rows], b) for a, b in pairs])
        )

    found = asdict(compute_interval(gain, n_seeds=N_SHUFFLES, clusters=images.clusters))
    return {key: round(value, 4) for key, value in found.items()}


def run(dataset: Dataset, *, name: str, work: Path) -> list[dict[str, Any]]:
    """Run one data set at every size."""
    images = list_images(dataset)
    own = build_preset("offline").preprocess.input_size
    votes, rows = dict[int, Votes](), list[dict[str, Any]]()
    for size in sorted(SIZES[name], key=lambda size: (size != own, size)):
        features = embed(images.records, size, work / f"{name}-{dataset.data_id}-{size}.npy")
        votes[size] = judge(features, images, JUDGES)
        row: dict[str, Any] = {"data": name, "n": len(images.records), "input_size": size}
        for key, found in votes[size].items():
            row[key] = dict[str, Any](measure(found, images.truth))
            if size != own:
                row[key]["auroc_gain"] = compare(found, votes[own][key], images)
        rows.append(row)
        print(row, flush=True)
    return rows


def build_parser(description: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser: which data sets, their folder, and the folder of cached features."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=tuple(names), default=list(names))
    parser.add_argument("--work", type=Path, default=Path("checkpoints/.input-size"))
    return parser


def read_chosen(options: argparse.Namespace) -> Iterator[tuple[str, Dataset]]:
    """Yield name and data of available sets; print which are missing."""
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if (options.data / name).exists():
            yield name, read_dataset(options.data / name)
        else:
            print(f"{name}: left out, {options.data / name} is not there")


def main() -> None:
    """Run every available data set, then write the result."""
    options = build_parser(__doc__, tuple(SIZES)).parse_args()
    rows = []
    for name, dataset in read_chosen(options):
        rows += run(dataset, name=name, work=options.work)
    settings = {"preset": "offline", "n_threads": torch.get_num_threads()}
    settings |= {"n_folds": N_FOLDS, "n_shuffles": N_SHUFFLES}
    harness.write_result("input_size", {**settings, "sizes": rows})


if __name__ == "__main__":
    main()
