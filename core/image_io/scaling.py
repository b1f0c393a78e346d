"""Number ranges: from whatever a file holds to 0..255, and the limits on size and frame."""

import numpy as np
from numpy.typing import NDArray

from core.errors import ImageError

MAX_PIXELS = 80_000_000  # of one frame; below Pillow's own limit, so that ours speaks first
MAX_FRAME_BYTES = 512 * 2**20  # of one decoded frame, or of a deflated file once inflated
OUTLIER_PERCENT = 0.1  # of the values at either end may saturate


def check_size(width: int, height: int) -> None:
    """Refuse a frame by its header, before anything is decoded.

    Raises:
        ImageError: no pixels, or more than MAX_PIXELS.
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


def scale_to_uint8(
    values: NDArray[np.float64], *, is_valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Stretch the range of the valid, finite values to 0..255; all others become 0.

    The range leaves out OUTLIER_PERCENT at either end, which saturate: one hot pixel does not
    darken the rest. Under 1000 values, and where that range is empty, it is minimum to maximum.
    A constant array becomes all zero.
    """
    usable = np.isfinite(values) if is_valid is None else np.isfinite(values) & is_valid
    if not usable.any():
        return np.zeros(values.shape, dtype=np.uint8)
    kept = values[usable]
    low = float(np.percentile(kept, OUTLIER_PERCENT, method="lower"))
    high = float(np.percentile(kept, 100 - OUTLIER_PERCENT, method="higher"))
    if high <= low:
        low, high = float(kept.min()), float(kept.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = np.where(usable, (values / 2 - low / 2) / (high / 2 - low / 2), 0.0)
    return np.round(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)


def scale_colour_to_uint8(colour: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale colour by the bits in use, at least 8: black and hue stay, unlike in a stretch.

    Data of 12 bits in a 16-bit file are divided by 4095, a full 16-bit file by 65535.
    """
    n_bits = max(8, int(colour.max()).bit_length())
    scaled: NDArray[np.float64] = colour.astype(np.float64) / (2**n_bits - 1) * 255
    return np.round(scaled).astype(np.uint8)
