"""Read the arrays of a MedMNIST 2-D npz file.

An npz file is data only if it has these arrays; any other is left alone.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.files import untrusted_npz

_SPLITS = ("train", "val", "test")


def has_arrays(path: Path) -> bool:
    """Whether a file lists images with labels, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return any({f"{s}_images.npy", f"{s}_labels.npy"} <= names for s in _SPLITS)


def read_arrays(path: Path) -> Iterator[tuple[str, str, str, NDArray[np.uint8]]]:
    """Read all images into memory.

    Yields:
        key such as "train/00012", label as text, split, and (H, W) or (H, W, 3) pixels.

    Raises:
        DataError: the file is none of this form, or too large.
    """
    try:
        names = [f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")]
        untrusted_npz.check_claims(path, names)
        with np.load(path, allow_pickle=False) as arrays:
            for split in _SPLITS:
                if f"{split}_images" not in arrays:
                    continue
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
                is_grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
                if images.dtype != np.uint8 or not is_grey_or_rgb or len(images) != len(labels):
                    raise ValueError(f"{split}_images has shape {images.shape} {images.dtype}")
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    if int(label) != label:
                        raise ValueError(f"{split}_labels holds {label!r}, no whole number")
                    yield f"{split}/{i:05d}", str(int(label)), split, image
    except untrusted_npz.ERRORS as err:
        if isinstance(err, DataError):
            raise
        reason = str(err) or type(err).__name__
        raise DataError(
            f"{path.name} cannot be used ({reason}); expected a MedMNIST 2-D file: uint8 "
            "{train,val,test}_images (N, H, W[, 3]) and {train,val,test}_labels (N, 1).",
            code="data.npz",
        ) from err
