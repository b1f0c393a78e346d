"""Load the original image behind a gallery row."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.errors import ImageError
from core.files.names import find_path, read_path
from core.images.decode import Image, decode, load, thumbnail
from core.models.ensemble import Model


def load_image(model: Model, index: int) -> tuple[Image, bool]:
    """Load a training image for diagnosis, and whether it is the original file.

    That is the original file if it is still in place and unchanged; otherwise the thumbnail, which
    carries the file's sha256. Either way, the image and its patient are excluded from its vote.

    Args:
        model: whose album is used.
        index: album position.
    """
    member, row = model.find_image(index)
    bundle = member.bundle
    key, sha256 = bundle.gallery.keys[row], bundle.gallery.sha256[row]
    path = find_path(read_path(bundle.config.data_root), key)
    if path.is_file():
        try:
            image = load(path)
        except ImageError:
            pass  # the file has changed since training
        else:
            if image.sha256 == sha256:
                return replace(image, name=key), True
    return replace(decode(bundle.encoded_thumbnail(row), name=key), sha256=sha256), False


def load_case(model: Model, index: int, *, max_px: int = 1024) -> NDArray[np.uint8]:
    """Load the pixels of a training image, as ``load_image`` finds it.

    Args:
        model: whose album is used.
        index: album position.
        max_px: maximum length of the longer side.

    Returns:
        (h, w, 3) uint8.
    """
    return thumbnail(load_image(model, index)[0].pixels, max_px=max_px)
