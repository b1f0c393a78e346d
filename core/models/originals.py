"""Load the original image behind a gallery row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import ImageError
from core.images.decode import Image, decode, load, thumbnail
from core.models.ensemble import Model


def load_image(model: Model, index: int) -> tuple[Image, bool]:
    """Load a training image for diagnosis, and whether it is the original file.

    That is the file where it still lies and is the same, else the thumbnail, which bears the
    file's sha256: either way neither the image nor its patient votes on it.

    Args:
        model: whose album is meant.
        index: place in the album.
    """
    member, row = model.find_image(index)
    bundle = member.bundle
    key, sha256 = bundle.gallery.keys[row], bundle.gallery.sha256[row]
    path = Path(bundle.config.data_root) / key
    if path.is_file():
        try:
            image = load(path)
        except ImageError:
            pass  # it was another file when the model was trained
        else:
            if image.sha256 == sha256:
                return replace(image, name=key), True
    return replace(decode(bundle.encoded_thumbnail(row), name=key), sha256=sha256), False


def load_case(model: Model, index: int, *, max_px: int = 1024) -> NDArray[np.uint8]:
    """The pixels of ``load_image``.

    Args:
        model: whose album is meant.
        index: place in the album.
        max_px: longer side at most.

    Returns:
        (h, w, 3) uint8.
    """
    return thumbnail(load_image(model, index)[0].pixels, max_px=max_px)
