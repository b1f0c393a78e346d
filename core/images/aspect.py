"""Pixels that are not square: what the file states, and the picture in its true proportion.

Owns the choice among the statements of a file and the resampling, done once, after decoding: every
later step (model, heatmaps, exports, lettering) works on square pixels.

A statement is a ratio, height of a pixel / width of a pixel. In DICOM the spacings come first, as
the standard has it (PS3.3 C.7.6.3.1.7: PixelAspectRatio is for images without one), and the
calibration of an ultrasound region, which was measured, before the PixelAspectRatio, which many
devices fill with 1\\1. Densities of a picture file (TIFF resolution, PNG pHYs, JFIF, BMP) count
too: 204 x 98 dots per inch of a fax, or JFIF's plain ratio, mean the same.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydicom.dataset import Dataset

from core.images.intensity import MAX_PIXELS
from core.images.notices import Notice

_DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
_TOLERANCE = 0.01  # a ratio closer to 1 than this is a rounded square
_LIMIT = 10.0  # a ratio beyond this, or below its inverse, is an error of the file
_SPACINGS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "ImagePlanePixelSpacing",
)
_TISSUE, _CENTIMETRE = 1, 3  # PS3.3 C.8.5.5.1: 2D region, units in both directions
_X_RESOLUTION, _Y_RESOLUTION = 282, 283  # TIFF


@dataclass(frozen=True)
class Statement:
    """What a file says of its pixels' shape."""

    source: str  # the tag
    ratio: float  # height / width of a pixel, above 0


def correct(
    pixels: NDArray[np.uint8], statements: Sequence[Statement]
) -> tuple[NDArray[np.uint8], tuple[Notice, ...]]:
    """Resample to square pixels where the file says that they are not.

    The longer side of a pixel is enlarged; where that would exceed MAX_PIXELS, the other side is
    made smaller instead.

    Args:
        pixels: (H, W, 3) uint8.
        statements: of the file, the most reliable first.

    Returns:
        (H', W', 3) uint8, and what was done, as notices.
    """
    usable = [s for s in statements if 1 / _LIMIT <= s.ratio <= _LIMIT]
    notices = [_say_ignored(s) for s in statements[:1] if s not in usable]
    if not usable:
        return pixels, tuple(notices)
    chosen = usable[0]
    rivals = [s for s in usable[1:] if not (_is_same(s.ratio, chosen.ratio) or _is_filler(s))]
    height, width = pixels.shape[:2]
    new_height, new_width = _find_size(height, width, chosen.ratio)
    if rivals:
        notices.append(_say_conflict(chosen, rivals[0]))
    if _is_same(chosen.ratio, 1.0) or (new_height, new_width) == (height, width):
        return pixels, tuple(notices)
    notices.append(
        Notice(
            "image.aspect",
            f"The file's pixels are not square (height / width {chosen.ratio:.3g}, from "
            f"{chosen.source}): brought to true proportion, resampled from {width} x "
            f"{height} to {new_width} x {new_height}.",
            {
                "ratio": f"{chosen.ratio:.3g}",
                "source": chosen.source,
                "old": f"{width} x {height}",
                "new": f"{new_width} x {new_height}",
            },
        )
    )
    return _resample(pixels, new_height, new_width), tuple(notices)


def fit_mask(mask: NDArray[np.bool_], *, height: int, width: int) -> NDArray[np.bool_]:
    """Bring an (H, W) mask to another size; what is thin stays."""
    if mask.shape == (height, width):
        return mask
    grey = PILImage.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((width, height), PILImage.Resampling.BOX)) > 0


def _is_same(one: float, other: float) -> bool:
    return abs(math.log(one / other)) <= _TOLERANCE


def _is_filler(statement: Statement) -> bool:
    """A PixelAspectRatio of 1 says little: devices write it beside a measured spacing."""
    return statement.source == "PixelAspectRatio" and _is_same(statement.ratio, 1.0)


def _find_size(height: int, width: int, ratio: float) -> tuple[int, int]:
    """The new height and width for square pixels, at least 1 and within the limit."""
    tall, wide = max(ratio, 1.0), max(1 / ratio, 1.0)
    if round(height * tall) * round(width * wide) > MAX_PIXELS:
        tall, wide = 1 / wide, 1 / tall
    return max(1, round(height * tall)), max(1, round(width * wide))


