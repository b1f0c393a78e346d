"""Scaling of our time and memory with images per batch, gallery size and k.

Result: results/scale.json. `embed`: one trunk run for both members of the given model, four views
per image. `search`: one query in unit vectors of 128 dimensions.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import harness
import torch
from bench_knn import build_gallery, draw_rows

from core.config import Settings
from core.images import phantom
from core.models.registry import load_bundle
from core.network.embedder import embed_together

ROUNDS = 3


def clock(run: object) -> float:
    """Median seconds of a call, after a warm-up call."""
    times = []
    for turn in range(ROUNDS + 1):
        began = time.perf_counter()
        run()  # type: ignore[operator]
        if turn:
            times.append(time.perf_counter() - began)
    return round(median(times), 5)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Settings.from_env().checkpoints_dir)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--galleries", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--k", type=int, nargs="*", default=[1, 15, 50, 200])
    options = parser.parse_args()
    model = load_bundle(options.checkpoints, options.model, settings=Settings.from_env())
    embedders = [member.bundle.embedder for member in model.members]
    embed = []
    for n in options.batches:
        images = [phantom.draw(s, is_diseased=s % 2 == 0, size=384).pixels for s in range(n)]
        seconds = clock(lambda images=images: embed_together(embedders, images))
        embed.append({"images": n, "seconds": seconds, "peak_mb": round(harness.peak_mb())})
    search = []
    for n in options.galleries:
        gallery, query = build_gallery(draw_rows(n, seed=1)), draw_rows(1, seed=2)
        for k in options.k:
            seconds = clock(lambda g=gallery, q=query, k=k: g.search(q, k))
            found = {"rows": n, "k": k, "seconds": seconds, "peak_mb": round(harness.peak_mb())}
            search.append(found)
    harness.write_result(
        "scale", {"n_threads": torch.get_num_threads(), "embed": embed, "search": search}
    )
    print(embed, search)


if __name__ == "__main__":
    main()
