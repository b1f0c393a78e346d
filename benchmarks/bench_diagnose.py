"""One image end to end, ours against the plain version: seconds, memory, roofline, Grad-CAM's cost.

`offline`: the ensemble in --checkpoints (default: the demo's). `paper`: two models of the paper's
backbones with random weights at 448 px, built here with a small random gallery. Both sides must
give the same answer and the same maps, which is checked. Peak memory is measured in a separate
process for each side, including loading.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import cv2
import harness
import numpy as np
import plain
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.answers.diagnose import diagnose
from core.answers.heatmaps import draw_heatmaps
from core.answers.votes import vote_batch
from core.config import RunConfig, Settings, build_preset
from core.gallery import novelty
from core.gallery.search import Gallery, split_parts
from core.images import phantom
from core.images.decode import decode, encode_jpeg
from core.models.bundle import BundleConfig, Contents
from core.models.bundle_files import save_bundle
from core.models.ensemble import Model, build_ensemble, read_ensemble
from core.models.registry import load_bundle
from core.network.build import build_embedder
from core.network.embedder import embed_together
from core.network.transforms import build_batch, build_test_views
from core.stats.calibration import Calibration

ROUNDS = {"offline": 9, "paper": 1}
N_GALLERY = 2_000  # rows of the random gallery of `paper`


def build_random_ensemble(directory: Path) -> None:
    """Build two `paper` models with random weights and a random gallery, as an ensemble."""
    settings = dataclasses.replace(Settings.from_env(), checkpoints_dir=directory)
    for index, objective in enumerate(("triplet", "metric-ensemble")):
        run = build_preset("paper", recipe="report").with_overrides(
            [f"objective.name={objective}", f"train.seed={index}"]
        )
        random = dataclasses.replace(run.embedder, random_weights=True)
        run = dataclasses.replace(run, embedder=random)
        write_random_model(directory, f"random-{index}", run, settings)
    build_ensemble(directory, "ensemble", ["random-0", "random-1"], min_val_accuracy=0.0)


def write_random_model(directory: Path, name: str, run: RunConfig, settings: Settings) -> None:
    """Write a bundle as training would, but without training."""
    embedder = build_embedder(run, settings)
    pictures = [phantom.draw(seed, is_diseased=seed % 2 == 1, size=448).pixels for seed in range(2)]
    seen = embedder.embed(pictures)
    rng = np.random.default_rng(len(name))
    parts = max(1, run.objective.n_adapters)

    def scatter(points: np.ndarray, spread: float, n_parts: int) -> np.ndarray:
        rows = points[np.arange(N_GALLERY) % 2]
        blocks = []
        for block in split_parts(rows.astype(np.float32), n_parts):
            moved = block + spread * rng.standard_normal(block.shape).astype(np.float32)
            blocks.append(moved / np.linalg.norm(moved, axis=1, keepdims=True))
        return np.concatenate(blocks, axis=1) / np.float32(n_parts**0.5)

    texts = tuple(map(str, range(N_GALLERY)))
    gallery = Gallery(
        scatter(seen.embeddings, 0.02, parts),
        np.arange(N_GALLERY, dtype=np.int64) % 2,
        keys=texts,
        splits=("train",) * N_GALLERY,
        groups=("",) * N_GALLERY,
        sha256=texts,
        n_parts=parts,
    )
    thumbnail = encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    contents = Contents(
        gallery=gallery,
        novelty=novelty.fit(scatter(seen.descriptors, 0.01, 1)),
        gallery_xy=rng.standard_normal((N_GALLERY, 2)).astype(np.float32),
        projection_key="random",
        calibration=Calibration(temperature=1.0, k=15),
        metrics={"validation": {"accuracy": 1.0}, "n_gallery": N_GALLERY},
        thumbnails=(thumbnail,) * N_GALLERY,
        card="random weights: for the benchmark alone\n",
    )
    config = BundleConfig(
        model_id=name,
        created="2026-01-01T00:00:00+00:00",
        run=run,
        class_names=("normal", "disease"),
        disease_index=1,
        data_id="random",
        data_root=str(directory),
        is_synthetic=True,
        backbones=tuple(backbone.info for backbone in embedder.backbones),
        precision=embedder.precision,
        weights_sha256="",
    )
    save_bundle(directory, config, embedder, contents)


def load(preset: str, directory: Path, name: str) -> Model:
    """Load our side's model."""
    if preset == "offline":
        return load_bundle(directory, name, settings=Settings.from_env())
    return read_ensemble(directory / "ensemble", Settings.from_env())


