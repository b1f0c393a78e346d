"""The value of each difference between the recipes ``robust`` and ``report``, on training images.

    PYTHONPATH=. python benchmarks/bench_recipe.py --data ../shared/data/kermany_cxr_1639

Every variant is ``robust`` with one difference reverted, or with one addition (``TRIED``);
``report`` reverts all. Each is trained on a sample of the training split without the darkest (in a
second fold: the brightest) quarter of each class, K is chosen on other patients from the same
distribution, and it is tested on the held-out quarters: darker or brighter than any image of their
class that it was trained on (not than any of the other class), with patients kept whole. The test
split is never read. Also measures the learning curve: ``robust`` on more and fewer images.

To keep the cost down, the input is smaller than the preset's and there is one training run per
fold. Intervals therefore cover the held-out patients but not seeds, and are not corrected for
multiple comparisons: of twenty variants, about one would exclude zero by chance. Result:
results/recipe.json; a killed run continues where it stopped.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from numpy.typing import NDArray

from core.config import RunConfig, Settings, build_preset
from core.data.datasets import Dataset, Record, load_record, read_dataset
from core.files.whole import write_text
from core.gallery.k_search import search_k
from core.gallery.search import Gallery
from core.gallery.voting import cast_votes, read_shares
from core.network.build import build_embedder
from core.network.embedder import Embedder
from core.stats.metrics import rank_auroc
from core.stats.paired_tests import compute_interval
from core.stats.proportions import find_clusters
from core.training.finalise import _embed_split
from core.training.fitting import fit
from core.training.initialisation import average_with_start, begin_with_pca
from core.training.trunk_cache import TrunkCache

FOLDS = ("dark", "bright")
HELD_SHARE = 0.25  # of each class
# Keys that ``robust`` sets together; a variant resets them to the values of ``report``.
DEPARTURES = {
    "linear adapter, begun as PCA": ("embedder.hidden_dim",),
    "exposure views at test time": ("embedder.exposure_views",),
    "helping classifier": ("objective.auxiliary_weight",),
    "largest K within one standard error": ("knn.k_rule",),
    "crops of half to all of the area": ("preprocess.crop_scale_min", "preprocess.crop_scale_max"),
    "strong exposure changes": ("preprocess.brightness", "preprocess.contrast", "preprocess.gamma"),
    "blur and noise": ("preprocess.blur", "preprocess.noise"),
    "16 images a class in a batch": ("train.n_images_per_class",),
    "average with the untrained net": ("train.start_share",),
    "two stages in the tail": ("embedder.tail_depth",),
    "higher tail rate": ("train.tail_lr",),
    "6 epochs with a warm-up": ("train.epochs", "train.warmup_share"),
    "4 stored views": ("train.n_views",),
}
# Not in ``robust``; tested as an addition to it.
TRIED = {"semi-hard instead of batch-hard": ("objective.semihard_share=1.0",)}


@dataclass(frozen=True)
class Task:
    """One training run: fold, images per class, configuration."""

    name: str
    fold: str
    n_per_class: int
    config: RunConfig


def take_back(config: RunConfig, keys: tuple[str, ...], report: RunConfig) -> RunConfig:
    """Return the configuration with some values taken from the other one."""
    return config.with_overrides([f"{key}={attrgetter(key)(report)}" for key in keys])


def list_tasks(size: int, *, n_per_class: int, n_smaller: list[int]) -> list[Task]:
    """List both folds of every variant, then the learning curve."""
    robust, report = (
        build_preset("offline", recipe=name).with_overrides([f"preprocess.input_size={size}"])
        for name in ("robust", "report")
    )
    recipes = {"robust": robust, "report": report}
    recipes |= {name: take_back(robust, keys, report) for name, keys in DEPARTURES.items()}
    recipes |= {name: robust.with_overrides(changes) for name, changes in TRIED.items()}
    tasks = [Task(name, f, n_per_class, r) for name, r in recipes.items() for f in FOLDS]
    return tasks + [Task("robust", f, n, robust) for n in n_smaller for f in FOLDS]


def draw_data(dataset: Dataset, fold: str, *, n_per_class: int, n_held: int) -> Dataset:
    """Split training images into train, val and, as test, the held-out quarter, by patient."""
    records = [r for r in dataset.records if r.split != "test"]
    grey = np.array([load_record(r).pixels.mean() for r in records])
    rng = np.random.default_rng(0)
    ranks, quarters = [], []
    for label in range(len(dataset.class_names)):
        rows = [i for i, r in enumerate(records) if r.label == label]
        ranks.append(sorted(rows, key=lambda i: grey[i], reverse=fold == "bright"))
        quarters.append(ranks[-1][: round(HELD_SHARE * len(rows))])
    patients = {records[i].group or records[i].key for held in quarters for i in held}
    val_names: set[str] = set()
    drawn: list[Record] = []
    for ranked, held in zip(ranks, quarters, strict=True):
        left = [records[i] for i in rng.permutation(ranked).tolist()]
        left = [r for r in left if (r.group or r.key) not in patients]
        names = list(dict.fromkeys(r.group or r.key for r in left))
        val_names |= set(names[: len(names) // 5])
        val = [r for r in left if (r.group or r.key) in val_names]
        train = [r for r in left if (r.group or r.key) not in val_names][:n_per_class]
        chosen = rng.permutation(held)[:n_held].tolist()
        drawn += [dataclasses.replace(r, split="train") for r in train]
        drawn += [dataclasses.replace(r, split="val") for r in val[: n_held // 2]]
        drawn += [dataclasses.replace(records[i], split="test") for i in chosen]
    return dataclasses.replace(dataset, records=tuple(drawn))


def run_task(task: Task, data: Dataset, folder: Path) -> dict[str, Any]:
    """Train, choose K and vote; variants with the same views share the trunk cache."""
    began = time.monotonic()
    embedder = build_embedder(task.config, Settings.from_env())
    run = task.config
    seen = repr([run.preprocess, run.embedder, run.train.n_views, task.fold, task.n_per_class])
    cache_folder = folder / f"cache-{hashlib.sha256(seen.encode()).hexdigest()[:12]}"
    cache = TrunkCache(cache_folder, embedder, data.records)
    cache.build()
    start = begin_with_pca(embedder, cache)
    with tempfile.TemporaryDirectory(dir=folder) as run_folder:
        fit(embedder, cache, Path(run_folder), log=lambda _: None)
    average_with_start(embedder.net, start, share=run.train.start_share)
    votes, labels, groups, k = vote(embedder, cache, disease=data.disease_index)
    return {
        **{"variant": task.name, "fold": task.fold, "n_per_class": task.n_per_class, "k": k},
        "seconds": round(time.monotonic() - began),
        **{
            split: {
                "is_disease": (labels[split] == data.disease_index).tolist(),
                "groups": groups[split],
                "p_disease": [round(float(p), 6) for p in votes[split]],
            }
            for split in ("val", "test")
        },
    }


def vote(
    embedder: Embedder, cache: TrunkCache, *, disease: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]], dict[str, list[str]], int]:
    """Vote shares on val and test at the K chosen on val, with labels and patients."""
    points, labels, groups = {}, {}, {}
    for split in ("train", "val", "test"):
        rows = cache.find_rows(split)
        points[split] = _embed_split(embedder, cache, rows).embeddings
        labels[split] = np.array([cache.records[row].label for row in rows])
        groups[split] = [cache.records[row].group or "" for row in rows]
    rows = cache.find_rows("train")
    gallery = Gallery(
        embeddings=points["train"],
        labels=labels["train"],
        keys=tuple(cache.records[row].key for row in rows),
        splits=("train",) * len(rows),
        groups=tuple(groups["train"]),
        sha256=("",) * len(rows),
    )
    knn = embedder.config.knn
    k = search_k(
        gallery,
        points["val"],
        labels["val"],
        candidates=knn.k_candidates,
        disease_index=disease,
        rule=knn.k_rule,
    ).k
    votes = {}
    for split in ("val", "test"):
        ballots = cast_votes(gallery, points[split], k)
        votes[split] = read_shares(ballots, gallery.labels, class_index=disease)
    return votes, labels, groups, k


def measure(rows: list[dict[str, Any]], split: str) -> dict[str, float]:
    """Compute accuracy and AUROC, mean over the folds."""
    figures = []
    for row in rows:
        truth, p = np.array(row[split]["is_disease"]), np.array(row[split]["p_disease"])
        figures.append((np.mean((p > 0.5) == truth), rank_auroc(truth, p)))
    accuracy, auroc = np.mean(figures, axis=0)
    return {"accuracy": round(float(accuracy), 4), "auroc": round(float(auroc), 4)}


def compare(first_rows: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Gain of the first on the held-out images: mean over folds, 95 % interval over patients."""
    truth, first, second, offsets, groups = [], [], [], [], []
    for a, b in zip(first_rows, other, strict=True):
        assert a["test"]["is_disease"] == b["test"]["is_disease"]
        start = sum(len(t) for t in truth)
        truth.append(np.array(a["test"]["is_disease"]))
        first.append(np.array(a["test"]["p_disease"]))
        second.append(np.array(b["test"]["p_disease"]))
        offsets.append(start)
        groups += a["test"]["groups"]  # a patient may be held out in both folds
    ends = [o + len(t) for o, t in zip(offsets, truth, strict=True)]
    flat, p, q = (np.concatenate(x) for x in (truth, first, second))
    clusters = find_clusters(groups, len(flat))

    def gain_accuracy(_: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
        right = [(v[rows] > 0.5) == flat[rows] for v in (p, q)]
        return float(right[0].mean() - right[1].mean())

    def gain_auroc(_: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
        gains = []
        for low, high in zip(offsets, ends, strict=True):
            chosen = rows[(rows >= low) & (rows < high)]
            if len(set(flat[chosen].tolist())) < 2:
                return float("nan")
            scores = [rank_auroc(flat[chosen], v[chosen]) for v in (p, q)]
            gains.append(scores[0] - scores[1])
        return float(np.mean(gains))

    gains = {"accuracy_gain": gain_accuracy, "auroc_gain": gain_auroc}
    return {
        name: dataclasses.asdict(compute_interval(gain, n_seeds=1, clusters=clusters))
        for name, gain in gains.items()
    }


def summarise(rows: list[dict[str, Any]], *, n_per_class: int) -> dict[str, Any]:
    """Tabulate the differences and the learning curve, for variants with both folds."""
    whole = [row for row in rows if row["n_per_class"] == n_per_class]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in whole:
        by_name.setdefault(row["variant"], []).append(row)
    done = {name: found for name, found in by_name.items() if len(found) == len(FOLDS)}
    curve = [row for row in rows if row["variant"] == "robust"]
    sizes = sorted({row["n_per_class"] for row in curve})
    return {
        "variants": [
            {
                "variant": name,
                "held_out": measure(found, "test"),
                "validation": measure(found, "val"),
                "k": [row["k"] for row in found],
                **_judge(name, done["robust"], found),
            }
            for name, found in done.items()
        ],
        "learning_curve": [
            {
                "n_per_class": n,
                "folds": len(found := [row for row in curve if row["n_per_class"] == n]),
                "held_out": measure(found, "test"),
                "validation": measure(found, "val"),
            }
            for n in sizes
        ],
    }


def _judge(name: str, robust: list[dict[str, Any]], found: list[dict[str, Any]]) -> dict[str, Any]:
    """The gain of a difference over its absence; for an addition, over robust without it."""
    if name == "robust":
        return {}
    return compare(found, robust) if name in TRIED else compare(robust, found)


def main() -> None:
    """Run the missing tasks, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/kermany_cxr_1639"))
    parser.add_argument("--work", type=Path, default=Path("checkpoints/.recipe"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=120, help="a class, to train on")
    parser.add_argument("--held", type=int, default=80, help="a class, to measure on")
    parser.add_argument("--curve", type=int, nargs="*", default=[30, 60, 240])
    options = parser.parse_args()
    tasks = list_tasks(options.size, n_per_class=options.images, n_smaller=options.curve)
    dataset = read_dataset(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in tasks:
        key = repr([dataset.data_id, options.held, task])
        path = options.work / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            data = draw_data(dataset, task.fold, n_per_class=task.n_per_class, n_held=options.held)
            write_text(path, json.dumps(run_task(task, data, options.work)))
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        print(task.name, task.fold, task.n_per_class, f"{rows[-1]['seconds']} s", flush=True)
    settings = {"data": options.data.name, "data_id": dataset.data_id, "seed": 0}
    settings |= {"n_threads": torch.get_num_threads(), "input_size": options.size}
    settings |= {"n_per_class": options.images, "n_held_per_class": options.held}
    document = summarise(rows, n_per_class=options.images)
    harness.write_result("recipe", {**settings, **document})
    for cache in options.work.glob("cache-*"):
        shutil.rmtree(cache)


if __name__ == "__main__":
    main()
