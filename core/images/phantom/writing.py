"""Write a folder of synthetic images in the layout used for training."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from core.errors import DataError
from core.images.phantom.drawing import Phantom, draw

_LABELS = ("normal", "disease")
_RECIPE = 1  # increase when the drawing changes, so that older data sets are redrawn


def write_dataset(
    folder: Path,
    *,
    n_train: int,
    n_test: int,
    seed: int = 0,
    size: int = 384,
    progress: Callable[[float, str], None] | None = None,
) -> None:
    """Write a data folder of phantoms with manifest and masks, atomically.

    Args:
        folder: the data folder; left unchanged if it already holds the same data set.
        n_train: images in train, half of them diseased.
        n_test: images in test.
        seed: of the first eye; no eye is in both splits.
        size: side in pixels.
        progress: called with the fraction done.

    Raises:
        DataError: the folder exists and holds something else.
    """
    recipe = {
        "recipe": _RECIPE,
        "n_train": n_train,
        "n_test": n_test,
        "seed": seed,
        "size": size,
    }
    stamp = folder / "phantom.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == recipe:
        return
    if folder.exists() and any(folder.iterdir()):
        raise DataError(
            f"{folder} holds something else; name an empty or new folder.", code="data.exists"
        )
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    rows = []
    total = n_train + n_test
    for index in range(total):
        split = "train" if index < n_train else "test"
        label = _LABELS[index % 2]
        phantom = draw(seed + index, is_diseased=label == "disease", size=size)
        rows.append(_write_one(temporary, phantom, split=split, label=label, index=index))
        if progress:
            progress((index + 1) / total, f"{index + 1} of {total} synthetic images drawn")
    with (temporary / "manifest.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["file", "split", "label", "group", "mask"])
        writer.writeheader()
        writer.writerows(rows)
    (temporary / "phantom.json").write_text(json.dumps(recipe), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)


def _write_one(
    folder: Path, phantom: Phantom, *, split: str, label: str, index: int
) -> dict[str, str]:
    name = f"eye{index:05d}"
    file, mask = f"{split}/{label}/{name}.png", ""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom.pixels).save(folder / file)
    if phantom.is_diseased:
        mask = f"masks/{name}.png"
        (folder / mask).parent.mkdir(exist_ok=True)
        Image.fromarray(phantom.mask).save(folder / mask)
    return {"file": file, "split": split, "label": label, "group": name, "mask": mask}
