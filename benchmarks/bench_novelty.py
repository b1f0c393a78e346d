"""How well images of another kind are refused, and how many of the right kind are accepted.

Per data set: the reference is the frozen trunks' descriptors of the training images, the limit is
the one the models use (``KnnConfig``), ``accepted_test`` the share of real test images within it,
``refused_ood`` the share of foreign images beyond it or refused by the decoder. Foreign images are
photographs (whole and in crops), noise, near-blank and blank frames, pages of text, and the test
images of the other data sets. ``at_95`` says the same at the limit that accepts 95 % of test.

    python benchmarks/bench_novelty.py --data ../shared/data --out benchmarks/results/novelty.json
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from core import novelty, phantom
from core.config import KnnConfig, Settings, build_preset
from core.datasets import load_record, read_dataset
from core.embedder import Embedder, build_embedder
from core.errors import ImageError
from core.image_io import decode, encode_png

SEED = 0
N_PER_FAMILY = 50
SETS = {"kermany": "kermany_cxr_1639", "idrid": "idrid", "busi": "busi"}
_DEMO = {"n_train": 160, "n_test": 60, "size": 384}
_TEXT = (
    "Findings impression comparison technique the lungs are clear no focal consolidation history "
    "of cough heart size normal follow up recommended signed electronically page report"
)


def draw_noise(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """Uniform, Gaussian and coarse noise, grey and coloured, in turn."""
    side, channels = (256, 16, 64)[index % 3], 1 if index % 2 else 3
    values = (
        rng.random((side, side, channels))
        if index % 4
        else rng.normal(0.5, 0.2, (side, side, channels))
    )
    small = np.repeat(np.clip(values, 0, 1) * 255, 3 // channels, axis=2).astype(np.uint8)
    return np.asarray(PILImage.fromarray(small).resize((256, 256), PILImage.Resampling.BICUBIC))


def draw_blank(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """One shade, a shade with faint sensor noise, or a smooth ramp."""
    shade = rng.integers(0, 256, 3) if index % 2 else np.repeat(rng.integers(0, 256), 3)
    page = np.broadcast_to(shade, (256, 256, 3)).astype(float)
    if index % 3 == 1:
        page = page + rng.normal(0, 2, (256, 256, 1))
    if index % 3 == 2:
        page = page * np.linspace(0.6, 1.0, 256)[:, None, None]
    return np.clip(page, 0, 255).astype(np.uint8)


def draw_text(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """A page of words, black on white or white on black."""
    ink, paper = ((255, 255, 255), (0, 0, 0)) if index % 4 == 3 else ((20, 20, 20), (250, 250, 250))
    page = PILImage.new("RGB", (620, 800), paper)
    size = int(rng.integers(12, 30))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range(30, 780, int(size * 1.5)):
        words = " ".join(rng.choice(_TEXT.split(), int(rng.integers(3, 12))))
        pen.text((40, top), words, fill=ink, font=font)
    return np.asarray(page)


def crop_photograph(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """scikit-learn's two photographs: whole, then random crops of a fifth to all of the side."""
    photo = np.asarray(load_sample_images().images[index % 2])
    if index < 2:
        return photo
    height, width = photo.shape[:2]
    side = int(rng.uniform(0.2, 1.0) * height)
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return photo[top : top + side, left : left + side]


FAMILIES = {
    "photographs": crop_photograph,
    "noise": draw_noise,
    "blank": draw_blank,
    "text pages": draw_text,
}


def draw_family(name: str) -> list[NDArray[np.uint8] | None]:
    """Pictures as the app would decode them; None where the decoder refuses."""
    rng = np.random.default_rng([SEED, list(FAMILIES).index(name)])
    decoded: list[NDArray[np.uint8] | None] = []
    for index in range(N_PER_FAMILY):
        try:
            data = encode_png(np.ascontiguousarray(FAMILIES[name](rng, index)))
            decoded.append(decode(data).pixels)
        except ImageError:
            decoded.append(None)
    return decoded


