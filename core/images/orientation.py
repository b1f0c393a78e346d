"""The orientation that a picture file states (EXIF or TIFF tag 274), in any type.

The tag is a SHORT; some writers store a BYTE, a LONG, a RATIONAL or text, which Pillow does not
apply.
"""

import struct

from PIL import Image as PILImage
from PIL.Image import Transpose

_TAG = 274
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_EXCHANGING = (5, 6, 7, 8)  # rows become columns
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
)


def find_orientation(picture: PILImage.Image) -> int:
    """The orientation, 1..8; 1 (upright) if it is absent, out of range, or its block is damaged."""
    try:
        number = _to_number(picture.getexif().get(_TAG))
    except _DAMAGE:
        return 1
    return number if number in _TURNS else 1


def exchanges_axes(orientation: int) -> bool:
    """Whether rows become columns."""
    return orientation in _EXCHANGING


def turn_upright(picture: PILImage.Image, orientation: int) -> PILImage.Image:
    """Apply an orientation to a decoded picture."""
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _to_number(value: object) -> int:
    if isinstance(value, tuple):
        (value,) = value
    if isinstance(value, bytes):  # BYTE or UNDEFINED
        return int.from_bytes(value, "little") if len(value.strip(b"\0")) <= 1 else 0
    if isinstance(value, str):
        return int(value.strip(" \0"))
    return 0 if value is None else int(value)  # type: ignore[call-overload, no-any-return]
