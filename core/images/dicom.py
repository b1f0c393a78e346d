"""Decode DICOM pixels for display: rescale, window, polarity, colour, chosen frame.

pydicom and its plug-ins decode; this module chooses the frame, applies the standard's colour rules
(PS3.3 C.7.6.3) and turns every failure into an ImageError. It reads image-related tags only, and no
message quotes a tag value that could identify a patient. Grey values are converted to display
levels in core.images.dicom_grey.
"""

import dataclasses
import io
import itertools
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.pixels import apply_color_lut, convert_color_space
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from core.errors import ImageError
from core.images import aspect
from core.images.dicom_codecs import decode_frame
from core.images.dicom_grey import FileDisplay, WindowPreset, show_grey
from core.images.dicom_layout import PIXEL_KEYWORDS, Layout, complete, read_layout, refuse_tag
from core.images.dicom_objects import check_object
from core.images.intensity import (
    check_frame_bytes,
    divide_to_uint8,
    refuse_frame,
    scale_colour_to_uint8,
)
from core.images.notices import Notice
from core.images.overlays import read_overlays
from core.images.quiet import hush
from core.images.stored_bits import take_stored_bits
from core.images.supplemental_palette import (
    PALETTE_IGNORED,
    find_coloured,
    hide_coloured,
    take_palette,
)

_ERRORS = (
    BytesLengthException,
    InvalidDicomError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    MemoryError,
)
_PIXEL_DATA_TAG = 0x7FE00010  # the last element needed
_MAX_ELEMENTS = 50_000  # far above any real file; zeros would parse as millions of elements
_INFLATE_STEP = 2**22
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # converted to RGB