def draw_image() -> bytes:
    """Draw the file that both sides decode."""
    return encode_jpeg(phantom.draw(900_001, is_diseased=True, size=768).pixels)


def run_ours(model: Model, data: bytes, *, with_maps: bool = True) -> object:
    """Diagnose a file's bytes as the page and the command line do."""
    return diagnose(model, [decode(data, name="image.jpg")], explain=with_maps)[0]


def measure_stages(model: Model, data: bytes, *, rounds: int) -> dict[str, float]:
    """Measure each stage in milliseconds (no overlap), the median of the rounds."""
    embedders = [m.bundle.embedder for m in model.members]
    first = embedders[0]
    found: dict[str, list[float]] = {}

    def clock(name: str, began: float) -> float:
        now = time.perf_counter()
        found.setdefault(name, []).append((now - began) * 1000.0)
        return time.perf_counter()

    for _ in range(rounds):
        at = time.perf_counter()
        image = decode(data, name="image.jpg")
        at = clock("decode", at)
        views = build_test_views([image.pixels], first.config)
        at = clock("views", at)
        activations = [a[:, None] for a in first.run_trunks(views[:, 0])]
        at = clock("trunks", at)
        embedded = [e.embed_activations(activations) for e in embedders]
        at = clock("tails", at)
        votes = [
            vote_batch(member, outcome, [image], groups=[""])[0]
            for member, outcome in zip(model.members, embedded, strict=True)
        ]
        at = clock("vote", at)
        draw_heatmaps(
            model.members,
            embedded,
            class_names=model.class_names,
            excluded=[tuple(vote.related) for vote in votes],
        )
        clock("heatmaps", at)
    return {name: round(median(times), 2) for name, times in found.items()}


def measure_roofline(model: Model, data: bytes, *, rounds: int) -> dict[str, object]:
    """Compute a roofline: FLOPs of trunks and tails over the matrix-product rate.

    The rate is measured with each run, per precision, as the best of several matrix sizes.
    """
    embedders = [m.bundle.embedder for m in model.members]
    pixels = [decode(data, name="image.jpg").pixels]
    flops = count_flops(embedders, pixels)
    peaks = {name: measure_peak(getattr(torch, name)) for name in flops}
    ideal = sum(flops[name] / peaks[name] for name in flops)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        embed_together(embedders, pixels)
        seconds.append(time.perf_counter() - began)
        peaks = {k: max(peaks[k], measure_peak(getattr(torch, k))) for k in peaks}
    ideal = sum(flops[name] / peaks[name] for name in flops)
    return {
        "roofline_share": round(ideal / median(seconds), 3),
        "gflop": {k: round(v / 1e9, 1) for k, v in flops.items()},
        "matrix_product_gflops": {k: round(v / 1e9, 1) for k, v in peaks.items()},
    }


def count_flops(embedders: list, pixels: list) -> dict[str, float]:
    """Count FLOPs per precision: each trunk once, every member's tail; four views."""
    counted: dict[str, float] = {}
    for number, embedder in enumerate(embedders):
        size = embedder.config.preprocess.input_size
        batch = build_batch(pixels, size=size)
        for backbone, frozen in zip(embedder.backbones, embedder.frozen_tails, strict=True):
            with torch.no_grad(), FlopCounterMode(display=False) as trunk:
                like = next(backbone.trunk.parameters())  # if the trunk is compiled: without values
                activation = backbone.trunk.forward_features(
                    backbone._normalise(batch).to(like.device, like.dtype)
                )
            with torch.no_grad(), FlopCounterMode(display=False) as tail:
                backbone.tail(torch.zeros(activation.shape))
            is_half = (
                frozen.dtype == torch.bfloat16 or getattr(frozen.body, "precision", "") == "bf16"
            )
            for name, part, counts in (
                (str(backbone.dtype).removeprefix("torch."), trunk, number == 0),
                ("bfloat16" if is_half else "float32", tail, True),
            ):
                more = 4.0 * part.get_total_flops() if counts else 0.0
                counted[name] = counted.get(name, 0.0) + more
    return counted


def measure_peak(dtype: torch.dtype) -> float:
    """FLOPs per second of a plain matrix product."""
    best = 0.0
    for n in (2048, 3072):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        for _ in range(3):
            began = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2.0 * n**3 / (time.perf_counter() - began))
    return best


