"""Decode one frame of DICOM pixels: one named decoder for each transfer syntax.

The strictest decoder at hand (see tests/test_images_dicom_syntaxes.py), and never another when it
refuses: a lenient one would invent what is missing. What a decoder lets pass although it ended
early is found by core.images.jpeg_segments.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import jpeg_ls
import numpy as np
from libjpeg.utils import decode as decode_with_libjpeg
from numpy.typing import NDArray
from openjpeg.utils import decode as decode_with_openjpeg
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from core.errors import ImageError
from core.images.codestream import Codestream, is_j2k_whole, read_codestream
from core.images.dicom_layout import PACKED_BITS, Layout, check_native, refuse_tag
from core.images.jpeg_scans import has_all_scans
from core.images.jpeg_segments import fill_scans, list_segments, mend_scan_header

_DAMAGE = (RuntimeError, ValueError, TypeError, IndexError, KeyError, OSError, MemoryError)
_CONVERTED = ("YBR_ICT", "YBR_RCT")  # by the JPEG 2000 decoder itself


@dataclass(frozen=True, eq=False)
class Frame:
    """The words of one frame, as decoded."""

    words: NDArray[np.generic]  # (H, W) or (H, W, S); signed only if the codestream says so
    precision: int  # bits per word that the decoder filled
    is_lossy: bool
    photometric: str  # of these words


def decode_frame(dataset: Dataset, layout: Layout, index: int) -> Frame:
    """Decode one frame, whole or not at all.

    Raises:
        ImageError: the transfer syntax is not supported, or the frame is damaged or cut off.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _NATIVE:
        check_native(dataset, layout)
        if layout.bits_allocated == PACKED_BITS:
            return _unpack(dataset, layout, index)
        return _decode_native(dataset, layout, index)
    if syntax != RLELossless and syntax not in _DECODERS:
        raise ImageError(
            f"the DICOM file is compressed as {syntax.name}, which cannot be decoded here. Export "
            "it uncompressed, as JPEG, JPEG-LS, JPEG 2000 or RLE.",
            code="image.dicom_transfer_syntax",
            params={"syntax": syntax.name},
        )
    encoded = _find_frame(dataset, layout, index)
    if syntax == RLELossless:
        return _decode_native(dataset, layout, index)
    header = read_codestream(encoded)
    if header is None:
        raise refuse_damage()
    _check_header(header, layout)
    try:
        words = _DECODERS[syntax](encoded)
    except _DAMAGE as err:
        raise refuse_damage() from err
    shape = (layout.rows, layout.columns, layout.n_samples)
    return Frame(
        words=words.reshape(shape if layout.n_samples > 1 else shape[:2]),
        precision=header.precision,
        is_lossy=syntax not in _LOSSLESS and not header.is_lossless,
        photometric=_find_photometric(header, layout),
    )


def refuse_damage() -> ImageError:
    """Build the error for a compressed frame that is damaged or cut off."""
    return ImageError(
        "the DICOM file is damaged: its compressed frame is not whole, so that a part of the "
        "picture would be invented. Copy or export it again.",
        code="image.truncated",
        params={"format": "DICOM"},
    )


def _decode_native(dataset: Dataset, layout: Layout, index: int) -> Frame:
    """Uncompressed and RLE, by pydicom without its corrections of the unused bits."""
    # pylibjpeg-rle panics on damaged data with a BaseException, which must not be caught here
    words = pixel_array(
        dataset, index=index, raw=True, decoding_plugin="pydicom", correct_unused_bits=False
    )
    was_422 = layout.photometric == "YBR_FULL_422"
    return Frame(
        words=words.astype(words.dtype.newbyteorder("="), copy=False),
        precision=layout.bits_allocated if layout.bits_allocated > 1 else 8,
        is_lossy=False,
        photometric="YBR_FULL" if was_422 else layout.photometric,
    )


def _unpack(dataset: Dataset, layout: Layout, index: int) -> Frame:
    """Uncompressed values of 12 bits without gaps, as ACR-NEMA files have them."""
    if layout.n_samples > 1:
        raise refuse_tag("BitsAllocated", "is 12 for colour, expected 8 or 16")
    n_values = layout.rows * layout.columns
    first, n_bits = index * n_values * PACKED_BITS, n_values * PACKED_BITS
    begin, end = first // 16 * 2, -(-(first + n_bits) // 16) * 2
    cells = bytes(dataset.PixelData[begin:end]).ljust(end - begin, b"\0")
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    stream = np.frombuffer(cells, dtype=f"{order}u2").astype("<u2").view(np.uint8)
    bits = np.unpackbits(stream, bitorder="little")[first % 16 :][:n_bits]
    whole = np.pad(bits.reshape(-1, PACKED_BITS), ((0, 0), (0, 16 - PACKED_BITS)))
    words = (
        np.packbits(whole, axis=1, bitorder="little")
        .view("<u2")
        .reshape(layout.rows, layout.columns)
    )
    return Frame(words, precision=PACKED_BITS, is_lossy=False, photometric=layout.photometric)


