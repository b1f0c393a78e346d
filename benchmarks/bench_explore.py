"""Explore: drawing and selection at 1k, 10k, 100k images, and planted label errors and duplicates.

    PYTHONPATH=. python benchmarks/bench_explore.py [--work DIR] [--part server|page|findings]

``server``: build the figure and serialise it to the JSON that is sent to the browser, and apply an
outline to all images. ``page``: the real page in headless Chromium (explore_page.py), from the
release of the mouse to the response. ``findings``: train a model with the offline preset on 480
synthetic images of which 5 % have wrong labels (minutes on 2 cores). DIR keeps models for the next
run. Parts that are not requested keep the results of their last run.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from explore_page import measure_page

from core.config import Settings, build_preset
from core.data.audit import find_repeats
from core.data.datasets import read_dataset
from core.exploring import review_lists
from core.exploring.gallery_table import Exploration, explore, prepare
from core.gallery.leave_one_out import LeaveOneOut
from core.gallery.selection import count_values, find_in_polygon
from core.images import phantom
from core.models.registry import load_bundle
from core.training.run import train
from pages._charts import explore as charts

RESULT = Path(__file__).parent / "results" / "explore.json"
SEED = 0
SIZES = (1_000, 10_000, 100_000)
WRONG_SHARE = 0.05
PARTS = ("server", "page", "findings")
WHAT = (
    "select_cpu_s_100k: processor seconds of server and browser together, median of 7 boxes over "
    "the real page, from the release of the mouse to the answer. select_s_100k: the same by the "
    "clock, which on a shared machine holds the waiting for others too (see load_average_1min and "
    "n_cores_allowed). figure_mb_100k: the figure's JSON."
)


def make_table(n: int) -> Exploration:
    """Build a table of n imaginary images."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 2, n)
    predicted = np.where(rng.random(n) < 0.9, labels, 1 - labels)
    p = np.where(predicted == 1, rng.uniform(0.5, 1, n), rng.uniform(0, 0.5, n))
    names = np.array(["normal", "disease"])
    blank = LeaveOneOut(np.stack([1 - p, p], 1), p.astype(np.float32), p.astype(np.float32))
    return Exploration(
        class_names=("normal", "disease"),
        disease_index=1,
        keys=tuple(f"train/{names[label]}/image{i:06d}.png" for i, label in enumerate(labels)),
        labels=labels,
        given_labels=labels,
        may_vote=np.ones(n, dtype=bool),
        p_disease=p,
        predicted=predicted,
        is_wrong=predicted != labels,
        lead=blank,
        columns={"label": names[labels], "purity": p},
    )


def best_of(work: Callable[[], Any], *, n: int = 5) -> tuple[float, Any]:
    """Minimum seconds of n runs (the machine is shared), and the result of the work."""
    least, returned = float("inf"), None
    for _ in range(n):
        began = time.perf_counter()
        returned = work()
        least = min(least, time.perf_counter() - began)
    return least, returned


def time_page(n: int) -> dict[str, float]:
    """Measure seconds to draw and to select, and the size of the data sent to the browser."""
    table = make_table(n)
    rng = np.random.default_rng(SEED)
    xy = rng.normal(size=(n, 2)).astype(np.float32)
    angles = np.linspace(0, 2 * np.pi, 200)
    outline = [(float(np.cos(a)), float(np.sin(a))) for a in angles]

    def draw(highlighted: list[int]) -> str:
        rows = charts.sample_points(n, among=np.arange(n), always=[])
        figure = charts.build_gallery_map(
            table,
            xy,
            rows=rows,
            colour_by="label",
            words=str,
            disease_class="disease",
            highlighted=highlighted,
        )
        return str(figure.to_json())

    def select() -> tuple[int, str]:
        found = find_in_polygon(xy, outline)
        count_values(table.columns["label"][found])
        return len(found), draw(found.tolist())

    draw_s, sent = best_of(lambda: draw([]))
    select_s, (n_selected, again) = best_of(select)
    size = max(len(sent), len(again)) / 2**20
    return {"draw_s": draw_s, "select_s": select_s, "figure_mb": size, "n_selected": n_selected}


