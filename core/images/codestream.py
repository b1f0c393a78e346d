"""Read what a compressed frame says about itself, from its codestream, without decoding it.

A DICOM header may claim 4 x 4 pixels around a JPEG of 65535 x 65535, and the decoders trust the
JPEG. Owns finding the true size and precision, and what is missing at the end of a JPEG 2000
codestream; the limits are in core.images.intensity.
"""

import struct
from dataclasses import dataclass

from core.errors import ImageError
from core.images.jpeg_segments import list_segments

_JPEG_START = b"\xff\xd8\xff"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_BOX = b"\x00\x00\x00\x0cjP"
_LOSSLESS_JPEG, _JPEG_LS, _JFIF = 0xC3, 0xF7, 0xE0
_TILE, _END = b"\xff\x90", b"\xff\xd9"
_RGB_IDS = (b"RGB", b"rgb")


@dataclass(frozen=True)
class Codestream:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream."""

    width: int
    height: int
    precision: int = 8  # bits per sample
    n_samples: int = 1  # per pixel
    is_lossless: bool = False  # JPEG and JPEG-LS; not determined for JPEG 2000
    has_rgb_ids: bool = False  # components named R, G and B
    has_jfif: bool = False  # which means YCbCr


def read_codestream(frame: bytes) -> Codestream | None:
    """Read the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None if it is not readable.

    Raises:
        ImageError: a JPEG 2000 file has a box shorter than its own header.
    """
    if frame.startswith(_JPEG_START):
        return _read_jpeg(frame)
    start = find_j2k_start(frame)
    if start < 0 or len(frame) < start + 43:
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
    (n_samples,) = struct.unpack(">H", frame[start + 40 : start + 42])
    return Codestream(
        width=max(0, right - left),
        height=max(0, bottom - top),
        precision=(frame[start + 42] & 0x7F) + 1,
        n_samples=n_samples,
    )


def _read_jpeg(frame: bytes) -> Codestream | None:
    segments = list_segments(frame)
    header, scan = segments.frame, segments.scan
    if header is None or len(header.content) < 6:
        return None
    precision, height, width, n_samples = struct.unpack(">BHHB", header.content[:6])
    near = scan.content[-3] if scan is not None and len(scan.content) > 3 else 1
    is_lossless = header.marker == _LOSSLESS_JPEG or (header.marker == _JPEG_LS and near == 0)
    return Codestream(
        width=width,
        height=height,
        precision=precision,
        n_samples=n_samples,
        is_lossless=is_lossless,
        has_rgb_ids=n_samples == 3 and header.content[6::3] in _RGB_IDS,
        has_jfif=any(s.marker == _JFIF and s.content[:4] == b"JFIF" for s in segments.found),
    )


def find_j2k_start(frame: bytes) -> int:
    """Offset of a JPEG 2000 codestream, inside a JP2 file or bare; -1 if there is none.

    Raises:
        ImageError: a box is shorter than its own header.
    """
    if frame.startswith(_JP2_BOX):
        return _skip_boxes(frame)
    return 0 if frame.startswith(_J2K_START) else -1


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


def is_j2k_whole(frame: bytes) -> bool:
    """Whether a JPEG 2000 codestream has every tile and ends with its end-of-codestream marker."""
    start = find_j2k_start(frame)
    if start < 0 or len(frame) < start + 40:
        return False
    right, bottom, *_, width, height, left, top = struct.unpack(
        ">8I", frame[start + 8 : start + 40]
    )
    if not width or not height or right <= left or bottom <= top:
        return False
    n_tiles = -((left - right) // width) * -((top - bottom) // height)
    tiles, position = set[int](), start + 2
    while frame[position : position + 2] != _END:
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        if length < 2 or position + 12 > len(frame):
            return False
        if frame[position : position + 2] == _TILE:
            tile, length = struct.unpack(">HI", frame[position + 4 : position + 10])
            tiles.add(tile)
            if length == 0:  # the last tile-part, up to the end
                position = max(position + 12, frame.rfind(_END))
                continue
            length -= 2
        position += 2 + max(2, length)
    return bool(len(tiles) == n_tiles)
