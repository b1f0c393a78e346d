"""Overlay graphics of a DICOM file (groups 60xx): drawn for a reader who asks, never read.

Owns finding the planes of one frame, in OverlayData or in the unused bits of the pixel cells
(retired), and joining them to one mask. Numbers, arrows and outlines in them are somebody's marks
on the image: the model must not see them.
"""

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import unpack_bits

from core.images.intensity import check_frame_bytes
from core.images.notices import Notice

_GROUPS = range(0x6000, 0x6100, 2)
_ROWS, _COLUMNS, _N_FRAMES, _ORIGIN = 0x0010, 0x0011, 0x0015, 0x0050
_FIRST_FRAME, _BIT, _DATA = 0x0051, 0x0102, 0x3000
_INK = (255, 214, 0)  # yellow: seen on black and on white, and unlike the heatmaps
_DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


def read_overlays(
    dataset: Dataset, *, frame: int
) -> tuple[NDArray[np.bool_] | None, tuple[Notice, ...]]:
    """Join the overlays of one frame, and say how many there are.

    Args:
        dataset: with its pixels, as read from the file.
        frame: from 0.

    Returns:
        (Rows, Columns) true where a plane draws, or None if no plane can be read; and a notice if
        the frame has planes that are not empty.
    """
    shape = int(dataset.Rows), int(dataset.Columns)
    joined, n_planes, is_whole = np.zeros(shape, dtype=np.bool_), 0, True
    for group in _list_groups(dataset):
        try:
            plane = _read_plane(dataset, group, frame=frame)
            origin = _find_origin(dataset, group)
        except _DAMAGE:
            n_planes, is_whole = n_planes + 1, False
            continue
        if plane is not None and plane.any():
            n_planes += 1
            _place(joined, plane, origin)
    if not n_planes:
        return None, ()
    mask = joined if joined.any() else None
    return mask, (_say(n_planes, is_shown=mask is not None and is_whole),)


def draw_overlay(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw a mask of the same height and width on a copy of (H, W, 3) pixels, for display only."""
    drawn = pixels.copy()
    drawn[mask] = _INK
    return drawn


def _list_groups(dataset: Dataset) -> list[int]:
    found = {tag.group for tag in dataset.keys() if tag.element in (_DATA, _BIT)}  # noqa: SIM118
    return sorted(found & set(_GROUPS))


def _say(n_planes: int, *, is_shown: bool) -> Notice:
    text = (
        f"Overlay graphics in the file ({n_planes}), such as marks or text, are not part of the "
        "image that was read."
    )
    if not is_shown:
        return Notice(
            "image.overlays_hidden",
            f"{text} Not all of them can be shown here.",
            {"n": n_planes},
        )
    return Notice("image.overlays", text, {"n": n_planes})


def _read_plane(dataset: Dataset, group: int, *, frame: int) -> NDArray[np.bool_] | None:
    """One plane, (rows, columns); None if this frame has none of it."""
    rows, columns = (_number(dataset, group, tag) for tag in (_ROWS, _COLUMNS))
    rows = rows or int(dataset.Rows)
    columns = columns or int(dataset.Columns)
    check_frame_bytes(rows * columns)
    n_frames = _number(dataset, group, _N_FRAMES) or 1
    index = 0
    if n_frames > 1 or (group, _FIRST_FRAME) in dataset:
        index = frame - ((_number(dataset, group, _FIRST_FRAME) or 1) - 1)
        if not 0 <= index < n_frames:
            return None
    if (group, _DATA) not in dataset:
        return _read_embedded(dataset, bit=_number(dataset, group, _BIT), frame=frame)
    size = rows * columns
    first = index * size
    data = bytes(dataset[group, _DATA].value or b"")
    piece = data[first // 8 : -(-(first + size) // 8)]
    bits = unpack_bits(piece)[first % 8 :][:size]
    return np.asarray(bits).reshape(rows, columns).astype(np.bool_)


def _read_embedded(dataset: Dataset, *, bit: int, frame: int) -> NDArray[np.bool_] | None:
    """A plane in a bit of the pixel cells above or below the stored value (PS3.5 section 8.1.2)."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or 0)
    high = int(dataset.get("HighBit") or stored - 1)
    if not 0 <= bit < allocated or high - stored < bit <= high:
        return None  # a bit of the value itself: not an overlay, or not stated
    if allocated not in (8, 16, 32) or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ValueError("overlay bits are read from cells of 8, 16 or 32 bits only")
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        raise ValueError("overlay bits do not survive compression")
    shape = int(dataset.Rows), int(dataset.Columns)
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    n_bytes = shape[0] * shape[1] * allocated // 8
    piece = dataset.PixelData[frame * n_bytes :][:n_bytes]
    cells = np.frombuffer(piece, dtype=f"{order}u{allocated // 8}").reshape(shape)
    return np.asarray((cells >> bit) & 1, dtype=np.bool_)


def _find_origin(dataset: Dataset, group: int) -> tuple[int, int]:
    """Row and column of the plane's first pixel on the image, from 0; may be negative."""
    if (group, _ORIGIN) not in dataset:
        return 0, 0
    try:
        row, column = (int(v) - 1 for v in dataset[group, _ORIGIN].value)
    except (TypeError, ValueError):
        return 0, 0
    return row, column


def _place(joined: NDArray[np.bool_], plane: NDArray[np.bool_], origin: tuple[int, int]) -> None:
    """Add the part of a plane that lies on the image."""
    spans = [
        (max(0, start), min(limit, start + length), max(0, -start))
        for start, length, limit in zip(origin, plane.shape, joined.shape, strict=True)
    ]
    if any(end <= begin for begin, end, _ in spans):
        return
    (top, bottom, skip_y), (left, right, skip_x) = spans
    part = plane[skip_y : skip_y + bottom - top, skip_x : skip_x + right - left]
    joined[top:bottom, left:right] |= part


def _number(dataset: Dataset, group: int, element: int) -> int:
    if (group, element) not in dataset:
        return 0
    value = dataset[group, element].value
    return int(value) if value not in (None, "") else 0
