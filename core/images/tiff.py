"""TIFF variants that Pillow decodes wrongly or not at all.

Owns the interpretation of the sample tags: Pillow reads signed bytes as unsigned, unsigned 32-bit
values as signed, and splits uncompressed 16-bit planes in the wrong places.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from core.errors import ImageError
from core.images.quiet import hush

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _FORMAT = 258, 259, 262, 284, 339
_PIECES = ((273, 279), (324, 325))  # offsets and byte counts of strips or tiles
_BIG = 43  # BigTIFF
_PLAIN, _SEPARATE, _WHITE_IS_ZERO, _SIGNED = 1, 2, 0, 2  # values of those tags
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)


@dataclass(frozen=True)
class Samples:
    """How a TIFF frame stores its samples."""

    n_bits: int  # maximum of any channel
    is_signed: bool
    is_white_zero: bool


@hush()
def read_samples(picture: ImageFile) -> Samples | None:
    """Read the sample format from the frame's tags; None if the image is not a TIFF.

    Raises:
        ImageError: Pillow would decode this layout into noise.
    """
    if picture.format != "TIFF":
        return None
    tags = picture.tag_v2  # type: ignore[attr-defined]
    bits, formats = _as_tuple(tags.get(_BITS, 1)), _as_tuple(tags.get(_FORMAT, 1))
    samples = Samples(
        n_bits=int(max(bits)),
        is_signed=_SIGNED in formats,
        is_white_zero=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
    )
    is_cut_wrong = tags.get(_PLANES) == _SEPARATE and tags.get(_COMPRESSION, 1) == _PLAIN
    if is_cut_wrong and len(bits) > 1 and samples.n_bits > 8:
        raise refuse_kind("uncompressed planes of more than 8 bits")
    if samples.is_signed and samples.n_bits <= 8 and picture.mode != "L":
        raise refuse_kind("signed colour")
    return samples


def mend_samples(picture: PILImage.Image, samples: Samples | None) -> NDArray[np.generic] | None:
    """Correct grey samples that Pillow misread; None if Pillow is right.

    Returns:
        (H, W) uint32, int16, or uint8 with signed bytes shifted up by 128.
    """
    if samples is None:
        return None
    if picture.mode == "I" and samples.n_bits == 32 and not samples.is_signed:
        return np.asarray(picture, dtype=np.int32).view(np.uint32)
    if picture.mode == "I" and samples.n_bits == 16 and samples.is_signed:
        return np.asarray(picture).astype(np.int16)
    if picture.mode == "L" and samples.n_bits == 8 and samples.is_signed:
        return np.asarray(picture, dtype=np.uint8) ^ np.uint8(128)
    return None


@hush()
def is_whole(data: bytes) -> bool:
    """Whether a TIFF's first directory is readable and everything it points to is in the file."""
    try:
        directory = ImageFileDirectory_v2(data[: 16 if data[2] == _BIG else 8])
        stream = io.BytesIO(data)
        stream.seek(directory.next or len(data))
        directory.load(stream)
        for begins, lengths in _PIECES:
            if begins in directory and lengths in directory:
                pieces = zip(
                    _as_tuple(directory[begins]), _as_tuple(directory[lengths]), strict=True
                )
                return all(begin + length <= len(data) for begin, length in pieces)
    except _DAMAGE:
        return False
    return False


def refuse_kind(kind: str) -> ImageError:
    """Build the error for a valid TIFF that is not supported."""
    return ImageError(
        f"this is a kind of TIFF that cannot be read here ({kind}). Export it with 8 or 16 bits "
        "per sample, little-endian, black as zero, or as PNG or DICOM.",
        code="image.tiff_kind",
        params={"kind": kind},
    )


def _as_tuple(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)  # type: ignore[return-value]
