"""Refuse a JPEG picture that is not whole.

Pillow shows a picture whose data end early if an end-of-image marker follows, and some without one:
the lost part is grey or smeared.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from core.errors import ImageError
from core.images.jpeg_scans import has_all_scans
from core.images.jpeg_segments import fill_scans, list_segments
from core.images.quiet import hush

_SHRINK = 8  # by the decoder, which then looks at the mean of each block only
_PROGRESSIVE = (0xC2, 0xC6)  # whose later scans hold no means


def check_jpeg_whole(data: bytes) -> None:
    """Raise ImageError unless the data of every scan are all there.

    Two decodings are compared, one of them with noise behind the data; at an eighth of the size,
    except for progressive pictures.
    """
    segments = list_segments(data)
    if not segments.is_ended or not has_all_scans(segments):
        raise _refuse()
    filled = fill_scans(data, segments)
    if filled is None or segments.frame is None:
        return
    shrink = 1 if segments.frame.marker in _PROGRESSIVE else _SHRINK
    if not np.array_equal(_read(data, shrink), _read(filled, shrink)):
        raise _refuse()


@hush()
def _read(data: bytes, shrink: int) -> NDArray[np.uint8]:
    with PILImage.open(io.BytesIO(data), formats=["JPEG"]) as picture:
        picture.draft(None, (picture.width // shrink or 1, picture.height // shrink or 1))
        return np.asarray(picture, dtype=np.uint8)


def _refuse() -> ImageError:
    return ImageError(
        "the file begins like JPEG but is damaged or was cut off: a part of the picture would be "
        "invented. Copy or export it again.",
        code="image.truncated",
        params={"format": "JPEG"},
    )
