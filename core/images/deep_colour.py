"""Read 16-bit colour and grey-with-alpha images.

Pillow keeps only the high byte of these. To get the low byte, the file is opened again with the
opposite byte order, so that 12-bit data in a 16-bit file keep their contrast.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.ImageFile import ImageFile

from core.images.intensity import scale_colour_to_uint8, stretch
from core.images.quiet import hush

_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B"}  # N: native, little endian here


def find_raw_mode(picture: ImageFile) -> str:
    """The layout of the samples in the file, such as "RGB;16B"; empty if not stated."""
    if not picture.tile:
        return ""
    args = picture.tile[0].args
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def is_deep_colour(raw_mode: str) -> bool:
    """Whether Pillow would truncate this layout to 8 bits but ``read_deep_colour`` would not."""
    layout, _, depth = raw_mode.partition(";")
    return (layout in ("RGB", "RGBA") and depth in _OTHER_BYTE) or raw_mode == "LA;16B"


def read_deep_colour(
    open_picture: Callable[[], ImageFile], *, turn: Callable[[PILImage.Image], PILImage.Image]
) -> NDArray[np.uint8]:
    """Read all 16 bits, then scale: colour by the bits in use, grey by its own range.

    Args:
        open_picture: opens the file at the chosen frame, not yet loaded.
        turn: applies the orientation.

    Returns:
        (H, W, 3) uint8 RGB, transparency on black.
    """
    raw_mode = find_raw_mode(open_picture())
    if raw_mode == "LA;16B":
        # Four bytes per pixel, like RGBA of 8 bits: grey high, grey low, alpha high, alpha low.
        quads = _read_as(open_picture(), "RGBA", turn).astype(np.uint16)
        grey = quads[:, :, 0] * 256 + quads[:, :, 1]
        opacity = quads[:, :, 2] * 256 + quads[:, :, 3]
        shown = stretch(grey, is_valid=opacity > 0)
        return np.repeat(_fade(shown, opacity)[:, :, None], 3, axis=2)
    layout, _, depth = raw_mode.partition(";")
    high = _read_as(open_picture(), raw_mode, turn).astype(np.uint16)
    low = _read_as(open_picture(), f"{layout};{_OTHER_BYTE[depth]}", turn)
    samples = high * 256 + low
    colour = scale_colour_to_uint8(samples[:, :, :3])
    return _fade(colour, samples[:, :, 3:]) if samples.shape[2] == 4 else colour


def _fade(shown: NDArray[np.uint8], opacity: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Blend (H, W) or (H, W, 3) with black, row by row because opacities take eight bytes."""
    faded = np.empty_like(shown)
    for row, (shades, shares) in enumerate(zip(shown, opacity, strict=True)):
        faded[row] = np.round(shades * (shares / 65535))
    return faded


@hush()
def _read_as(
    picture: ImageFile, raw_mode: str, turn: Callable[[PILImage.Image], PILImage.Image]
) -> NDArray[np.uint8]:
    picture.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in picture.tile
    ]
    picture.load()
    return np.asarray(turn(picture), dtype=np.uint8)