def plant(work: Path) -> set[str]:
    """Train a model on labels of which 5 % are wrong; return the mislabelled images."""
    wrong_file = work / "wrong.json"
    if not (work / "models" / "planted" / "config.json").is_file():
        phantom.write_dataset(work / "phantoms", n_train=480, n_test=8, size=384)
        dataset = read_dataset(work / "phantoms", val_fraction=0.15, seed=SEED)
        records = list(dataset.records)
        rows = [i for i, record in enumerate(records) if record.split != "test"]
        rng = np.random.default_rng(SEED)
        wrong = rng.choice(rows, round(WRONG_SHARE * len(rows)), replace=False)
        for i in wrong:
            records[i] = dataclasses.replace(records[i], label=1 - records[i].label)
        wrong_file.write_text(json.dumps([records[i].key for i in wrong]), encoding="utf-8")
        config = build_preset("offline").with_overrides(
            ["objective.semihard_share=0.5", "train.epochs=8", "train.n_views=2"]
        )
        train(
            dataclasses.replace(dataset, records=tuple(records), data_id="planted"),
            config,
            name="planted",
            settings=Settings(checkpoints_dir=work / "models", device="cpu"),
            is_synthetic=True,
            progress=lambda done, text: print(f"{done:.0%} {text}", flush=True),
        )
    return set(json.loads(wrong_file.read_text(encoding="utf-8")))


def measure_labels(work: Path) -> dict[str, Any]:
    """Measure precision and recall of planted label errors among the top ranks."""
    wrong = plant(work)
    models = work / "models"
    model = load_bundle(models, "planted", settings=Settings(device="cpu"))
    table = explore(model, prepare(model, models))
    found = review_lists.find_suspects(model, table)
    is_wrong = np.array([key in wrong for key in table.keys])
    n = int(is_wrong.sum())
    hits = is_wrong[found.rows]
    return {
        "n_images": len(table),
        "n_planted": n,
        "precision_top_half": float(hits[: n // 2].mean()),
        "precision_top": float(hits[:n].mean()),  # as many ranks as planted errors
        "precision_top_double": float(hits[: 2 * n].mean()),
        "recall_top_double": float(hits[: 2 * n].sum() / n),
    }


def measure_repeats() -> dict[str, Any]:
    """Plant near duplicates (brighter, noisier); count those found and false alarms."""
    rng = np.random.default_rng(SEED)
    eyes = [phantom.draw(70_000 + i, is_diseased=i % 2 == 0, size=128).pixels for i in range(40)]
    copies = [
        np.clip(eye * 1.1 + rng.normal(scale=2, size=eye.shape), 0, 255).astype(np.uint8)
        for eye in eyes[:20]
    ]
    groups = {tuple(rows.tolist()) for rows in find_repeats([*eyes, *copies])}
    planted = {(i, 40 + i) for i in range(20)}
    return {
        "n_images": 60,
        "n_planted": 20,
        "n_found": len(groups & planted),
        "n_false": len(groups - planted),
    }


def describe_machine() -> dict[str, Any]:
    """Describe the machine that a part was measured on, and its load."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "n_cores_allowed": len(os.sched_getaffinity(0)),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "versions": {
            name: version(name) for name in ("numpy", "plotly", "scikit-learn", "streamlit")
        },
        "python": platform.python_version(),
    }


def measure(part: str, work: Path) -> dict[str, Any]:
    """Measure one part."""
    if part == "server":
        found: dict[str, Any] = {str(n): time_page(n) for n in SIZES}
    elif part == "page":
        found = {str(n): measure_page(work, n) for n in SIZES}
    else:
        found = {"label_errors": measure_labels(work), "repeats": measure_repeats()}
    return {**found, "measured": describe_machine()}


def main() -> None:
    """Measure, print and write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/bench-explore"))
    parser.add_argument("--part", choices=PARTS, action="append")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    parts = json.loads(RESULT.read_text(encoding="utf-8"))["parts"] if asked.part else {}
    for part in asked.part or PARTS:
        parts[part] = measure(part, asked.work)
    page, server = (parts[name][str(SIZES[-1])] for name in ("page", "server"))
    result = {
        "select_cpu_s_100k": round(page["select_cpu_s"], 3),
        "select_s_100k": round(page["select_s"], 3),
        "figure_mb_100k": round(server["figure_mb"], 3),
        "label_error_precision_top": round(parts["findings"]["label_errors"]["precision_top"], 3),
        "what": WHAT,
        "seed": SEED,
        "parts": parts,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
