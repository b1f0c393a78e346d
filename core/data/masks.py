"""Tell masks from images, and find the mask of each image.

A file is a mask by the name of its folder or its own name; a few of those told by their own name
are looked at, because annotated copies are named alike.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from core.data.folder_words import find_mask_base
from core.errors import ImageError
from core.images.decode import load

_N_LOOKED_AT = 6
_MIN_EXTREME = 0.95  # share of a mask's pixels that are nearly black or nearly of its own maximum
_NEAR = 16  # grey levels


def find_mask_files(files: Iterable[Path]) -> dict[Path, Path]:
    """Find files named like a mask of another file in the same folder: mask -> image."""
    listed = list(files)
    if not any(find_mask_base(path.stem) for path in listed):
        return {}
    stems: dict[tuple[Path, str], Path] = {
        (path.parent, path.stem.casefold()): path for path in listed
    }
    found = {}
    for (folder, stem), path in stems.items():
        base = find_mask_base(stem)
        image = stems.get((folder, base)) if base else None
        if image is not None:
            found[path] = image
    return found


def look_like_masks(pairs: Sequence[tuple[Path, Path]]) -> bool:
    """Whether masks have few grey levels and the size of their image, by a sample of the pairs.

    Args:
        pairs: mask and image; pairs that cannot be read are not counted.
    """
    step = max(1, len(pairs) // _N_LOOKED_AT)
    seen = []
    for mask, image in list(pairs)[::step][:_N_LOOKED_AT]:
        try:
            pixels, size = load(mask).pixels, load(image).pixels.shape
        except ImageError as err:
            if err.code == "image.constant":  # the mask of an image without a finding
                seen.append(True)
            continue
        grey = pixels.max(axis=2).astype(np.int32)
        is_extreme = (grey < _NEAR) | (grey > int(grey.max()) - _NEAR)
        seen.append(pixels.shape == size and float(is_extreme.mean()) >= _MIN_EXTREME)
    return bool(seen) and all(seen)


def match_masks(images: Iterable[Path], masks: Iterable[Path]) -> Mapping[Path, Path]:
    """Match masks to images by stem, with or without a mask suffix: image -> mask.

    Of several masks of one stem the one that shares the longest path with the image is taken, and
    none if two share equally much and have names of one length.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        stem = mask.stem.casefold()
        by_stem[find_mask_base(stem) or stem].append(mask)
    found = {}
    for image in images:
        candidates = by_stem.get(image.stem.casefold(), [])
        ranked = sorted((_rank(mask, image), mask) for mask in candidates)
        if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            continue
        if ranked:
            found[image] = ranked[0][1]
    return found


def _rank(mask: Path, image: Path) -> tuple[int, int]:
    """Order of candidates: folder names shared with the image, then the shorter name."""
    shared = {*mask.parent.parts} & {*image.parent.parts}
    pairs = zip(mask.parent.parts, image.parent.parts, strict=False)
    n_common = sum(1 for _pair in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return -(len(shared) + n_common), len(mask.name)
