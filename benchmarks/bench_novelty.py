"""Out-of-distribution detection: how many foreign images are refused, how many own ones accepted.

For each data set, ``accepted_test`` is the fraction of real test images that get an answer, and
``refused_ood`` the fraction of foreign images that are refused as novel or by the decoder. Foreign
images are photographs (whole and cropped), noise, near-blank and blank frames, pages of text, and
the test images of the other data sets, e.g. a chest film given to the fundus demo and vice versa.
``at_95`` gives the same at the limit that accepts 95 % of test.

``copies`` is the fraction of ordinary copies of val and test images (saved again as JPEG, scaled,
trimmed) that is accepted, and ``before`` everything at the limit of models that did not measure
copies of their training images. The factor on those copies was chosen on val; test only reports.

If a model is given for a data set, it is evaluated as shipped: with its own gallery and limit, and
refusing if any member refuses. The score is the largest distance of a member in units of its limit,
and a sample goes through ``answers.diagnose`` to verify that it decides the same. Without a model,
the reference is the preset's frozen backbones on the training images.

    PYTHONPATH=. python benchmarks/bench_novelty.py --data ../shared/data \\
        --model demo=checkpoints/demo --model kermany=checkpoints/cxr \\
        --model idrid=checkpoints/idrid
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ordinary_copies as copies
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from core.answers.diagnose import diagnose
from core.config import KnnConfig, Settings, TrainConfig, build_preset
from core.data.datasets import load_record, read_dataset
from core.errors import ImageError
from core.gallery import novelty
from core.images import phantom
from core.images.decode import decode, encode_png
from core.models.ensemble import Model
from core.models.registry import load_bundle
from core.network.build import build_embedder
from core.network.embedder import Embedder

SEED = 0
N_PER_FAMILY = 50
N_CHECKED = 5  # images of every kind that go through the full ``diagnose``
SETS = {"kermany": "kermany_cxr_1639", "idrid": "idrid", "busi": "busi"}
_TEXT = (
    "Findings impression comparison technique the lungs are clear no focal consolidation history "
    "of cough heart size normal follow up recommended signed electronically page report"
)


def draw_noise(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """Draw uniform, Gaussian and coarse noise, grey and coloured, in turn."""
    side, channels = (256, 16, 64)[index % 3], 1 if index % 2 else 3
    values = (
        rng.random((side, side, channels))
        if index % 4
        else rng.normal(0.5, 0.2, (side, side, channels))
    )
    small = np.repeat(np.clip(values, 0, 1) * 255, 3 // channels, axis=2).astype(np.uint8)
    return np.asarray(PILImage.fromarray(small).resize((256, 256), PILImage.Resampling.BICUBIC))


def draw_blank(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """Draw a uniform shade, one with faint sensor noise, or a smooth ramp."""
    shade = rng.integers(0, 256, 3) if index % 2 else np.repeat(rng.integers(0, 256), 3)
    page = np.broadcast_to(shade, (256, 256, 3)).astype(float)
    if index % 3 == 1:
        page = page + rng.normal(0, 2, (256, 256, 1))
    if index % 3 == 2:
        page = page * np.linspace(0.6, 1.0, 256)[:, None, None]
    return np.clip(page, 0, 255).astype(np.uint8)


def draw_text(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """Draw a page of words, black on white or white on black."""
    ink, paper = ((255, 255, 255), (0, 0, 0)) if index % 4 == 3 else ((20, 20, 20), (250, 250, 250))
    page = PILImage.new("RGB", (620, 800), paper)
    size = int(rng.integers(12, 30))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range(30, 780, int(size * 1.5)):
        words = " ".join(rng.choice(_TEXT.split(), int(rng.integers(3, 12))))
        pen.text((40, top), words, fill=ink, font=font)
    return np.asarray(page)


def crop_photograph(rng: np.random.Generator, index: int) -> NDArray[np.uint8]:
    """Crop scikit-learn's two photographs: whole, then 0.2 to 1 times the side at random."""
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
    """Draw images as the app would decode them; None if the decoder refuses."""
    rng = np.random.default_rng([SEED, list(FAMILIES).index(name)])
    decoded: list[NDArray[np.uint8] | None] = []
    for index in range(N_PER_FAMILY):
        try:
            data = encode_png(np.ascontiguousarray(FAMILIES[name](rng, index)))
            decoded.append(decode(data).pixels)
        except ImageError:
            decoded.append(None)
    return decoded


