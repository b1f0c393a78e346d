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
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from core.errors import ImageError
from core.images import aspect
from core.images.codestream_size import find_codestream_size
from core.images.dicom_grey import FileDisplay, WindowPreset, show_grey
from core.images.dicom_objects import check_object
from core.images.intensity import (
    check_frame_bytes,
    check_size,
    divide_to_uint8,
    refuse_frame,
    scale_colour_to_uint8,
)
from core.images.notices import Notice
from core.images.overlays import read_overlays
from core.images.quiet import hush
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
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
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
            f"the DICOM file is damaged or its pixels cannot be decoded ({type(err).__name__}). "
            "Export it again from the archive, uncompressed if possible.",
            code="image.dicom_unsupported",
            params={"reason": type(err).__name__},
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
    if not any(keyword in dataset for keyword in _PIXELS):
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
    stored, bits, n_frames = _decode_stored(dataset, frame)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return DecodedDicom(_apply_palette(dataset, stored), bits, n_frames)
    if stored.ndim == 3:
        _check_colour(dataset)
        return DecodedDicom(_colour_to_uint8(stored, bits), bits, n_frames)
    coloured, colours, notices = _find_colours(dataset, stored, frame=frame)
    grey = stored if coloured is None else hide_coloured(stored, coloured)
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
def _decode_stored(dataset: Dataset, frame: int) -> tuple[NDArray[np.generic], int, int]:
    """Return the stored values of one frame, bits per value, number of frames."""
    width, height = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
    check_size(width, height)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    bits_allocated = int(dataset.get("BitsAllocated") or 8)
    check_frame_bytes(width * height * samples * max(8, bits_allocated) // 8)
    n_frames = max(1, int(dataset.get("NumberOfFrames") or 1))  # text here hides frames: refuse it
    refuse_frame(frame, n_frames)
    if "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = n_frames  # pydicom reads it too and refuses 0
    if not dataset.get("PhotometricInterpretation"):
        dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    _check_transfer_syntax(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream(dataset, frame=frame, n_frames=n_frames)
    else:
        _check_length(dataset, n_frames)
    bits = int(dataset.get("BitsStored") or bits_allocated)
    # pylibjpeg-rle panics on damaged data with a BaseException, which must not be caught here
    is_rle = dataset.file_meta.TransferSyntaxUID == RLELossless
    n_below = _find_bits_below(dataset, bits, bits_allocated)
    if n_below:
        dataset.BitsStored = bits + n_below  # pydicom would keep only the lowest bits
    stored = pixel_array(dataset, index=frame, decoding_plugin="pydicom" if is_rle else "")
    if n_below:
        stored = stored >> n_below
    return stored, bits, n_frames


def _find_bits_below(dataset: Dataset, bits: int, bits_allocated: int) -> int:
    """Number of bits below the value in a pixel cell (PS3.5 section 8.1.1), from HighBit.

    An impossible HighBit is treated as absent; a JPEG frame defines its own bit positions.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    high = dataset.get("HighBit")
    if high is None or (syntax.is_encapsulated and syntax != RLELossless):
        return 0
    n_below = int(high) + 1 - bits
    return n_below if 0 < n_below <= bits_allocated - bits else 0


def _check_transfer_syntax(dataset: Dataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise ImageError(
            f"the DICOM file is compressed as {syntax.name}, which cannot be decoded here. Export "
            "it uncompressed, as JPEG, JPEG-LS, JPEG 2000 or RLE.",
            code="image.dicom_transfer_syntax",
            params={"syntax": syntax.name},
        )


def _check_length(dataset: Dataset, n_frames: int) -> None:
    """Refuse an uncompressed file with fewer pixels than its header states as truncated."""
    keyword = next(keyword for keyword in _PIXELS if keyword in dataset)
    bits = int(dataset.get("BitsAllocated") or 8)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    n_values = int(dataset.Rows) * int(dataset.Columns) * samples * n_frames
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        n_values = n_values * 2 // 3
    expected, came = -(-n_values * bits // 8), len(dataset[keyword].value or b"")
    if came < expected:
        raise ImageError(
            f"the DICOM file is cut off: its header promises {expected} bytes of pixels, "
            f"{came} are there. Copy or export it again.",
            code="image.truncated",
            params={"format": "DICOM"},
        )


def _check_codestream(dataset: Dataset, *, frame: int, n_frames: int) -> None:
    """Refuse missing frames, and a frame whose codestream size differs from the header."""
    stream = io.BytesIO(dataset.PixelData)
    parse_basic_offsets(stream)
    n_fragments, _ = parse_fragments(stream)
    if n_fragments < n_frames:
        raise ImageError(
            f"the DICOM file is cut off: its header promises {n_frames} frames, at most "
            f"{n_fragments} are there. Copy or export it again.",
            code="image.truncated",
            params={"format": "DICOM"},
        )
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    encoded = get_frame(
        dataset.PixelData,
        frame,
        number_of_frames=n_frames,
        extended_offsets=(table, lengths) if table and lengths else None,
    )
    size = find_codestream_size(encoded)
    if size is not None and size != (dataset.Columns, dataset.Rows):  # libjpeg hangs on height 0
        raise ImageError(
            f"the DICOM file contradicts itself: its compressed frame says {size[0]} x {size[1]} "
            f"pixels, its header {dataset.Columns} x {dataset.Rows}. Export it again.",
            code="image.dicom_unsupported",
            params={"reason": "size"},
        )


def _check_colour(dataset: Dataset) -> None:
    if dataset.PhotometricInterpretation not in _COLOURS:
        raise ImageError(
            f"the DICOM file's colours are stored in a way that cannot be shown; expected one of "
            f"{', '.join(_COLOURS)} or PALETTE COLOR. Export it as RGB.",
            code="image.dicom_unsupported",
            params={"reason": "PhotometricInterpretation"},
        )


@hush()
def _apply_palette(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.uint8]:
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
