"""Decode damaged files of every kind, in a child process, and count what is not an ImageError.

A small valid file of every kind that the app reads is damaged (bytes flipped, cut off, blocks
inserted, removed or repeated, integers set to extremes, two files spliced) and decoded with an
address space of --memory-mb and a watchdog of --seconds per file. Defects are an exception other
than ImageError, a hang and a crash of the process. File number N of a seed is always the same:
--show N writes it.

    PYTHONPATH=. python benchmarks/fuzz_images.py --files 100000
"""

import argparse
import io
import json
import logging
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
from harness import RESULTS
from openjpeg.utils import encode_array as encode_j2k
from PIL import Image as PILImage
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from core.errors import ImageError
from core.images.decode import decode

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
LARGEST_SEED_FILE = 150_000  # bytes
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
KEPT = 40  # defects listed in the result


def build_corpus() -> dict[str, bytes]:
    """A small valid file of every kind."""
    y, x = np.mgrid[:40, :48]
    grey = ((x * 5 + y * y) % 256).astype(np.uint8)
    deep = (x * 1300 + y * 37).astype(np.uint16)
    colour = np.stack([grey, grey[::-1], 255 - grey], axis=2)
    corpus: dict[str, bytes] = {}
    for kind, options in (
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("JPEG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 3}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
    ):
        for name, array in (("grey", grey), ("colour", colour)):
            corpus[f"{kind} {name} {options}"] = encode(PILImage.fromarray(array), kind, **options)
    corpus["PNG 16"] = encode(PILImage.fromarray(deep), "PNG")
    corpus["TIFF 16"] = encode(PILImage.fromarray(deep), "TIFF")
    corpus["TIFF float"] = encode(PILImage.fromarray(deep.astype(np.float32)), "TIFF")
    for mode, kind in (("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("1", "BMP")):
        corpus[f"{kind} {mode}"] = encode(PILImage.fromarray(colour).convert(mode), kind)
    corpus["TIFF group 4"] = encode(
        PILImage.fromarray(grey).convert("1"), "TIFF", compression="group4"
    )
    corpus["JPEG CMYK"] = encode(PILImage.fromarray(colour).convert("CMYK"), "JPEG")
    frames = [PILImage.fromarray(a) for a in (grey, grey[::-1].copy())]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        corpus[f"{kind} frames"] = encode(
            frames[0], kind, save_all=True, append_images=frames[1:], loop=0
        )
    corpus |= build_dicoms(grey, deep, colour)
    for path in sorted(PYDICOM_FILES.glob("*.dcm")):
        if path.stat().st_size <= LARGEST_SEED_FILE:
            corpus[f"pydicom {path.name}"] = path.read_bytes()
    return {name: data for name, data in corpus.items() if is_shown(data)}


def is_shown(data: bytes) -> bool:
    """Whether the file is decoded; a report or plan would only test the refusal."""
    try:
        decode(data)
    except ImageError:
        return False
    return True


def encode(picture: PILImage.Image, kind: str, **options: object) -> bytes:
    """Encode with Pillow."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def build_dicoms(grey: np.ndarray, deep: np.ndarray, colour: np.ndarray) -> dict[str, bytes]:
    """DICOM in the syntaxes that have an encoder here; pydicom's files hold the others."""
    import jpeg_ls

    j2k = bytes(encode_j2k(deep, bits_stored=16, photometric_interpretation=2))
    return {
        "DICOM native": write_dicom(deep),
        "DICOM colour": write_dicom(colour),
        "DICOM deflated": write_dicom(deep, DeflatedExplicitVRLittleEndian),
        "DICOM RLE": write_dicom(deep, RLELossless),
        "DICOM JPEG": write_dicom(
            grey, JPEGBaseline8Bit, encode(PILImage.fromarray(grey), "JPEG", quality=90)
        ),
        "DICOM JPEG-LS": write_dicom(deep, JPEGLSLossless, bytes(jpeg_ls.encode_array(deep, 0, 0))),
        "DICOM JPEG 2000": write_dicom(deep, JPEG2000Lossless, j2k),
    }


def write_dicom(
    array: np.ndarray, syntax: UID = ExplicitVRLittleEndian, frame: bytes | None = None
) -> bytes:
    """A secondary capture object with a window and padding."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = 1 if array.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    if array.ndim == 3:
        dataset.PlanarConfiguration = 0
    else:
        dataset.WindowCenter, dataset.WindowWidth = 128, 200
        dataset.PixelPaddingValue = 0
    bits = array.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = array.tobytes() if frame is None else encapsulate([frame])
    dataset["PixelData"].VR = "OW" if bits == 16 and frame is None else "OB"
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def flip(data: bytearray, rng: np.random.Generator, _other: bytes) -> bytearray:
    """Change one to eight bytes."""
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        data[place] = int(rng.integers(256))
    return data


def cut(data: bytearray, rng: np.random.Generator, _other: bytes) -> bytearray:
    """Cut off the end."""
    return data[: int(rng.integers(1, len(data) + 1))]


def insert(data: bytearray, rng: np.random.Generator, _other: bytes) -> bytearray:
    """Insert a block of noise or of one byte."""
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 65))
    block = rng.bytes(length) if rng.random() < 0.5 else bytes([rng.integers(256)]) * length
    return data[:place] + block + data[place:]


def remove(data: bytearray, rng: np.random.Generator, _other: bytes) -> bytearray:
    """Remove a block."""
    place = int(rng.integers(len(data)))
    return data[:place] + data[place + int(rng.integers(1, 65)) :]


def repeat(data: bytearray, rng: np.random.Generator, _other: bytes) -> bytearray:
    """Repeat a block."""
    place = int(rng.integers(len(data)))
    block = data[place : place + int(rng.integers(1, 257))]
    return data[:place] + block * int(rng.integers(2, 5)) + data[place:]


def push(data: bytearray, rng: np.random.Generator, _other: bytes) -> bytearray:
    """Set an integer of one, two or four bytes to an extreme, mostly near the start."""
    n_bytes = int(rng.choice([1, 2, 4]))
    reach = len(data) if rng.random() < 0.4 else min(len(data), 1000)
    place = int(rng.integers(reach))
    value = int(rng.choice(EXTREMES)) & (256**n_bytes - 1)
    data[place : place + n_bytes] = value.to_bytes(n_bytes, str(rng.choice(["little", "big"])))
    return data


def splice(data: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    """The head of one file and the tail of another."""
    return data[: int(rng.integers(1, len(data) + 1))] + other[int(rng.integers(len(other))) :]


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator, bytes], bytearray], ...] = (
    flip,
    flip,
    push,
    push,
    push,
    cut,
    insert,
    remove,
    repeat,
    splice,
)


def build_file(corpus: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """Damaged file number ``number``, and what it was made from."""
    rng = np.random.default_rng([seed, number])
    name, data = corpus[int(rng.integers(len(corpus)))]
    broken, used = bytearray(data), []
    for _ in range(int(rng.integers(1, 4))):
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        broken = mutation(broken, rng, corpus[int(rng.integers(len(corpus)))][1])
        used.append(mutation.__name__)
        if not broken:
            break
    return f"{name}: {', '.join(used)}", bytes(broken)


def decode_all(seed: int, first: int, last: int, memory_mb: int) -> None:
    """The child: decode file after file, one line of JSON before and after each."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))
    corpus = list(build_corpus().items())
    warnings.simplefilter("error")  # a warning that reaches the log could quote a patient tag
    for number in range(first, last):
        origin, data = build_file(corpus, seed, number)
        rng = np.random.default_rng([seed, number, 1])
        window = (float(rng.normal(0, 500)), 300.0) if rng.random() < 0.2 else None
        print(json.dumps({"begins": number, "origin": origin}), flush=True)
        outcome, where = "shown", ""
        try:
            decode(data, frame=int(rng.random() < 0.1), window=window, invert=rng.random() < 0.1)
        except ImageError as err:
            outcome = err.code
        except BaseException as err:  # noqa: BLE001 - whatever it is, it is a defect
            outcome = type(err).__name__
            where = traceback.format_exc(limit=-3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"ends": number, "outcome": outcome, "where": where, "peak_mb": peak}))


class Tally:
    """What happened to the files so far."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.defects: list[dict[str, object]] = []
        self.n_defects = 0
        self.peak_mb = 0
        self.peak_file = -1
        self.slowest = (0.0, -1)

    def add(self, number: int, origin: str, outcome: str, where: str = "") -> None:
        """Count an outcome; it is a defect unless it is a picture or an ImageError."""
        self.outcomes[outcome] += 1
        if outcome == "shown" or outcome.startswith("image."):
            return
        self.n_defects += 1
        print(f"defect in file {number} ({origin}): {outcome}\n{where}", flush=True)
        if len(self.defects) < KEPT:
            last = where.strip().splitlines()[-3:] if where else []
            self.defects.append(
                {"file": number, "from": origin, "what": outcome, "where": " | ".join(last)}
            )


def run_child(options: argparse.Namespace, first: int, tally: Tally) -> int:
    """Start a child at file ``first``; return the file to go on with after it has ended."""
    command = [sys.executable, __file__, "--child", str(first), "--files", str(options.files)]
    command += ["--seed", str(options.seed), "--memory-mb", str(options.memory_mb)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    number, origin, began, is_busy = first, None, time.monotonic(), True
    buffered = b""
    while True:
        ready, _, _ = select.select([child.stdout], [], [], options.seconds)
        if not ready:
            child.kill()
            child.wait()
            tally.add(number, str(origin), "hang")
            return number + 1
        piece = os.read(child.stdout.fileno(), 2**16)
        if not piece:
            break
        *lines, buffered = (buffered + piece).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "begins" in report:
                number, origin = report["begins"], report["origin"]
                began, is_busy = time.monotonic(), True
                continue
            is_busy = False
            tally.add(number, origin, report["outcome"], report["where"])
            tally.slowest = max(tally.slowest, (time.monotonic() - began, number))
            if report["peak_mb"] > tally.peak_mb:
                tally.peak_mb, tally.peak_file = report["peak_mb"], number
            if number % 5000 == 0:
                print(f"{number} files, {tally.n_defects} defects", flush=True)
    code = child.wait()
    if code == 0:
        return int(options.files)
    if origin is None:
        raise SystemExit("the child process does not start; run it with --child 0")
    if is_busy:
        reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        tally.add(number, origin, f"crash: {reason}")
    return number + 1


def main() -> None:
    """Run, and save the counts and defects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="watchdog per file")
    parser.add_argument("--memory-mb", type=int, default=2048, help="address space of the child")
    parser.add_argument("--show", type=int, help="write this file to --to instead")
    parser.add_argument("--to", type=Path, default=Path("fuzzed.bin"))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        decode_all(options.seed, options.child, options.files, options.memory_mb)
        return
    if options.show is not None:
        origin, data = build_file(list(build_corpus().items()), options.seed, options.show)
        options.to.write_bytes(data)
        print(origin)
        return
    tally, number, began = Tally(), options.first, time.monotonic()
    while number < options.files:
        number = run_child(options, number, tally)
    result = {
        "files": options.files - options.first,
        "seed": options.seed,
        "defects": tally.n_defects,
        "outcomes": dict(tally.outcomes.most_common()),
        "listed_defects": tally.defects,
        "peak_rss_mb": tally.peak_mb,
        "peak_rss_file": tally.peak_file,
        "slowest_file": {"seconds": round(tally.slowest[0], 2), "file": tally.slowest[1]},
        "seconds": round(time.monotonic() - began),
        "limits": {"seconds": options.seconds, "memory_mb": options.memory_mb},
        "versions": {
            name: version(name)
            for name in ("pillow", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pyjpegls")
        },
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    (RESULTS / "fuzz_images.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "listed_defects"}, indent=2))


if __name__ == "__main__":
    main()
