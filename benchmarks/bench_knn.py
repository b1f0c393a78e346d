"""The neighbour search compared with scikit-learn's brute force, at several gallery sizes.

Rows are unit vectors of 128 dimensions around 200 centres. Queries are one image, as in the app,
and a batch of 64. Result: results/knn.json with seconds, `speedup_1m` (one image) and `identical`
(the 64 queries together, and one by one).
"""

import argparse
from collections.abc import Callable

import faiss
import harness
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from core.config import Settings
from core.gallery.search import Gallery

K = 15
ROUNDS = 5


def draw_rows(n: int, *, seed: int) -> np.ndarray:
    """Draw (n, 128) unit vectors."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    rows = centres[rng.integers(0, 200, n)]
    rows += rng.standard_normal((n, 128), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def build_gallery(rows: np.ndarray) -> Gallery:
    """Build a gallery of rows with dummy names."""
    n = len(rows)
    blank = ("",) * n
    return Gallery(
        rows, np.zeros(n, np.int64), keys=blank, splits=blank, groups=blank, sha256=blank
    )


def measure(n: int) -> dict[str, object]:
    """Measure one gallery size."""
    rows, queries = draw_rows(n, seed=1), draw_rows(64, seed=2)
    gallery = build_gallery(rows)
    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(rows)
    theirs = brute.kneighbors(queries)[1]
    alone = np.concatenate([gallery.search(query[None], K)[1] for query in queries])
    is_same = np.array_equal(gallery.search(queries, K)[1], theirs)
    found: dict[str, object] = {"identical": bool(is_same and np.array_equal(alone, theirs))}
    for name, batch in (("one", queries[:1]), ("batch_of_64", queries)):
        sides: dict[str, Callable[[], object]] = {
            "ours": lambda batch=batch: gallery.search(batch, K),
            "scikit-learn": lambda batch=batch: brute.kneighbors(batch),
        }
        seconds = harness.alternate(sides, rounds=ROUNDS)
        found[name] = {
            "seconds": {side: round(float(np.median(s)), 6) for side, s in seconds.items()},
            "speedup": harness.measure_ratio(seconds["scikit-learn"], seconds["ours"]),
        }
    return found


def main() -> None:
    """Measure every size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    n_threads = Settings.from_env().n_threads or torch.get_num_threads()
    faiss.omp_set_num_threads(n_threads)
    found = {str(n): measure(n) for n in options.sizes}
    last = found[str(options.sizes[-1])]
    harness.write_result(
        "knn",
        {
            "n_threads": n_threads,
            "k": K,
            "sizes": found,
            "speedup_1m": last["one"]["speedup"] if options.sizes[-1] == 1_000_000 else None,
            "identical": all(size["identical"] for size in found.values()),
        },
    )
    print(found)


if __name__ == "__main__":
    main()