def compare(model: Model, plains: list[plain.PlainModel], data: bytes) -> dict[str, object]:
    """Check whether both sides agree."""
    ours = run_ours(model, data)
    theirs = plain.diagnose(plains, data)
    leading = ours.heatmaps
    cosines = []
    for index, name in enumerate(leading):
        mixed = np.average(
            [m[index] for m in theirs.maps], axis=0, weights=[p.weight for p in plains]
        )
        height, width = leading[name].shape
        small = cv2.resize(mixed.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        a, b = leading[name].ravel(), small.ravel()
        cosines.append(float(a @ b / max(1e-12, np.linalg.norm(a) * np.linalg.norm(b))))
    p_ours = ours.probabilities[model.disease_class]
    return {
        "p_disease": [round(p_ours, 5), round(theirs.p_disease, 5)],
        "same_class": (p_ours > 0.5) == (theirs.p_disease > 0.5),
        "heatmap_cosine": [round(c, 4) for c in cosines],
    }


def run_one_side(options: argparse.Namespace) -> None:
    """A child process: load one side, diagnose once or twice, print the peak."""
    data = draw_image()
    if options.side == "ours":
        model = load(options.preset, options.checkpoints, options.model)
        for _ in range(2):
            run_ours(model, data)
    else:
        models = torch.load(options.plain_file, weights_only=False)  # written by this script
        for model in models if options.side == "default" else ():
            for backbone in model.backbones:
                backbone.requires_grad_(True)
        plain.diagnose(models, data)
    print(json.dumps({"peak_mb": round(harness.peak_mb(), 1)}))


def main() -> None:
    """Run one preset, or one side of it in a child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("offline", "paper"), default="offline")
    parser.add_argument("--checkpoints", type=Path, default=Settings.from_env().checkpoints_dir)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--side", choices=("ours", "frugal", "default"))
    parser.add_argument("--plain-file", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--default-gradients",
        action="store_true",
        help="also the peak of the plain side with gradients on all parameters, timm's default",
    )
    options = parser.parse_args()
    if options.side:
        run_one_side(options)
        return
    if options.preset == "paper":
        with tempfile.TemporaryDirectory() as folder:
            options.checkpoints = Path(folder)
            build_random_ensemble(options.checkpoints)
            measure(options)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure one preset and write results/diagnose_<preset>.json."""
    data = draw_image()
    rounds = options.rounds or ROUNDS[options.preset]
    model = load(options.preset, options.checkpoints, options.model)
    plains = [plain.PlainModel(member) for member in model.members]
    agreement = compare(model, plains, data)
    seconds = harness.alternate(
        {
            "ours": lambda: run_ours(model, data),
            "plain": lambda: plain.diagnose(plains, data),
        },
        rounds=rounds,
        warms_up=False,  # the comparison has already run both
    )
    own = harness.alternate(
        {
            "with_maps": lambda: run_ours(model, data),
            "without": lambda: run_ours(model, data, with_maps=False),
        },
        rounds=max(2, rounds),
        warms_up=False,
    )
    document: dict[str, object] = {
        "preset": options.preset,
        "n_threads": torch.get_num_threads(),
        "speedup": harness.measure_ratio(seconds["plain"], seconds["ours"]),
        "seconds": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
        "gradcam_overhead": round(median(own["with_maps"]) / median(own["without"]) - 1.0, 3),
        "stages": measure_stages(model, data, rounds=max(2, rounds)),
        **measure_roofline(model, data, rounds=max(2, rounds)),
        "agreement": agreement,
    }
    if not options.no_memory:
        peaks = measure_peaks(options, plains)
        document["peak_mb"] = peaks
        document["memory_ratio"] = round(peaks["ours"] / peaks["frugal"], 3)
        if "default" in peaks:
            ratio = round(peaks["ours"] / peaks["default"], 3)
            document["memory_ratio_default_gradients"] = ratio
    harness.write_result(f"diagnose_{options.preset}", document)
    print(json.dumps(document, indent=2))


def measure_peaks(options: argparse.Namespace, plains: list[plain.PlainModel]) -> dict[str, float]:
    """Measure the peak memory of a process that loads one side and diagnoses, in MB."""
    base = ["--preset", options.preset, "--checkpoints", str(options.checkpoints)]
    base += ["--model", options.model]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.pt"
        torch.save(plains, path)
        plains.clear()
        base += ["--plain-file", str(path)]
        return {
            side: float(harness.measure_child(__file__, [*base, "--side", side])["peak_mb"])
            for side in ("ours", "frugal", *(["default"] if options.default_gradients else []))
        }


if __name__ == "__main__":
    main()
