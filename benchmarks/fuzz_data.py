"""Random data folders, damaged zips and damaged model files, and what is no deliberate error.

    PYTHONPATH=. python benchmarks/fuzz_data.py --part trees --cases 20000
    PYTHONPATH=. python benchmarks/fuzz_data.py --part archives --cases 10000

``trees``: folders of usual words in unusual places, with damaged tables and npz files, through
``make_plan`` and ``split_plan``. ``archives``: zips through both readers of zips, and every tenth a
damaged model file through ``import_model`` or a damaged model folder through the listing and
loading (a model of --preset tiny-random is made first). Each case runs in a child with limits; case
N of a seed is always the same.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_harness import add_options, do_cases, run, save

from core.config import Settings, build_preset
from core.data.datasets import split_plan
from core.data.options import DataOptions
from core.data.plan import make_plan
from core.data.uploads import ZipLimits, extract
from core.errors import CoreError
from core.images import zip_entries

WORDS = (
    "normal", "Normal", "disease", "flu", "0", "1", "benign", "malignant", "non-covid", "covid",
    "train", "Training", "test", "Tst", "val", "valid", "fold1", "fold2", "train_images", "images",
    "masks", "labels", "@eaDir", ".thumbnails", "lost+found", "p1", "p2", "patient_3", "2019",
    "a, b", "[red]", "=1", " x ", "ＮＯＲＭＡＬ", "wrapper", "non", "-", "con", "\udcff", "x" * 90,
)  # fmt: skip
FILES = (
    "im1.png", "im2.png", "im3.png", "im1_mask.png", "im2_seg.png", "IM0001", "x.dcm", "notes.txt",
    "person1_2.jpeg", "person1_3.jpeg", "person2_1.jpeg", "features.npz", "set.npz", "index.csv",
    "manifest.csv", ".DS_Store", "a,b.png", "\udcfc.png", "new\nline.png", "<b>.png", "x.zip",
    "00000001_000.png", "00000001_001.png", "_mask.png", ".png", "mask.png", "TCGA-AB-1234.png",
)  # fmt: skip
LABELS = ("normal", "flu", "0", "1", "", " Normal", "a;b", '"q"', "=x")
PAIRS = (
    ("normal", "flu"), ("0", "1"), ("benign", "malignant"), ("Normal", "NORMAL "),
    ("covid", "non-covid"), ("left", "right"), ("a, b", "[red]"), ("normal", "flu", "masks"),
    ("normal", "bacteria", "virus"),
)  # fmt: skip
SPLITS = (
    ("",), ("",), ("train", "test"), ("Training", "Testing"), ("train", "val", "test"),
    ("fold1", "fold2"),
    ("test",), ("valid",), ("train_images", "test_images"),
)  # fmt: skip
INSIDE: tuple[tuple[str, ...], ...] = (
    (), (), ("images", "masks"), ("p1", "p2", "p3", "p4"), ("bacteria", "virus"), ("2019", "2020"),
    ("train", "test"), ("images",), ("@eaDir", "x"),
)  # fmt: skip
ZIP_MARKS = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")


def draw_tree(rng: np.random.Generator) -> dict[tuple[str, ...], bytes]:
    """Paths and contents of a data folder."""
    tree: dict[tuple[str, ...], bytes] = {}
    words = rng.choice(WORDS, int(rng.integers(2, 8)))
    for _ in range(int(rng.integers(1, 40))):
        folders = tuple(str(w) for w in rng.choice(words, int(rng.integers(0, 5))))
        name = str(rng.choice(FILES))
        tree[(*folders, name)] = draw_content(name, tree, rng)
    return tree if rng.random() < 0.4 else draw_layout(tree, rng)


def draw_layout(
    noise: dict[tuple[str, ...], bytes], rng: np.random.Generator
) -> dict[tuple[str, ...], bytes]:
    """A usual layout, perhaps with a little of the noise in it."""
    tree: dict[tuple[str, ...], bytes] = {}
    classes = PAIRS[int(rng.integers(len(PAIRS)))]
    splits = SPLITS[int(rng.integers(len(SPLITS)))]
    inside = INSIDE[int(rng.integers(len(INSIDE)))]
    for split in splits:
        for name in classes:
            for i in range(int(rng.integers(3, 12))):
                parts = [split, name] if split else [name]
                parts += [str(rng.choice(inside))] if inside else []
                if rng.random() < 0.1:
                    parts = parts[::-1]
                file = str(
                    rng.choice([f"im{i}.png", f"person{i // 2}_{i}.jpeg", f"im{i}_mask.png"])
                )
                tree[(*parts, file)] = rng.bytes(8)
    for parts, content in list(noise.items())[: int(rng.integers(0, 4))]:
        if rng.random() < 0.5:
            tree[parts] = content
    return tree


def draw_content(name: str, tree: dict[tuple[str, ...], bytes], rng: np.random.Generator) -> bytes:
    """A table, a set of arrays, a DICOM header or noise."""
    if name.endswith(".csv"):
        delimiter = str(rng.choice([",", ";", "\t", "|"]))
        header = [str(c) for c in rng.permutation(["file", "label", "split", "group", "Mask", ""])]
        rows = [header[: int(rng.integers(1, 7))]]
        files = ["/".join(parts) for parts in tree] or ["x.png"]
        for _ in range(int(rng.integers(0, 9))):
            cells = [*rng.choice(files, 1), *rng.choice(LABELS, 3), *rng.choice(["", "train"], 2)]
            rows.append([str(c) for c in rng.permutation(cells)][: int(rng.integers(1, 7))])
        text = "\n".join(delimiter.join(row) for row in rows)
        return damage(text.encode("utf-8", "surrogateescape"), rng)
    if name.endswith(".npz"):
        buffer, n = io.BytesIO(), int(rng.integers(0, 12))
        arrays = {
            "train_images": rng.integers(0, 255, (n, 4, 4), dtype=np.uint8),
            "train_labels": rng.integers(0, 3, (n, 1)),
            "test_images": rng.integers(0, 255, (n, 4, 4), dtype=np.uint8),
        }
        kept = {k: v for k, v in arrays.items() if rng.random() < 0.8}
        np.savez(buffer, **kept)
        return damage(buffer.getvalue(), rng)
    if name.endswith(".dcm") or name == "IM0001":
        return damage(bytes(128) + b"DICM\x10\x00\x20\x00LO\x04\x00ab12" + rng.bytes(40), rng)
    return rng.bytes(8)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert or overwrite something, half of the time."""
    if rng.random() < 0.5 or not data:
        return data
    broken = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        place, kind = int(rng.integers(len(broken))), int(rng.integers(4))
        if kind == 0:
            broken[place] = int(rng.integers(256))
        elif kind == 1:
            del broken[place:]
        elif kind == 2:
            broken[place:place] = rng.bytes(int(rng.integers(1, 30)))
        else:
            broken[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\x7f\0\0"])
        if not broken:
            break
    return bytes(broken)


def try_tree(number: int, seed: int, folder: Path) -> tuple[str, Callable[[], str]]:
    """One random data folder through the plan."""
    rng = np.random.default_rng([seed, number])
    tree = draw_tree(rng)
    root = folder / "data"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for parts, content in tree.items():
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:
            continue
    options = DataOptions(
        layout=str(rng.choice([*["auto"] * 12, "folders", "table", "npz"])),  # type: ignore[arg-type]
        patients=str(rng.choice(["auto", "auto", "none", "folder", "dicom", r"(\d+)"])),
        mask_files=str(rng.choice(["auto", "none"])),  # type: ignore[arg-type]
    )

    def attempt() -> str:
        plan = make_plan(root, options)
        for one in plan.decisions:
            one.sentence.encode()
        if plan.disease_class is not None and not plan.disease_reason:
            raise AssertionError("a disease without a reason")
        split_plan(plan, seeds=[0, 1])
        return "read"

    return f"{len(tree)} files", attempt


def draw_zip(rng: np.random.Generator) -> bytes:
    """A zip of odd names, most of them damaged."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # names given twice are wanted here
        for _ in range(int(rng.integers(0, 12))):
            parts = [str(w) for w in rng.choice(WORDS, int(rng.integers(0, 4)))]
            name = "/".join([*parts, str(rng.choice(FILES))]).encode("utf-8", "replace").decode()
            if rng.random() < 0.03:
                name = str(rng.choice([f"../{name}", f"/{name}", f"C:\\{name}"]))
            info = zipfile.ZipInfo(name)
            methods = [
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
                zipfile.ZIP_BZIP2,
                zipfile.ZIP_LZMA,
            ]
            info.compress_type = int(rng.choice(methods))
            kind = rng.choice([0o120777, 0o010644]) if rng.random() < 0.03 else 0o100644
            info.external_attr = int(kind) << 16
            archive.writestr(info, rng.bytes(int(rng.integers(0, 300))))
    data = bytearray(buffer.getvalue())
    if rng.random() < 0.3:  # headers lie about sizes, offsets, methods
        mark = data.find(ZIP_MARKS[int(rng.integers(3))])
        if mark >= 0:
            place = mark + int(rng.integers(4, 30))
            data[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
    return damage(bytes(data), rng)


def try_zip(number: int, seed: int, folder: Path) -> tuple[str, Callable[[], str]]:
    """One zip through the reader of training data and the reader of uploads to diagnose."""
    data = draw_zip(np.random.default_rng([seed, number]))
    place = folder / "unpacked"
    shutil.rmtree(place, ignore_errors=True)

    def attempt() -> str:
        outcomes = []
        try:
            for entry in zip_entries.list_entries(data):
                zip_entries.read_entry(data, entry.place, max_bytes=2**20)
            outcomes.append("listed")
        except CoreError as err:
            outcomes.append(err.code)
        try:
            extract(io.BytesIO(data), place, limits=ZipLimits(total_bytes=2**24, file_bytes=2**22))
            outcomes.append("unpacked")
        except CoreError as err:
            outcomes.append(err.code)
        outside = [p for p in folder.parent.iterdir() if p != folder and p.name != "model"]
        if outside:
            raise AssertionError(f"a file outside: {outside}")
        return " ".join(outcomes)

    return f"zip of {len(data)} bytes", attempt


def try_model(
    number: int, seed: int, folder: Path, model: Path, settings: Settings
) -> tuple[str, Callable[[], str]]:
    """One damaged model file through import, or one damaged folder through listing and loading."""
    from core.models.exchange import import_model
    from core.models.registry import list_models, load_bundle

    rng = np.random.default_rng([seed, number])
    place = folder / "models"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if rng.random() < 0.5:
        file = place / "m.neighbordx"
        file.write_bytes(damage_model_file((model / "m.neighbordx").read_bytes(), rng))

        def import_it() -> str:
            return f"imported {import_model(place, file, settings=settings).name}"

        return "model file", import_it
    shutil.copytree(model / "demo-triplet", place / "m")
    files = [p for p in sorted((place / "m").iterdir()) if p.is_file()]
    doomed = files[int(rng.integers(len(files)))]
    if doomed.suffix == ".json" and rng.random() < 0.7:
        doomed.write_text(json.dumps(warp(json.loads(doomed.read_text()), rng)))
    elif rng.random() < 0.1:
        doomed.unlink()
    else:
        doomed.write_bytes(damage(doomed.read_bytes(), rng))

    def load_it() -> str:
        list_models(place)
        load_bundle(place, "m", settings=settings)
        return "loaded"

    return f"model folder, {doomed.name}", load_it


def damage_model_file(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the header or the body."""
    n_header = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.7:
        return damage(data[:n_header], rng) + data[n_header:]
    return damage(data, rng)


def warp(value: object, rng: np.random.Generator) -> object:
    """Change something in a JSON value: its type, its size, its sign."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(sorted(value)))
        changed = dict(value)
        if rng.random() < 0.2:
            del changed[key]
        else:
            changed[key] = warp(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = int(rng.integers(len(value)))
        return [*value[:index], warp(value[index], rng), *value[index + 1 :]]
    odd: list[object] = [
        None, True, -1, 0, 10**9, 1e308, "", "x" * 5000, [], {}, [[]], {"a": 1}, "../x", "NaN", 0.5,
    ]  # fmt: skip
    return odd[int(rng.integers(len(odd)))]


def make_model(place: Path) -> None:
    """A small model and its exported file."""
    from core.models.exchange import export_model
    from core.training.demo import build_demo

    settings = Settings(checkpoints_dir=place, device="cpu")
    build_demo(settings, config=build_preset("tiny-random"), n_train=32, n_test=8, size=64)
    export_model(place, "demo-triplet", place / "m.neighbordx")


def main() -> None:
    """Run a part, and save the counts and defects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("trees", "archives"), default="trees")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    add_options(parser, cases=2000)
    options = parser.parse_args()
    if options.child is not None:
        with tempfile.TemporaryDirectory() as outer:
            folder = Path(outer) / "work"
            folder.mkdir()
            settings = Settings(checkpoints_dir=folder, device="cpu")

            def do(number: int) -> tuple[str, Callable[[], str]]:
                if options.part == "trees":
                    return try_tree(number, options.seed, folder)
                if number % 10 == 9:
                    return try_model(number, options.seed, folder, options.model, settings)
                return try_zip(number, options.seed, folder)

            do_cases(options, do)
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        more = ["--part", options.part]
        if options.part == "archives":
            make_model(Path(place))
            more += ["--model", place]
        tally = run(__file__, options, more=more)
    packages = ("numpy", "safetensors", "pydicom")
    save(
        f"fuzz_{options.part}", options, tally, seconds=time.monotonic() - began, packages=packages
    )


if __name__ == "__main__":
    main()