def describe(embedder: Embedder, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Descriptors (N, P) of images; only the clean view counts, so only it is run."""
    return embedder.embed(images).descriptors if images else np.zeros((0, 1), np.float32)


def read_split(root: Path, split: str) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Pixels and keys of a split; what cannot be read is left out."""
    pixels, keys = [], []
    for record in read_dataset(root).subset(split):
        try:
            pixels.append(load_record(record).pixels)
            keys.append(record.key)
        except ImageError:
            continue
    return pixels, keys


def measure(
    train: NDArray[np.float32],
    held_out: dict[str, NDArray[np.float32]],
    foreign: dict[str, tuple[NDArray[np.float32], int]],
) -> dict[str, object]:
    """Accepted and refused shares at the models' limit, and at 95 % acceptance of test.

    Args:
        train: (N, P) descriptors of the gallery.
        held_out: split -> descriptors of images of the right kind.
        foreign: family -> descriptors, and how many more the decoder refused.
    """
    config = KnnConfig()
    reference = novelty.fit(train)
    limit = reference.compute_limit(
        percentile=config.novelty_percentile, slack=config.novelty_slack
    )
    scores = {name: reference.score(rows) for name, rows in held_out.items()}
    wild = {
        name: (reference.score(rows) if len(rows) else np.zeros(0), n)
        for name, (rows, n) in foreign.items()
    }

    def refuse(bound: float) -> dict[str, float]:
        shares = {
            name: (int((values > bound).sum()) + n) / (len(values) + n)
            for name, (values, n) in wild.items()
        }
        total = sum(len(v) + n for v, n in wild.values())
        caught = sum(int((v > bound).sum()) + n for v, n in wild.values())
        return {"all": caught / total, **shares}

    at_95 = float(np.quantile(scores["test"], 0.95))
    refused = refuse(limit)
    return {
        "n_train": len(train),
        "n_test": len(scores["test"]),
        "n_ood": sum(len(v) + n for v, n in wild.values()),
        "limit": limit,
        "accepted_test": float((scores["test"] <= limit).mean()),
        "accepted_val": float((scores["val"] <= limit).mean()) if "val" in scores else None,
        "refused_ood": refused.pop("all"),
        "refused_by_family": refused,
        "at_95": {
            "limit": at_95,
            "refused_ood": refuse(at_95).pop("all"),
            "by_family": refuse(at_95),
        },
        "quantiles": {
            name: np.round(np.quantile(values, [0.01, 0.05, 0.5, 0.95, 0.99]), 4).tolist()
            for name, values in {
                "gallery": reference.distances,
                **scores,
                **{k: v for k, (v, _) in wild.items() if len(v)},
            }.items()
        },
    }


def main() -> None:
    """Measure every data set against every foreign family and the other sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/novelty.json"))
    parser.add_argument("--preset", default="offline")
    parser.add_argument("--work", type=Path, default=Path("/tmp/bench-novelty"))
    parser.add_argument("--descriptors", type=Path, help="Keep or reuse descriptors (npz) here.")
    options = parser.parse_args()
    began = time.monotonic()
    config = build_preset(options.preset)
    config = dataclasses.replace(config, embedder=dataclasses.replace(config.embedder, tta=False))
    embedder = build_embedder(config, Settings.from_env())
    demo = options.work / "demo-data"
    if not demo.is_dir():
        phantom.write_dataset(demo, **_DEMO)
    roots = {"demo": demo, **{name: options.data / folder for name, folder in SETS.items()}}
    kept: dict[str, NDArray[np.float32]] = {}
    if options.descriptors and options.descriptors.is_file():
        with np.load(options.descriptors) as arrays:
            kept = dict(arrays)
    for name, root in roots.items():
        for split in ("train", "val", "test"):
            if f"{name}/{split}" not in kept:
                kept[f"{name}/{split}"] = describe(embedder, read_split(root, split)[0])
                print(
                    name,
                    split,
                    kept[f"{name}/{split}"].shape,
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
    refused_by_decoder = {}
    for family in FAMILIES:
        drawn = draw_family(family)
        refused_by_decoder[family] = sum(picture is None for picture in drawn)
        kept[f"family/{family}"] = describe(embedder, [p for p in drawn if p is not None])
    if options.descriptors:
        np.savez(options.descriptors, **kept)
    results = {}
    for name in roots:
        foreign = {f: (kept[f"family/{f}"], refused_by_decoder[f]) for f in FAMILIES}
        foreign |= {
            f"{other} test images": (kept[f"{other}/test"], 0) for other in SETS if other != name
        }
        held_out = {split: kept[f"{name}/{split}"] for split in ("val", "test")}
        results[name] = measure(kept[f"{name}/train"], held_out, foreign)
    write(options.out, results, seconds=time.monotonic() - began, preset=config.preset)


def write(path: Path, results: dict[str, object], *, seconds: float, preset: str) -> None:
    """Write the figures with what they were measured on; by rename."""
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "faiss-cpu")},
        "seed": SEED,
        "preset": preset,
        "seconds": round(seconds, 1),
        "data_sets": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    for name, found in results.items():
        assert isinstance(found, dict)
        print(name, f"accepted {found['accepted_test']:.3f}", f"refused {found['refused_ood']:.3f}")


if __name__ == "__main__":
    main()
