"""Choose how to draw the vote's integrated gradients, without using the test split.

    PYTHONPATH=. python benchmarks/bench_heatmap_variants.py --models MODELS --model busi \\
        --data ../shared/data

Samples lesions of the validation images and of some training images (which never vote on
themselves), explains them once, and evaluates every recipe of
``core.explanations.integrated_gradients``. The one with most hits becomes
``integrated_gradients.SHOWN``; ties are broken by the energy on the lesion, then by less smoothing.
Test images are never read. Writes results/heatmap_variants.json.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import cv2
import numpy as np
from bench_explanations import RESULTS, describe_machine

from core.assessment.heatmap_study import read_mask
from core.config import Settings
from core.data.datasets import Dataset, Record, load_record, read_dataset
from core.errors import ImageError
from core.explanations import grad_cam
from core.explanations.faithfulness import compute_energy, has_hit
from core.explanations.integrated_gradients import SHOWN, Recipe, draw_shares, integrate_vote
from core.files.whole import write_text
from core.images.decode import Image
from core.models.ensemble import Model
from core.models.registry import load_bundle
from core.network.embedder import embed_together
from core.stats.proportions import measure_mean, measure_share

SEED = 0
SIGMAS = (0.0, 0.03, 0.05, 0.08, 0.12, 0.16)
Shares = list[tuple[float, dict[str, np.ndarray]]]  # member's weight, backbone -> (V, h, w)


def choose(records: list[Record], *, n: int) -> list[Record]:
    order = np.random.default_rng(SEED).permutation(len(records))[:n]
    return [records[i] for i in order]


def integrate(model: Model, image: Image, group: str) -> Shares:
    embedded = embed_together([m.bundle.embedder for m in model.members], [image.pixels])
    shares = []
    for member, outcome in zip(model.members, embedded, strict=True):
        bundle = member.bundle
        barred = bundle.gallery.find_related(sha256=image.sha256, group=group)
        voters = grad_cam.find_voters(
            bundle.gallery, outcome.embeddings[0], k=bundle.n_shown, excluded=sorted(barred)
        )
        found = integrate_vote(
            bundle.embedder,
            [a[:, 0] for a in outcome.activations],
            class_index=bundle.config.disease_index,
            neighbours=voters if bundle.has_vote else (),
        )
        shares.append((member.weight, found))
    return shares


def draw(shares: Shares, recipe: Recipe) -> dict[str, np.ndarray]:
    """Draw one map per backbone, their mean as in the app, and the sum of all attributions."""
    maps = {}
    for name in dict.fromkeys(name for _, found in shares for name in found):
        drawn = [(w, draw_shares(found[name], recipe)) for w, found in shares if name in found]
        maps[name] = grad_cam.merge_heatmaps(drawn)
    return {
        **maps,
        "mean": grad_cam.merge_heatmaps([(1.0, heatmap) for heatmap in maps.values()]),
        "sum": draw_shares(add_up(shares), recipe),
    }


def add_up(shares: Shares) -> np.ndarray:
    """Sum the (V, h, w) attributions of all members and backbones on the finest grid."""
    every = [(weight, part) for weight, found in shares for part in found.values()]
    height, width = max(part.shape[1:] for _, part in every)
    total = np.zeros((every[0][1].shape[0], height, width), dtype=np.float32)
    for weight, part in every:
        cells = part.shape[1] * part.shape[2] / (height * width)  # preserves the sum
        total += weight * cells * np.stack([cv2.resize(view, (width, height)) for view in part])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", default="busi")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--n-val", type=int, default=100)
    parser.add_argument("--n-train", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "heatmap_variants.json")
    arguments = parser.parse_args()
    settings = Settings(checkpoints_dir=arguments.models, n_threads=1)
    model = load_bundle(arguments.models, arguments.model, settings=settings)
    run = model.lead.config.run.train
    dataset = read_dataset(
        arguments.data / arguments.model, val_fraction=run.val_fraction, seed=run.seed
    )
    recipes = [Recipe(*both) for both in itertools.product(SIGMAS, (False, True))]
    began = time.process_time()
    wanted = {"val": arguments.n_val, "train": arguments.n_train}
    rows, counts = measure(model, dataset, recipes, wanted)
    best = max(
        rows,
        key=lambda row: (
            row["mean"]["pointing_game"],
            row["mean"]["energy_in_mask"],
            -row["recipe"]["sigma"],
        ),
    )
    result = {
        **describe_machine(),
        "model": arguments.model,
        "data": dataset.data_id,
        "splits": counts,
        "seed": SEED,
        "cpu_seconds": round(time.process_time() - began, 1),
        "chosen": best["recipe"],
        "shown": dataclasses.asdict(SHOWN),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(result, indent=1))
    for row in sorted(rows, key=lambda row: -row["mean"]["pointing_game"]):
        print(row["recipe"], {k: v["pointing_game"] for k, v in row.items() if k != "recipe"})


def measure(
    model: Model, dataset: Dataset, recipes: list[Recipe], wanted: dict[str, int]
) -> tuple[list[dict], dict[str, int]]:
    """Measure every recipe on the same lesions."""
    counts: dict[str, int] = {}
    groups: list[str] = []
    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    for split, n in wanted.items():
        lesions = [r for r in dataset.subset(split) if r.label == dataset.disease_index and r.mask]
        for record in choose(lesions, n=n):
            try:
                image = load_record(record)
            except ImageError:
                continue
            mask = read_mask(record, image)
            if mask is None:
                continue
            counts[split] = counts.get(split, 0) + 1
            groups.append(record.group or record.key)
            with model.lock:
                shares = integrate(model, image, record.group or "")
            for index, recipe in enumerate(recipes):
                for name, heatmap in draw(shares, recipe).items():
                    tally = found.setdefault((index, name), {"hit": [], "energy": []})
                    tally["hit"].append(float(has_hit(heatmap, mask)))
                    tally["energy"].append(compute_energy(heatmap, mask))
            print(f"{split} {counts[split]} of {min(n, len(lesions))}", flush=True)
    names = dict.fromkeys(name for _, name in found)
    return [
        {
            "recipe": dataclasses.asdict(recipe),
            **{name: sum_up(found[index, name], groups) for name in names},
        }
        for index, recipe in enumerate(recipes)
    ], counts


def sum_up(tally: dict[str, list[float]], groups: list[str]) -> dict:
    hits = measure_share(np.array(tally["hit"]) > 0, groups=groups)
    energy = measure_mean(tally["energy"], groups=groups)
    return {
        "n": hits.n,
        "pointing_game": round(hits.share or 0.0, 4),
        "pointing_ci95": [round(hits.low, 4), round(hits.high, 4)],
        "energy_in_mask": round(energy.mean, 4),
        "energy_ci95": [round(energy.low, 4), round(energy.high, 4)],
    }


if __name__ == "__main__":
    main()
