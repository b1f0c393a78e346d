"""Scale stored values to 0..255; limits on image size and frame number."""

import numpy as np
from numpy.typing import NDArray

from core.errors import ImageError

MAX_PIXELS = 80_000_000  # of one frame; below Pillow's own limit, so that ours applies first
MAX_FILE_BYTES = 2 << 30  # of a file on disk, which is read into memory as a whole
MAX_FRAME_BYTES = 512 * 2**20  # of one decoded frame, or of a deflated file once inflated
OUTLIER_PERCENT = 0.1  # percentage of values allowed to saturate at either end
_PIECE = 2**20  # pixels processed at once


def check_size(width: int, height: int) -> None:
    """Check the frame size from the header, before decoding anything.

    Raises:
        ImageError: there are no pixels, or more than MAX_PIXELS.
    """
    if width < 1 or height < 1:
        raise ImageError(
            f"the image has no pixels ({width} x {height}); expected at least 1 x 1.",
            code="image.empty",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the image is too large: {width} x {height}, at most {MAX_PIXELS // 10**6} million "
            "pixels can be read. Export it smaller.",
            code="image.too_large",
            params={"limit": MAX_PIXELS // 10**6},
        )


def check_frame_bytes(n_bytes: int) -> None:
    """Raise ImageError if a frame, or an inflated file, would take more than MAX_FRAME_BYTES."""
    if n_bytes > MAX_FRAME_BYTES:
        raise ImageError(
            f"the image is too large: it would take more than {MAX_FRAME_BYTES // 2**20} MiB "
            "decoded. Export it smaller, or with fewer bits per pixel.",
            code="image.too_large",
            params={"limit": MAX_PIXELS // 10**6},
        )


def refuse_frame(frame: int, n_frames: int) -> None:
    """Raise ImageError unless 0 <= frame < n_frames."""
    if not 0 <= frame < n_frames:
        raise ImageError(
            f"frame {frame} was asked for; the file has frames 0 to {n_frames - 1}.",
            code="image.frame",
            params={"frame": frame, "n_frames": n_frames},
        )


def tally(
    values: NDArray[np.generic], *, is_valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.generic], NDArray[np.int64]] | None:
    """Count the distinct values of integers of at most 16 bits.

    An image can then be converted by its few distinct values instead of its many pixels, and
    ``place_shades`` maps the results back to the pixels.

    Args:
        values: any shape.
        is_valid: of the same shape; invalid values are not counted.

    Returns:
        (V,) values, ascending, in the dtype of ``values``, and (V,) counts; None for other dtypes.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return None
    lowest, n_codes = _find_limits(values)
    counts = np.zeros(n_codes, dtype=np.int64)
    for piece in _cut(values.size):
        some = values.reshape(-1)[piece]
        if is_valid is not None:
            some = some[is_valid.reshape(-1)[piece]]
        counts += np.bincount(some.astype(np.intp) - lowest, minlength=counts.size)
    found = np.flatnonzero(counts)
    return (found + lowest).astype(values.dtype), counts[found]


def place_shades(
    values: NDArray[np.generic], *, known: NDArray[np.generic], shades: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Map values to shades.

    Args:
        values: integers of at most 16 bits, any shape.
        known: (V,) values; any other value becomes 0.
        shades: (V,) the shade of each.
    """
    lowest, n_codes = _find_limits(values)
    table = np.zeros(n_codes, dtype=np.uint8)
    table[known.astype(np.intp) - lowest] = shades
    shown = np.empty(values.size, dtype=np.uint8)
    for piece in _cut(values.size):
        shown[piece] = table[values.reshape(-1)[piece].astype(np.intp) - lowest]
    return shown.reshape(values.shape)


def _find_limits(values: NDArray[np.generic]) -> tuple[int, int]:
    """The lowest value of an integer type, and how many values it has."""
    limits = np.iinfo(values.dtype)  # type: ignore[type-var]
    return int(limits.min), int(limits.max) - int(limits.min) + 1


def _cut(n: int) -> list[slice]:
    """Split an image into pieces, to avoid a full-size index in memory."""
    return [slice(at, at + _PIECE) for at in range(0, n, _PIECE)]


@np.errstate(all="ignore")
def stretch(
    values: NDArray[np.generic], *, is_valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """``scale_to_uint8`` for any dtype; memory-efficient for integers of at most 16 bits."""
    found = tally(values, is_valid=is_valid)
    if found is None:
        return scale_to_uint8(values.astype(np.float64), is_valid=is_valid)
    known, counts = found
    shades = scale_to_uint8(known.astype(np.float64), counts=counts)
    shown = place_shades(values, known=known, shades=shades)
    if is_valid is not None:
        shown[~is_valid] = 0
    return shown


@np.errstate(all="ignore")
def scale_to_uint8(
    values: NDArray[np.float64],
    *,
    is_valid: NDArray[np.bool_] | None = None,
    counts: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Stretch the range of the valid, finite values to 0..255; all others become 0.

    OUTLIER_PERCENT at either end saturates, so that one hot pixel does not darken the rest. With
    fewer than 1000 values, or if that range is empty, the range is minimum to maximum. A constant
    array becomes all zero.

    Args:
        values: any shape.
        is_valid: of the same shape.
        counts: of the same shape: number of pixels with each value; None: one.
    """
    usable = np.isfinite(values) if is_valid is None else np.isfinite(values) & is_valid
    if not usable.any():
        return np.zeros(values.shape, dtype=np.uint8)
    kept = values[usable]
    low, high = _find_range(kept, None if counts is None else counts[usable])
    if high <= low:
        low, high = float(kept.min()), float(kept.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = np.where(usable, (values / 2 - low / 2) / (high / 2 - low / 2), 0.0)
    return np.round(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)


def _find_range(kept: NDArray[np.float64], counts: NDArray[np.int64] | None) -> tuple[float, float]:
    """The lower and upper values beyond which OUTLIER_PERCENT of the pixels lie."""
    if counts is None:
        low = float(np.percentile(kept, OUTLIER_PERCENT, method="lower"))
        return low, float(np.percentile(kept, 100 - OUTLIER_PERCENT, method="higher"))
    order = np.argsort(kept, kind="stable")
    ends = np.cumsum(counts[order])
    places = (ends[-1] - 1) * (np.array([OUTLIER_PERCENT, 100 - OUTLIER_PERCENT]) / 100)
    wanted = [np.floor(places[0]), np.ceil(places[1])]  # like NumPy's "lower" and "higher"
    low, high = kept[order][np.searchsorted(ends, wanted, side="right")]
    return float(low), float(high)


def scale_colour_to_uint8(colour: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale colour by the bits in use, at least 8: black and hue are kept, unlike in a stretch.

    Data of 12 bits in a 16-bit file are divided by 4095, a full 16-bit file by 65535.
    """
    n_bits = max(8, int(colour.max()).bit_length())
    return divide_to_uint8(colour, top=2**n_bits - 1)


def divide_to_uint8(colour: NDArray[np.generic], *, top: int) -> NDArray[np.uint8]:
    """Scale 0..top to 0..255; larger values saturate."""
    found = tally(colour)
    known = colour if found is None else found[0]
    shares = np.clip(known.astype(np.float64) / top, 0.0, 1.0)
    shades: NDArray[np.uint8] = np.round(shares * 255).astype(np.uint8)
    return shades if found is None else place_shades(colour, known=known, shades=shades)
