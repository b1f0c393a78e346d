"""Colour of some values of a grey image: the supplemental palette (PS3.3 C.7.6.23, C.8.16.2.1.1.1).

Owns which stored values are coloured: those from the palette's first entry on, such as the flow in
an ultrasound volume or the activation in a functional MR. The others stay grey.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from core.images.notices import Notice

PALETTE_IGNORED = Notice(
    "image.palette_ignored",
    "The file gives some values of this image a colour, by a palette that cannot be read: it is "
    "shown and read in grey.",
)
_COLOURED = ("COLOR", "MIXED")
_DESCRIPTOR = "RedPaletteColorLookupTableDescriptor"
_PALETTE_TAGS = range(0x00281101, 0x00281224)
_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "USImageDescriptionSequence",
    "XRay3DFrameTypeSequence",
)


def find_coloured(
    dataset: Dataset, stored: NDArray[np.generic], *, frame: int
) -> NDArray[np.bool_] | None:
    """(H, W), true where the palette gives the colour; None if the frame has no such palette."""
    if _DESCRIPTOR not in dataset or stored.ndim != 2:
        return None
    said = list(_list_presentations(dataset, frame))
    if not any(value in _COLOURED for value in said):
        return None
    first = int(dataset[_DESCRIPTOR].value[1])
    is_coloured: NDArray[np.bool_] = np.asarray(stored.astype(np.int64) >= first)
    return is_coloured if is_coloured.any() else None


def take_palette(dataset: Dataset) -> Dataset:
    """The palette's tags alone: pydicom applies no palette to a dataset with PixelPresentation."""
    palette = Dataset()
    palette.update({tag: dataset[tag] for tag in dataset.keys() if tag in _PALETTE_TAGS})  # noqa: SIM118
    return palette


def hide_coloured(
    stored: NDArray[np.generic], is_coloured: NDArray[np.bool_]
) -> NDArray[np.generic]:
    """The grey values alone, so that the coloured ones do not widen the range of the display."""
    grey = stored[~is_coloured]
    return np.where(is_coloured, grey.min() if grey.size else stored.min(), stored)


def _list_presentations(dataset: Dataset, frame: int) -> Iterator[str]:
    """PixelPresentation of the frame, or of the whole object."""
    for keyword, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        for group in (dataset.get(keyword) or ())[index : index + 1]:
            for name in _FRAME_TYPES:
                for item in group.get(name) or ():
                    if value := str(item.get("PixelPresentation") or ""):
                        yield value.strip().upper()
                        return
    yield str(dataset.get("PixelPresentation") or "").strip().upper()