@dataclass(frozen=True, eq=False)
class DecodedDicom:
    """One frame, ready for display."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    bit_depth: int
    n_frames: int
    window: tuple[float, float] | None = None
    presets: tuple[WindowPreset, ...] = ()
    value_range: tuple[float, float] | None = None  # of a grey frame, modality units
    file_display: FileDisplay | None = None  # of a grey frame
    notices: tuple[Notice, ...] = ()
    proportions: tuple[aspect.Statement, ...] = ()  # of its pixels, the most reliable first
    overlay: NDArray[np.bool_] | None = None  # (H, W), the file's graphics; no part of ``pixels``


def is_dicom(data: bytes) -> bool:
    """Recognise DICOM by its preamble, or without one, by a first element of group 2 or 8."""
    if data[128:132] == b"DICM":
        return True
    if len(data) < 12:
        return False
    little, big = struct.unpack("<HH", data[:4]), struct.unpack(">HH", data[:4])
    for (group, element), order in ((little, "<"), (big, ">")):
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        has_vr = data[4:6].isalpha() and data[4:6].isupper()
        (length,) = struct.unpack(f"{order}I", data[4:8])
        if has_vr or length < 256:
            return True
    return False


def decode_dicom(
    data: bytes, *, frame: int, window: tuple[float, float] | None, invert: bool = False
) -> DecodedDicom:
    """Decode one frame; see ``core.images.decode.decode``."""
    try:
        with hush():
            dataset = _read(data)
            notices = check_object(dataset)
            _check_has_pixels(dataset)
        decoded = _decode(dataset, frame=frame, window=window, invert=invert)
        return _add_surroundings(dataset, decoded, frame=frame, notices=notices)
    except ImageError:
        raise
    except _ERRORS as err:
        raise ImageError(
            "the DICOM file is damaged or its pixels cannot be decoded. Export it again from the "
            "archive, uncompressed if possible.",
            code="image.dicom_unsupported",
            params={"reason": "damaged data"},
        ) from err


def _read(data: bytes) -> Dataset:
    _check_inflated_size(data)
    count = itertools.count()

    def is_enough(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return tag > _PIXEL_DATA_TAG or next(count) > _MAX_ELEMENTS

    dataset = read_partial(io.BytesIO(data), stop_when=is_enough, force=True)
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", FileMetaDataset()):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta = getattr(dataset, "file_meta", FileMetaDataset())
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        dataset.file_meta = meta
    return dataset


def _check_has_pixels(dataset: Dataset) -> None:
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise ImageError(
            "the DICOM file holds no image (it may be a report, a plan, a waveform or a directory, "
            "or be cut off before its pixels). Choose the image series.",
            code="image.dicom_no_pixels",
        )


@hush()
def _add_surroundings(
    dataset: Dataset, decoded: DecodedDicom, *, frame: int, notices: tuple[Notice, ...]
) -> DecodedDicom:
    """Add what the file holds beside the pixels: their proportion, and overlay graphics."""
    overlay, said = read_overlays(dataset, frame=frame)
    return dataclasses.replace(
        decoded,
        notices=(*notices, *decoded.notices, *said),
        proportions=tuple(aspect.read_dicom(dataset, frame=frame)),
        overlay=overlay,
    )


def _check_inflated_size(data: bytes) -> None:
    """Refuse a deflated file that would fill the memory; pydicom inflates without a limit."""
    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, rest, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), stream.read(), 0
    while rest and not inflater.eof:
        piece = inflater.decompress(rest, _INFLATE_STEP)
        n_bytes += len(piece)
        check_frame_bytes(n_bytes)
        rest = inflater.unconsumed_tail if piece else b""


def _decode(
    dataset: Dataset, *, frame: int, window: tuple[float, float] | None, invert: bool
) -> DecodedDicom:
    stored = _decode_stored(dataset, frame)
    bits, n_frames = stored.layout.bits_stored, stored.layout.n_frames
    if stored.layout.photometric == "PALETTE COLOR":
        return DecodedDicom(_apply_palette(dataset, stored.values), bits, n_frames)
    if stored.values.ndim == 3:
        _check_colour(stored.layout.photometric)
        colour = _colour_to_uint8(stored.values, bits)
        if stored.photometric == "YBR_FULL":
            colour = convert_color_space(colour, "YBR_FULL", "RGB")
        return DecodedDicom(colour, bits, n_frames)
    coloured, colours, notices = _find_colours(dataset, stored.values, frame=frame)
    grey = stored.values if coloured is None else hide_coloured(stored.values, coloured)
    invert = invert and coloured is None
    shades = show_grey(dataset, grey, frame=frame, window=window, invert=invert)
    pixels = np.repeat(shades.grey[:, :, None], 3, axis=2)
    if coloured is not None:
        pixels[coloured] = colours
    return DecodedDicom(
        pixels,
        bits,
        n_frames,
        window=shades.window,
        presets=shades.presets,
        value_range=shades.value_range,
        file_display=shades.file_display,
        notices=notices,
    )


@dataclass(frozen=True, eq=False)
class _Stored:
    """The stored values of one frame."""

    layout: Layout
    values: NDArray[np.generic]  # (H, W) or (H, W, S)
    photometric: str  # of these values: a decoder may have converted them


def _find_colours(
    dataset: Dataset, stored: NDArray[np.generic], *, frame: int
) -> tuple[NDArray[np.bool_] | None, NDArray[np.uint8], tuple[Notice, ...]]:
    """Where a supplemental palette colours a grey frame, (H, W), with the (N, 3) colours there."""
    none = np.zeros((0, 3), dtype=np.uint8)
    try:
        coloured = find_coloured(dataset, stored, frame=frame)
        if coloured is None:
            return None, none, ()
        return coloured, _apply_palette(take_palette(dataset), stored)[coloured], ()
    except _ERRORS:
        return None, none, (PALETTE_IGNORED,)


@hush()
def _decode_stored(dataset: Dataset, index: int) -> _Stored:
    layout = read_layout(dataset)
    refuse_frame(index, layout.n_frames)
    complete(dataset, layout)
    frame = decode_frame(dataset, layout, index)
    values = take_stored_bits(
        frame.words, layout, precision=frame.precision, is_lossy=frame.is_lossy
    )
    return _Stored(layout, values, frame.photometric)


def _check_colour(photometric: str) -> None:
    if photometric not in _COLOURS:
        raise ImageError(
            f"the DICOM file's colours are stored in a way that cannot be shown; expected one of "
            f"{', '.join(_COLOURS)} or PALETTE COLOR. Export it as RGB.",
            code="image.dicom_unsupported",
            params={"reason": "PhotometricInterpretation"},
        )


@hush()
def _apply_palette(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.uint8]:
    if not dataset.get("RedPaletteColorLookupTableDescriptor"):
        raise refuse_tag("RedPaletteColorLookupTableDescriptor", "is missing")
    n_entries, first, _ = (int(v) for v in dataset.RedPaletteColorLookupTableDescriptor)
    # pydicom counts entries in the table's data type, which would overflow
    within = np.clip(stored.astype(np.int32), first, first + (n_entries or 2**16) - 1)
    colour = apply_color_lut(within, dataset)[:, :, :3]
    if colour.max() > 255:
        return _colour_to_uint8(colour, 16)
    return scale_colour_to_uint8(colour)  # 8-bit entries, sometimes stored in 16 bits


def _colour_to_uint8(colour: NDArray[np.generic], bits: int | None = None) -> NDArray[np.uint8]:
    """Scale RGB of any depth to 8 bits by its nominal range, without stretching."""
    if colour.dtype == np.uint8 and (bits is None or bits == 8):
        return np.array(colour[:, :, :3], dtype=np.uint8)
    return divide_to_uint8(colour[:, :, :3], top=2 ** (bits or 8 * colour.dtype.itemsize) - 1)
