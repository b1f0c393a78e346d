"""Quality of heatmaps on busi and idrid, by lesion masks and by the vote.

    PYTHONPATH=. python benchmarks/bench_explanations.py --models MODELS --data ../shared/data

MODELS has a model named after each data set (``python -m core train --name busi ...``). All test
lesions with a mask are used for the pointing game and the energy, the first 16 (sampled) for
deletion and insertion, with 5 steps per curve. All metrics have 95 % intervals over patients. A
data set without a model keeps its earlier rows. Writes results/explanations.json.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path

from core.assessment.heatmap_study import study_heatmaps
from core.config import Settings
from core.data.datasets import read_dataset
from core.explanations.integrated_gradients import SHOWN
from core.files.whole import write_text
from core.models.registry import find_model, load_bundle

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "timm", "grad-cam", "numpy")
METHODS = ("integrated", "grad-cam", "hirescam", "layercam")
SEED = 0


def describe_machine() -> dict:
    """Describe the machine and software of a measurement."""
    return {
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def run(models: Path, data: Path, name: str, *, n_faithful: int, n_images: int | None) -> dict:
    """Run the study of one data set; return it with what is needed to repeat it."""
    settings = Settings(checkpoints_dir=models, n_threads=1)
    model = load_bundle(models, name, settings=settings)
    began, cpu = time.monotonic(), time.process_time()
    study = study_heatmaps(
        model,
        read_dataset(data / name),
        split="test",
        methods=METHODS,
        n_images=n_images,
        n_faithful=n_faithful,
        seed=SEED,
        progress=lambda done, text: print(f"{name} {done:4.0%} {text}", flush=True),
    )
    summary = find_model(models, name)
    return {
        **study,
        **describe_machine(),
        "shown": {"method": METHODS[0], **dataclasses.asdict(SHOWN)},
        "model": {
            "preset": summary.preset,
            "weights_sha256": summary.weights_sha256,
            "val_accuracy": summary.val_accuracy,
            "val_auroc": summary.val_auroc,
        },
        "n_faithful": n_faithful,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", default="busi,idrid")
    parser.add_argument("--n-images", type=int, default=None)
    parser.add_argument("--n-faithful", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "explanations.json")
    arguments = parser.parse_args()
    result: dict = {"data": {}}
    if arguments.out.is_file():  # keep sets measured earlier, with their machine
        result["data"] = json.loads(arguments.out.read_text(encoding="utf-8"))["data"]
    for name in arguments.sets.split(","):
        if (arguments.models / name).is_dir() and (arguments.data / name).is_dir():
            result["data"][name] = run(
                arguments.models,
                arguments.data,
                name,
                n_faithful=arguments.n_faithful,
                n_images=arguments.n_images,
            )
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(arguments.out, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
