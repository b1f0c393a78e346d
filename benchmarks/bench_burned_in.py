"""Sensitivity and false-alarm rate of the burned-in text detector.

Every test image of each real set is checked unchanged (``flagged_as_is``: false alarms, except for
text that the image really contains, as some ultrasound images do) and with one line of invented
patient data drawn at its upper or lower edge (``found``), in letters 2.5 to 6 % of the image's
longer side high.

    PYTHONPATH=. python benchmarks/bench_burned_in.py --data ../shared/data
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from core.data.datasets import load_record, read_dataset
from core.errors import ImageError
from core.images.burned_in_text import find_text

SEED = 0
SETS = {"kermany": "kermany_cxr_1639", "idrid": "idrid", "busi": "busi"}
LINES = ("DOE^JANE", "12.03.1957", "ID 4711-22", "St. Mary Hosp", "M 045Y", "AC-20260114")


def write_line(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one line of invented data, white or yellow, near the upper or lower edge."""
    height, width = pixels.shape[:2]
    size = max(9, int(rng.uniform(0.025, 0.06) * max(height, width)))
    share = rng.uniform(0.01, 0.1) if rng.random() < 0.5 else rng.uniform(0.85, 0.93)
    picture = PILImage.fromarray(pixels.copy())
    ImageDraw.Draw(picture).text(
        (rng.uniform(0.01, 0.35) * width, share * height),
        LINES[rng.integers(len(LINES))],
        font=ImageFont.load_default(size),
        fill=(255, 255, 255) if rng.random() < 0.8 else (255, 255, 0),
    )
    return np.asarray(picture)


def measure(root: Path, *, n_most: int) -> dict[str, float]:
    """Fractions of test images that are flagged, unchanged and with a line drawn in."""
    rng = np.random.default_rng(SEED)
    as_is, drawn = [], []
    records = read_dataset(root).subset("test")
    for record in records[:: max(1, len(records) // n_most)]:
        try:
            pixels = load_record(record).pixels
        except ImageError:
            continue
        as_is.append(bool(find_text(pixels)))
        drawn.append(bool(find_text(write_line(pixels, rng))))
    return {
        "n": len(as_is),
        "flagged_as_is": float(np.mean(as_is)),
        "found": float(np.mean(drawn)),
    }


def main() -> None:
    """Measure every set and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--n", type=int, default=100, help="Images per set, about.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/burned_in.json"))
    options = parser.parse_args()
    results = {}
    for name, folder in SETS.items():
        results[name] = measure(options.data / folder, n_most=options.n)
        print(name, results[name], flush=True)
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("opencv-python-headless", "pillow", "numpy")},
        "seed": SEED,
        "data_sets": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".writing")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