def _resample(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    resized = PILImage.fromarray(pixels).resize((width, height), PILImage.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)


def _say_ignored(statement: Statement) -> Notice:
    return Notice(
        "image.aspect_ignored",
        f"The file states an impossible shape of its pixels (height / width {statement.ratio:.3g}, "
        f"from {statement.source}); this statement was ignored.",
        {"ratio": f"{statement.ratio:.3g}", "source": statement.source},
    )


def _say_conflict(chosen: Statement, other: Statement) -> Notice:
    return Notice(
        "image.aspect_conflict",
        f"The file contradicts itself on the shape of its pixels: height / width {chosen.ratio:.3g}"
        f" by {chosen.source}, {other.ratio:.3g} by {other.source}. The first was used.",
        {
            "ratio": f"{chosen.ratio:.3g}",
            "source": chosen.source,
            "other_ratio": f"{other.ratio:.3g}",
            "other": other.source,
        },
    )


def read_dicom(dataset: Dataset, *, frame: int) -> list[Statement]:
    """What a DICOM header states of one frame, the most reliable first."""
    levels: list[Dataset] = [dataset]
    with suppress(*_DAMAGE):
        levels.extend(_list_measures(dataset, frame))
    readings: list[tuple[str, Callable[[], tuple[float, float] | None]]] = [
        *((tag, functools.partial(_read_spacing, levels, tag)) for tag in _SPACINGS),
        ("SequenceOfUltrasoundRegions", functools.partial(_read_regions, dataset)),
        ("PixelAspectRatio", functools.partial(_read_pair, dataset, "PixelAspectRatio")),
    ]
    found = []
    for source, read in readings:
        with suppress(*_DAMAGE):  # a malformed tag says nothing
            if (pair := read()) is not None:
                found.append(Statement(source, pair[0] / pair[1]))
    return found


def _read_spacing(levels: Sequence[Dataset], tag: str) -> tuple[float, float] | None:
    """The spacing of the first level that has one: the image, the frame, or all frames."""
    pairs = (_read_pair(level, tag) for level in levels)
    return next((pair for pair in pairs if pair is not None), None)


def _read_pair(dataset: Dataset, tag: str) -> tuple[float, float] | None:
    return _pair(dataset.get(tag))


def _list_measures(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """The pixel measures of a frame, then those that all frames share."""
    for keyword, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = dataset.get(keyword) or ()
        for group in groups[index : index + 1]:
            yield from (group.get("PixelMeasuresSequence") or ())[:1]


def _read_regions(dataset: Dataset) -> tuple[float, float] | None:
    """Height and width of a pixel if all two-dimensional regions agree on their ratio.

    Motion-mode and spectral regions have time or speed on an axis: they have no proportion.
    """
    pairs = []
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        if region.get("RegionSpatialFormat") != _TISSUE or units != (_CENTIMETRE, _CENTIMETRE):
            continue
        pair = _pair((region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")), may_mirror=True)
        if pair is None:
            return None
        pairs.append(pair)
    ratios = [height / width for height, width in pairs]
    return pairs[0] if ratios and all(_is_same(r, ratios[0]) for r in ratios) else None


def read_picture(picture: PILImage.Image) -> list[Statement]:
    """What an opened picture file states by unequal densities; none if they are equal or absent.

    It is stated of the image as stored, before it is turned upright.
    """
    source, density = _find_density(picture)
    pair = _pair(density)
    if pair is None:
        return []
    across, down = pair  # dots per length: the denser, the narrower the pixel
    statement = Statement(source, across / down)
    return [] if _is_same(statement.ratio, 1.0) else [statement]


def _find_density(picture: PILImage.Image) -> tuple[str, object]:
    """The name of the statement, and the density across and down, in any unit."""
    info = picture.info
    if picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        return "XResolution", (tags.get(_X_RESOLUTION), tags.get(_Y_RESOLUTION))
    if picture.format == "PNG" and "aspect" in info:
        return "pHYs", info["aspect"]
    if "jfif_density" in info and info.get("jfif_unit") == 0:
        # no unit: a ratio of the density, X : Y (JFIF 1.02)
        return "JFIF", info["jfif_density"]
    return {"PNG": "pHYs", "JPEG": "JFIF"}.get(picture.format or "", "dpi"), info.get("dpi")


def _pair(value: object, *, may_mirror: bool = False) -> tuple[float, float] | None:
    """Two finite numbers above 0; with ``may_mirror`` without their signs; else None."""
    try:
        first, second = (float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if may_mirror:
        first, second = abs(first), abs(second)
    is_usable = all(math.isfinite(v) and v > 0 for v in (first, second))
    is_usable = is_usable and math.isfinite(first / second) and first / second > 0
    return (first, second) if is_usable else None