def read_split(
    root: Path, split: str, *, val_fraction: float, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of a split one by one, skipping unreadable images."""
    for record in read_dataset(root, val_fraction=val_fraction, seed=seed).subset(split):
        try:
            yield load_record(record).pixels
        except ImageError:
            continue


@dataclass(frozen=True)
class Source:
    """Images of one kind, read lazily, and how many the decoder refused."""

    read: Callable[[], Iterable[NDArray[np.uint8]]]
    n_refused: int = 0


class Descriptors:
    """(N, P) descriptors of every kind of image; trunks shared by models run once per image."""

    def __init__(self, sources: dict[str, Source], kept: Path | None) -> None:
        self.sources = sources
        self.path = kept
        self.known: dict[str, NDArray[np.float32]] = {}
        self.began = time.monotonic()
        if kept and kept.is_file():
            with np.load(kept) as arrays:
                self.known = dict(arrays)

    def find(self, embedder: Embedder, name: str) -> NDArray[np.float32]:
        """Compute descriptors; only the clean view is used, so only it is run."""
        size = embedder.config.preprocess.input_size
        trunks = "+".join(b.trunk_hash for b in embedder.backbones)
        key = f"{trunks}@{size}@{embedder.precision}@{name}"
        if key not in self.known:
            run = embedder.config
            run = dataclasses.replace(run, embedder=dataclasses.replace(run.embedder, tta=False))
            images = iter(self.sources[name].read())
            first = next(images, None)
            self.known[key] = (
                np.zeros((0, 1), np.float32)
                if first is None
                else dataclasses.replace(embedder, config=run)
                .embed(itertools.chain([first], images))
                .descriptors
            )
            n = len(self.known[key])
            print(name, n, f"{time.monotonic() - self.began:.0f} s", flush=True)
            if self.path:
                np.savez(self.path, **self.known)
        return self.known[key]


def score(
    reference: novelty.NoveltyReference, descriptors: NDArray[np.float32]
) -> NDArray[np.floating]:
    """Distances of (N, P) descriptors; N may be 0 if the decoder refused a whole family."""
    return reference.score(descriptors) if len(descriptors) else np.zeros(0)


@dataclass(frozen=True, eq=False)
class Scores:
    """Distances per kind, and the limit that they are compared with."""

    values: dict[str, NDArray[np.floating]]
    limit: float
    before: "Scores | None" = None  # without the copies of training images


def find_limit(reference: novelty.NoveltyReference, config: KnnConfig) -> float:
    """The limit a model sets."""
    return reference.compute_limit(percentile=config.novelty_percentile, slack=config.novelty_slack)


def score_by_backbones(
    embedder: Embedder, described: Descriptors, name: str, kinds: Sequence[str]
) -> Scores:
    """Distances of every kind to the training images, and the limit a model would set."""
    gallery = described.find(embedder, f"{name}/train")
    rows = copies.space_out(len(gallery), copies.N_FITTED)
    copied = [
        novelty.measure_copies(gallery, described.find(embedder, f"{name}/train, {kind}"), rows)
        for kind in copies.FITTED
    ]
    old, new = novelty.fit(gallery), novelty.fit(gallery, copy_distances=np.stack(copied))
    values = {kind: score(old, described.find(embedder, kind)) for kind in kinds}
    values = {"gallery": old.distances, **values}
    before = Scores(values, find_limit(old, KnnConfig()))
    return Scores(values, find_limit(new, KnnConfig()), before)


def score_by_model(model: Model, described: Descriptors, kinds: Sequence[str]) -> Scores:
    """The largest member distance in units of that member's limit, per kind; the limit is 1."""
    values, old_values = {}, {}
    for kind in kinds:
        by_member, by_old = [], []
        for member in model.members:
            bundle = member.bundle
            reference = bundle.contents.novelty
            found = score(reference, described.find(bundle.embedder, kind))
            old = dataclasses.replace(reference, copy_distances=None)
            by_member.append(found / bundle.novelty_limit)
            by_old.append(found / find_limit(old, bundle.config.run.knn))
        values[kind], old_values[kind] = np.max(by_member, axis=0), np.max(by_old, axis=0)
    return Scores(values, 1.0, Scores(old_values, 1.0))


def sum_up_copies(scores: Scores, name: str) -> dict[str, dict[str, float]]:
    """Fraction of val's and test's ordinary copies that is accepted."""
    return {
        split: {
            kind: float((scores.values[f"{name}/{split}, {kind}"] <= scores.limit).mean())
            for kind in copies.MEASURED
        }
        for split in ("val", "test")
    }


def check_decision(
    model: Model, described: Descriptors, scores: dict[str, NDArray[np.floating]]
) -> dict[str, int]:
    """Run ``diagnose`` on a few images of every kind; it must refuse those beyond the limit.

    Raises:
        AssertionError: ``diagnose`` decided differently.
    """
    n_checked = n_refused = 0
    for kind, values in scores.items():
        pixels = itertools.islice(described.sources[kind].read(), N_CHECKED)
        images = [decode(encode_png(p), name=kind) for p in pixels]
        for found, value in zip(diagnose(model, images, explain=False), values, strict=False):
            is_refused = found.abstain_reason == "novel"
            assert is_refused == bool(value > 1.0), (kind, float(value), found.abstain_reason)
            n_checked, n_refused = n_checked + 1, n_refused + is_refused
    return {"n": n_checked, "n_refused": n_refused}


def sum_up(
    scores: dict[str, NDArray[np.floating]],
    limit: float,
    *,
    name: str,
    foreign: dict[str, int],
) -> dict[str, object]:
    """Fractions accepted and refused at the limit, and at 95 % acceptance of test.

    Args:
        scores: kind -> (N,) scores; larger is more novel.
        limit: beyond it an image is refused.
        name: of the data set, whose ``name/test`` and ``name/val`` should be accepted.
        foreign: kind -> how many more the decoder refused.
    """

    def refuse(bound: float) -> dict[str, float]:
        shares = {
            kind: (int((scores[kind] > bound).sum()) + n) / (len(scores[kind]) + n)
            for kind, n in foreign.items()
        }
        total = sum(len(scores[kind]) + n for kind, n in foreign.items())
        caught = sum(int((scores[kind] > bound).sum()) + n for kind, n in foreign.items())
        return {"all": caught / total, **shares}

    test = scores[f"{name}/test"]
    at_95 = float(np.quantile(test, 0.95))
    refused, refused_at_95 = refuse(limit), refuse(at_95)
    return {
        "n_test": len(test),
        "n_ood": sum(len(scores[kind]) + n for kind, n in foreign.items()),
        "limit": limit,
        "accepted_test": float((test <= limit).mean()),
        "accepted_val": float((scores[f"{name}/val"] <= limit).mean()),
        "refused_ood": refused.pop("all"),
        "refused_by_family": refused,
        "at_95": {
            "limit": at_95,
            "refused_ood": refused_at_95.pop("all"),
            "by_family": refused_at_95,
        },
        "quantiles": {
            kind: np.round(np.quantile(values, [0.01, 0.05, 0.5, 0.95, 0.99]), 4).tolist()
            for kind, values in scores.items()
            if len(values) and ", " not in kind  # copies have their own table
        },
    }


def load_models(pairs: Sequence[str], settings: Settings) -> dict[str, Model]:
    """Load NAME=BUNDLE pairs; a bundle is a folder, or a name in NEIGHBORDX_CHECKPOINTS."""
    models = {}
    for pair in pairs:
        name, _, place = pair.partition("=")
        folder = Path(place) if Path(place).is_dir() else settings.checkpoints_dir / place
        models[name] = load_bundle(folder.parent, folder.name, settings=settings)
    return models


def find_roots(options: argparse.Namespace, models: dict[str, Model]) -> dict[str, Path]:
    """Find every set's folder; the demo's is its model's own, or else redrawn."""
    demo = options.work / "demo-data"
    if "demo" in models:
        demo = Path(models["demo"].lead.config.data_root)
    elif not demo.is_dir():
        phantom.write_dataset(demo, n_train=160, n_test=60, size=384)
    roots = {"demo": demo, **{name: options.data / folder for name, folder in SETS.items()}}
    return {name: root for name, root in roots.items() if name in (options.only or roots)}


def list_sources(roots: dict[str, Path], models: dict[str, Model]) -> dict[str, Source]:
    """List every split of every set, and the synthetic families."""
    sources = {}
    for name, root in roots.items():
        run = models[name].lead.config.run.train if name in models else TrainConfig()
        for split in ("train", "val", "test"):
            sources[f"{name}/{split}"] = Source(
                partial(read_split, root, split, val_fraction=run.val_fraction, seed=run.seed)
            )
            for kind, make in (copies.FITTED if split == "train" else copies.MEASURED).items():
                n_wanted = copies.N_FITTED if split == "train" else copies.N_MEASURED
                read = sources[f"{name}/{split}"].read
                sources[f"{name}/{split}, {kind}"] = Source(
                    partial(copies.copy_some, read, make, n_wanted=n_wanted)
                )
    for family in FAMILIES:
        drawn = draw_family(family)
        readable = [picture for picture in drawn if picture is not None]
        sources[family] = Source(partial(list, readable), len(drawn) - len(readable))
    return sources


def main() -> None:
    """Measure every data set against every foreign family and the other sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/novelty.json"))
    parser.add_argument("--preset", default="offline", help="For sets without a model.")
    parser.add_argument("--model", action="append", default=[], help="SET=BUNDLE; name or folder")
    parser.add_argument("--only", action="append", help="Measure and read this set only; repeat.")
    parser.add_argument("--work", type=Path, default=Path("/tmp/bench-novelty"))
    parser.add_argument("--descriptors", type=Path, help="Keep or reuse descriptors (npz) here.")
    options = parser.parse_args()
    began, settings = time.monotonic(), Settings.from_env()
    models = load_models(options.model, settings)
    roots = find_roots(options, models)
    described = Descriptors(list_sources(roots, models), options.descriptors)
    embedder = None
    results: dict[str, dict[str, object]] = {}
    for name in roots:
        others = [f"{other}/test" for other in roots if other != name]
        foreign = {kind: described.sources[kind].n_refused for kind in [*FAMILIES, *others]}
        own = [f"{name}/val", f"{name}/test"]
        copied = [f"{split}, {kind}" for split in own for kind in copies.MEASURED]
        kinds = [*own, *foreign, *copied]
        found: dict[str, object] = {"model": None, "preset": options.preset}
        if name in models:
            scores = score_by_model(models[name], described, kinds)
            clean = {kind: scores.values[kind] for kind in [*own, *foreign]}
            found = {
                "model": models[name].model_id,
                "data_id": models[name].data_id,
                "diagnosed": check_decision(models[name], described, clean),
            }
        else:
            embedder = embedder or build_embedder(build_preset(options.preset), settings)
            scores = score_by_backbones(embedder, described, name, kinds)
        results[name] = found
        results[name] |= sum_up(scores.values, scores.limit, name=name, foreign=foreign)
        results[name]["copies"] = sum_up_copies(scores, name)
        assert scores.before is not None
        before = sum_up(scores.before.values, scores.before.limit, name=name, foreign=foreign)
        del before["quantiles"], before["at_95"]
        results[name]["before"] = {**before, "copies": sum_up_copies(scores.before, name)}
    write(options.out, results, seconds=time.monotonic() - began)


def write(path: Path, results: dict[str, dict[str, object]], *, seconds: float) -> None:
    """Write the results with a description of the machine, atomically."""
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "faiss-cpu")},
        "seed": SEED,
        "seconds": round(seconds, 1),
        "data_sets": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    for name, found in results.items():
        print(name, f"accepted {found['accepted_test']:.3f}", f"refused {found['refused_ood']:.3f}")


if __name__ == "__main__":
    main()
