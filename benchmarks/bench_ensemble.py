"""Cost per image of an ensemble of two models on one preset, compared with a single member.

    PYTHONPATH=. python benchmarks/bench_ensemble.py --models MODELS --name demo

The same synthetic fundus images are diagnosed one by one by the ensemble and by its first member,
alternately, without heatmaps (which are optional) and with them. Writes results/ensemble.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import harness

from core.answers.diagnose import diagnose
from core.config import Settings
from core.images.decode import decode, encode_png
from core.images.phantom import draw
from core.models.registry import load_bundle

SEED = 1000


def run(models: Path, name: str, *, n_images: int, with_maps: bool) -> dict[str, float]:
    """Median CPU seconds per image, for the ensemble and one member alternately."""
    vote = load_bundle(models, name, settings=Settings(checkpoints_dir=models))
    one = vote.members[0].bundle
    seconds: dict[str, list[float]] = {"vote": [], "one": []}
    for index in range(n_images + 1):
        phantom = draw(SEED + index, is_diseased=bool(index % 2))
        image = decode(encode_png(phantom.pixels), name=f"{index}.png")
        for key, model in (("vote", vote), ("one", one)):
            began = time.process_time()
            diagnose(model, [image], explain=with_maps)
            if index:  # the first is a warm-up
                seconds[key].append(time.process_time() - began)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    ratios = [v / o for v, o in zip(seconds["vote"], seconds["one"], strict=True)]
    return {
        "seconds_vote": medians["vote"],
        "seconds_one": medians["one"],
        "ratio": statistics.median(ratios),
        "n_images": n_images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("checkpoints"))
    parser.add_argument("--name", default="demo")
    parser.add_argument("--images", type=int, default=20)
    args = parser.parse_args()
    result = {
        "model": args.name,
        "without_heatmaps": run(args.models, args.name, n_images=args.images, with_maps=False),
        "with_heatmaps": run(args.models, args.name, n_images=args.images, with_maps=True),
    }
    harness.write_result("ensemble", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