def _find_frame(dataset: Dataset, layout: Layout, index: int) -> bytes:
    """The encoded bytes of a frame; refuses a file with fewer fragments than frames."""
    stream = io.BytesIO(dataset.PixelData)
    parse_basic_offsets(stream)
    n_fragments, _ = parse_fragments(stream)
    if n_fragments < layout.n_frames:
        raise ImageError(
            f"the DICOM file is cut off: its header promises {layout.n_frames} frames, at most "
            f"{n_fragments} are there. Copy or export it again.",
            code="image.truncated",
            params={"format": "DICOM"},
        )
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    frame: bytes = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=layout.n_frames,
        extended_offsets=(table, lengths) if table and lengths else None,
    )
    return frame


def _check_header(header: Codestream, layout: Layout) -> None:
    """Refuse a codestream of another size; libjpeg hangs on height 0."""
    said = (header.width, header.height, header.n_samples)
    if said == (layout.columns, layout.rows, layout.n_samples):
        return
    raise ImageError(
        f"the DICOM file contradicts itself: its compressed frame says {said[0]} x {said[1]} "
        f"pixels, its header {layout.columns} x {layout.rows}; {said[2]} samples per pixel, its "
        f"header {layout.n_samples}. Export it again.",
        code="image.dicom_unsupported",
        params={"reason": "size"},
    )


def _find_photometric(header: Codestream, layout: Layout) -> str:
    """The colours of the decoded words; the codestream's own names go before the header's."""
    if layout.n_samples != 3 or layout.photometric in _CONVERTED:
        return "RGB" if layout.photometric in _CONVERTED else layout.photometric
    if header.has_rgb_ids:
        return "RGB"
    return "YBR_FULL" if header.has_jfif or "YBR" in layout.photometric else layout.photometric


def _decode_jpeg(encoded: bytes) -> NDArray[np.generic]:
    segments = list_segments(encoded)
    if not segments.is_ended or not has_all_scans(segments):
        raise refuse_damage()
    mended = mend_scan_header(encoded, segments)
    words: NDArray[np.generic] = decode_with_libjpeg(mended, 0)
    filled = fill_scans(mended, segments)
    if filled is not None and not np.array_equal(decode_with_libjpeg(filled, 0), words):
        raise refuse_damage()
    return words


def _decode_jpeg_ls(encoded: bytes) -> NDArray[np.generic]:
    segments = list_segments(encoded)
    if not segments.is_ended or not has_all_scans(segments):
        raise refuse_damage()
    decoded, info = jpeg_ls.decode_pixel_data(encoded)
    words = np.frombuffer(decoded, dtype="u1" if info["bits_per_sample"] <= 8 else "<u2")
    n_samples = info["components"]
    if n_samples == 1 or info["interleave_mode"] != 0:
        return words
    return np.moveaxis(words.reshape(n_samples, info["height"], info["width"]), 0, 2)


def _decode_j2k(encoded: bytes) -> NDArray[np.generic]:
    if not is_j2k_whole(encoded):
        raise refuse_damage()
    words: NDArray[np.generic] = decode_with_openjpeg(encoded)
    return words


_NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
_LOSSLESS = (
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
# The one decoder of each compressed transfer syntax; RLE is pydicom's, see _decode_native.
_DECODERS: dict[UID, Callable[[bytes], NDArray[np.generic]]] = {
    JPEGBaseline8Bit: _decode_jpeg,
    JPEGExtended12Bit: _decode_jpeg,
    JPEGLossless: _decode_jpeg,
    JPEGLosslessSV1: _decode_jpeg,
    JPEGLSLossless: _decode_jpeg_ls,
    JPEGLSNearLossless: _decode_jpeg_ls,
    JPEG2000Lossless: _decode_j2k,
    JPEG2000: _decode_j2k,
    HTJ2KLossless: _decode_j2k,
    HTJ2KLosslessRPCL: _decode_j2k,
    HTJ2K: _decode_j2k,
}
