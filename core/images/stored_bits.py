"""Take the stored values out of the words that a decoder gives (PS3.5 section 8.1.1).

Only BitsStored bits below HighBit of each word are the image; overlays or anything else may lie in
the others. One rule for every transfer syntax, since encoders may keep a word whole.
"""

import numpy as np
from numpy.typing import NDArray

from core.images.dicom_layout import Layout, refuse_sign


def take_stored_bits(
    words: NDArray[np.generic], layout: Layout, *, precision: int, is_lossy: bool
) -> NDArray[np.generic]:
    """Return the stored values, in the smallest integer type that holds them; fractions as is.

    Args:
        words: any shape; signed only if the codestream says so.
        layout: of the file.
        precision: bits per word that the decoder filled.
        is_lossy: a lossy word can exceed the range of BitsStored; it is clamped, not masked, since
            the bits above are not something else but the value's own.

    Raises:
        ImageError: the file does not say whether a value with its top bit set is negative.
    """
    if layout.is_float:
        return words
    bits = layout.bits_stored
    # a codestream without the bit HighBit has moved the value down to bit 0
    n_below = max(0, layout.high_bit + 1 - bits) if precision > layout.high_bit else 0
    size = next(s for s in (8, 16, 32, 64) if s >= max(bits + n_below, precision))
    wide = words.astype(f"{words.dtype.kind}{size // 8}", copy=False)
    is_signed = bool(layout.is_signed)
    if is_lossy and precision > bits:
        values = _clamp(_extend(wide, precision, is_signed=is_signed), layout, n_below)
    else:
        shifted = wide >> n_below if n_below else wide  # type: ignore[operator]
        values = _extend(shifted, bits, is_signed=is_signed)
    if layout.is_signed is None and bool((values >> (bits - 1)).any()):  # type: ignore[operator]
        raise refuse_sign()
    return values


def _extend(words: NDArray[np.generic], bits: int, *, is_signed: bool) -> NDArray[np.generic]:
    """The lowest bits of each word, as a number with or without sign."""
    size = words.dtype.itemsize
    kept = words.view(f"u{size}")
    if is_signed:
        n_above = 8 * size - bits
        signed = (kept << n_above).view(f"i{size}") if n_above else kept.view(f"i{size}")  # type: ignore[operator]
        return signed >> n_above if n_above else signed  # type: ignore[no-any-return]
    if bits == 8 * size:
        return kept
    return kept & kept.dtype.type(2**bits - 1)  # type: ignore[no-any-return]


def _clamp(values: NDArray[np.generic], layout: Layout, n_below: int) -> NDArray[np.generic]:
    low = -(2 ** (layout.bits_stored - 1)) if layout.is_signed else 0
    shifted = values >> n_below if n_below else values  # type: ignore[operator]
    clamped: NDArray[np.generic] = np.clip(shifted, low, low + 2**layout.bits_stored - 1)
    return clamped
