"""Read a compressed frame's size from its codestream without decoding it.

A DICOM header may claim 4 x 4 pixels around a JPEG of 65535 x 65535, and the decoders trust the
JPEG. Owns finding the true size; the limit is in core.images.intensity.
"""

import struct

from core.errors import ImageError

_JPEG_START = b"\xff\xd8\xff"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_BOX = b"\x00\x00\x00\x0cjP"
# Start-of-frame markers: C0..CF without tables (C4), extensions (C8) and conditioning (CC); and
# F7 of JPEG-LS.
_FRAME_MARKERS = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def find_codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG, JPEG-LS or JPEG 2000 codestream; None if not stated.

    Raises:
        ImageError: a JPEG 2000 file has a box shorter than its own header.
    """
    if frame.startswith(_JPEG_START):
        return _find_jpeg_size(frame)
    start = 0 if frame.startswith(_J2K_START) else -1
    if frame.startswith(_JP2_BOX):
        start = _skip_boxes(frame)
    if start < 0 or len(frame) < start + 24:
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
    return max(0, right - left), max(0, bottom - top)


def _skip_boxes(frame: bytes) -> int:
    """Offset of the codestream in a JP2 file, or -1 (pydicom 3.0.2 leaves no empty box)."""
    position = 12
    while position < len(frame):
        length = int.from_bytes(frame[position : position + 4], "big")
        if frame[position + 4 : position + 8] == b"jp2c":
            return position + 8
        if length < 8:
            raise ImageError(
                "the DICOM file is damaged: its JPEG 2000 frame has an empty box. Export it again.",
                code="image.dicom_unsupported",
                params={"reason": "box"},
            )
        position += length
    return -1


def _find_jpeg_size(frame: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack(">HH", frame[position + 5 : position + 9])
            return width, height
        (length,) = struct.unpack(">H", frame[position + 2 : position + 4])
        position += 2 + length
    return None
