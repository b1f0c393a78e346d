"""DICOM pixels as a display would show them: rescale, window, polarity, colour, chosen frame.

pydicom and its plug-ins decode; this module chooses the frame, applies what the standard says
about display (PS3.3 C.7.6.3, C.11.1, C.11.2) and turns every failure into an ImageError. It reads
image-related tags only, and no message quotes a tag's value that could name a patient.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from core.errors import ImageError
from core.image_io.scaling import check_size, refuse_frame, scale_to_uint8

_ERRORS = (
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


@dataclass(frozen=True, eq=False)
class DecodedDicom:
    """One frame, ready to show."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    bit_depth: int
    n_frames: int
    window: tuple[float, float] | None


def is_dicom(data: bytes) -> bool:
    """Recognise DICOM by its preamble, or without one by a first element of group 2 or 8."""
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


def decode_dicom(data: bytes, *, frame: int, window: tuple[float, float] | None) -> DecodedDicom:
    """Decode one frame; see ``core.image_io.decode``."""
    try:
        dataset = _read(data)
        return _decode(dataset, frame=frame, window=window)
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
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not any(keyword in dataset for keyword in _PIXELS):
        raise ImageError(
            "the DICOM file holds no image (it may be a report, a plan, a waveform or a directory, "
            "or be cut off before its pixels). Choose the image series.",
            code="image.dicom_no_pixels",
        )
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", FileMetaDataset()):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta = getattr(dataset, "file_meta", FileMetaDataset())
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        dataset.file_meta = meta
    return dataset


def _decode(dataset: Dataset, *, frame: int, window: tuple[float, float] | None) -> DecodedDicom:
    check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0))
    n_frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    refuse_frame(frame, n_frames)
    _check_transfer_syntax(dataset)
    _check_length(dataset, n_frames)
    bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 8)
    stored = pixel_array(dataset, index=frame)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        return DecodedDicom(_colour_to_uint8(stored), bits, n_frames, None)
    if stored.ndim == 3:
        return DecodedDicom(_colour_to_uint8(stored, bits), bits, n_frames, None)
    grey, used = _show_grey(dataset, stored, frame=frame, window=window)
    is_padding = _find_padding(dataset, stored)
    if photometric == "MONOCHROME1":
        grey = (255 - grey).astype(np.uint8)
    grey = np.where(is_padding, 0, grey).astype(np.uint8)
    return DecodedDicom(np.repeat(grey[:, :, None], 3, axis=2), bits, n_frames, used)


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
    """An uncompressed file whose pixels are fewer than its header promises is cut off."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed or "PixelData" not in dataset:
        return
    bits = int(dataset.get("BitsAllocated") or 8)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    n_values = int(dataset.Rows) * int(dataset.Columns) * samples * n_frames
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        n_values = n_values * 2 // 3
    expected, came = -(-n_values * bits // 8), len(dataset.PixelData)
    if came < expected:
        raise ImageError(
            f"the DICOM file is cut off: its header promises {expected} bytes of pixels, "
            f"{came} are there. Copy or export it again.",
            code="image.truncated",
            params={"format": "DICOM"},
        )


def _show_grey(
    dataset: Dataset,
    stored: NDArray[np.generic],
    *,
    frame: int,
    window: tuple[float, float] | None,
) -> tuple[NDArray[np.uint8], tuple[float, float] | None]:
    """Stored values -> 0..255 before polarity, and the window used if any."""
    display = _collect_display_tags(dataset, frame)
    values = apply_modality_lut(stored, display).astype(np.float64)
    if window is None and "VOILUTSequence" in display and stored.dtype.kind in "iu":
        table = display.VOILUTSequence[0]
        shown = apply_voi(apply_modality_lut(stored, display), display).astype(np.float64)
        top = 2.0 ** int(table.LUTDescriptor[2]) - 1.0
        return np.round(np.clip(shown / top, 0.0, 1.0) * 255).astype(np.uint8), None
    used = window or _find_window(display)
    if used is None:
        return scale_to_uint8(values, is_valid=~_find_padding(dataset, stored)), None
    function = str(display.get("VOILUTFunction") or "LINEAR")
    shares = _apply_window(values, centre=used[0], width=used[1], function=function)
    return np.round(np.clip(shares, 0.0, 1.0) * 255).astype(np.uint8), used


def _apply_window(
    values: NDArray[np.float64], *, centre: float, width: float, function: str
) -> NDArray[np.float64]:
    """The three VOI LUT functions of PS3.3 C.11.2.1, with output in 0..1."""
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width <= 1.0:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1.0) + 0.5


def _find_window(display: Dataset) -> tuple[float, float] | None:
    """The first window of the file that can be used."""
    centre, width = display.get("WindowCenter"), display.get("WindowWidth")
    if centre is None or width is None:
        return None
    first = [v[0] if isinstance(v, pydicom.multival.MultiValue) else v for v in (centre, width)]
    pair = float(first[0]), float(first[1])
    return pair if np.isfinite(pair).all() and pair[1] > 0 else None


def _collect_display_tags(dataset: Dataset, frame: int) -> Dataset:
    """Rescale and window of a frame: enhanced objects keep them in functional groups."""
    display = Dataset()
    display.update(
        {
            element.tag: element
            for keyword in (
                "RescaleSlope",
                "RescaleIntercept",
                "ModalityLUTSequence",
                "VOILUTSequence",
                "WindowCenter",
                "WindowWidth",
                "VOILUTFunction",
                "BitsStored",
                "PixelRepresentation",
                "PhotometricInterpretation",
            )
            if keyword in dataset and not dataset[keyword].is_empty
            for element in (dataset[keyword],)
        }
    )
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    of_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *of_frame[frame : frame + 1]):
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(keyword) or []:
                display.update({element.tag: element for element in item})
    if ("RescaleSlope" in display) != ("RescaleIntercept" in display):
        # One without the other: the standard wants both; the missing one is neutral.
        display.RescaleSlope = display.get("RescaleSlope", 1.0)
        display.RescaleIntercept = display.get("RescaleIntercept", 0.0)
    return display


def _find_padding(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels outside the image, by PixelPaddingValue and its range limit."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    low, high = sorted((first, last if isinstance(last, int) else first))
    numbers = stored.astype(np.float64)
    return (numbers >= low) & (numbers <= high)


def _colour_to_uint8(colour: NDArray[np.generic], bits: int | None = None) -> NDArray[np.uint8]:
    """RGB of any depth -> 8 bits by the nominal range, never stretched."""
    if colour.dtype == np.uint8 and (bits is None or bits == 8):
        return np.array(colour[:, :, :3], dtype=np.uint8)
    top = float(2 ** (bits or 8 * colour.dtype.itemsize) - 1)
    scaled = colour[:, :, :3].astype(np.float64) / top
    return np.round(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)
