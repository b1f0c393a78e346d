"""Decode a file's bytes (picture or DICOM) into one Image record, or refuse it with a reason.

Owns decoding to 8-bit RGB. Files are recognised by their bytes, never by name. From a DICOM file
only the pixels and the tags needed to display them are read, never a patient tag. DICOM decoding is
in core.images.dicom.
"""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from PIL.ImageFile import ImageFile

from core.errors import ImageError, check_shape
from core.images import aspect
from core.images.deep_colour import find_raw_mode, is_deep_colour, read_deep_colour
from core.images.dicom import decode_dicom, is_dicom
from core.images.dicom_grey import FileDisplay, WindowPreset
from core.images.intensity import MAX_FILE_BYTES, MAX_PIXELS, check_size, refuse_frame, stretch
from core.images.jpeg_picture import check_jpeg_whole
from core.images.notices import Notice
from core.images.orientation import exchanges_axes, find_orientation, turn_upright
from core.images.quiet import hush
from core.images.tiff import Samples, is_whole, mend_samples, read_samples, refuse_kind

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",  # BigTIFF
    b"MM\x00+": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
}
_BIG_ENDIAN_BIG_TIFF = b"MM\x00+"  # Pillow takes its header for a classic one
_FOREIGN = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000 file",
}
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's own choice for broken PNG chunks
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    NotImplementedError,
    AssertionError,  # a GIF whose second frame has lost its palette
)
_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB, read-only
    name: str
    sha256: str  # of the file's bytes
    format: str  # "PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF" or "DICOM"
    bit_depth: int  # per sample, in the file
    n_frames: int = 1
    frame: int = 0
    window: tuple[float, float] | None = None  # centre and width, if one was applied
    presets: tuple[WindowPreset, ...] = ()  # windows suggested by a DICOM file
    value_range: tuple[float, float] | None = None  # of a grey DICOM frame, modality units
    file_display: FileDisplay | None = None  # display of a grey DICOM frame without ``window``
    is_grey: bool = False  # equal channels; only then can the image be inverted
    is_inverted: bool = False  # whether it was inverted on request
    notices: tuple[Notice, ...] = ()  # how the file was read, where that is not obvious
    overlay: NDArray[np.bool_] | None = None  # (H, W) graphics beside the picture, never read


def decode(
    data: bytes,
    *,
    name: str = "",
    frame: int = 0,
    window: tuple[float, float] | None = None,
    invert: bool = False,
) -> Image:
    """Decode a file's bytes.

    Grey images of more than 8 bits are stretched from their own range, excluding the outermost
    0.1 % of the values, to 0..255; colour of more than 8 bits is scaled by the bits in use. DICOM
    is displayed with its rescale and window. Transparent pixels become black. EXIF orientation is
    applied; colour profiles are not. Pixels that the file states not to be square are resampled.

    Args:
        data: the whole file; not modified.
        name: stored in the record, not interpreted.
        frame: of a multi-frame DICOM, TIFF or GIF, from 0.
        window: centre and width in DICOM's modality units, instead of the file's own; ignored for
            other formats.
        invert: invert a grey image; ignored for colour.

    Raises:
        ImageError: empty, truncated, not an image, too large, constant, an unsupported DICOM, or a
            window without width, or a DICOM object that is no picture; the code says which.
    """
    if window is not None and not (np.isfinite(window).all() and window[1] > 0):
        raise ImageError(
            f"the window has centre {window[0]} and width {window[1]}; expected two finite "
            "numbers and a width above 0.",
            code="image.window",
        )
    if not data:
        raise ImageError(
            "the file is empty (0 bytes); expected an image. Copy or export it again.",
            code="image.empty",
        )
    shown = None
    notices: tuple[Notice, ...] = ()
    if is_dicom(data):
        shown = decode_dicom(data, frame=frame, window=window, invert=invert)
        pixels, kind, notices = shown.pixels, "DICOM", shown.notices
        bit_depth, n_frames = shown.bit_depth, shown.n_frames
        proportions: Sequence[aspect.Statement] = shown.proportions
    else:
        pixels, kind, bit_depth, n_frames, proportions = _decode_picture(data, frame=frame)
    if pixels.min() == pixels.max():
        raise ImageError(
            "every pixel of the image has the same value: there is nothing to see. Check the "
            "export, or the frame and window chosen.",
            code="image.constant",
        )
    is_grey = bool((pixels == pixels[:, :, :1]).all())
    is_done = shown is not None and shown.value_range is not None  # DICOM: already inverted
    if invert and is_grey and not is_done:
        pixels = 255 - pixels
    pixels, said = aspect.correct(pixels, proportions)
    overlay = shown.overlay if shown else None
    if overlay is not None:
        overlay = aspect.fit_mask(overlay, height=pixels.shape[0], width=pixels.shape[1])
    pixels = np.ascontiguousarray(pixels)
    pixels.setflags(write=False)
    return Image(
        pixels=pixels,
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        format=kind,
        bit_depth=bit_depth,
        n_frames=n_frames,
        frame=frame,
        window=shown.window if shown else None,
        presets=shown.presets if shown else (),
        value_range=shown.value_range if shown else None,
        file_display=shown.file_display if shown else None,
        is_grey=is_grey,
        is_inverted=invert and is_grey,
        notices=(*notices, *said),
        overlay=overlay,
    )


def load(path: Path, *, frame: int = 0) -> Image:
    """Read and decode a file; see ``decode``.

    Raises:
        ImageError: also if the file is missing, a folder, or unreadable.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ImageError(
                "the file cannot be read: the path is a folder or a device; expected a file. "
                "Choose the image itself.",
                code="image.missing",
            )
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"the file is too large: at most {MAX_FILE_BYTES >> 30} GiB are read. Export the "
                "image alone, or fewer frames.",
                code="image.too_large",
                params={"limit": MAX_PIXELS // 10**6},
            )
        data = Path(path).read_bytes()
    except ImageError:
        raise
    except ValueError as err:
        raise ImageError(
            "the file cannot be read: its path holds a character that no path may hold. Check it.",
            code="image.missing",
        ) from err
    except OSError as err:
        raise ImageError(
            f"the file cannot be read ({os.strerror(err.errno) if err.errno else err}); check that "
            "it exists and that you may read it.",
            code="image.missing",
        ) from err
    return decode(data, name=Path(path).name, frame=frame)


def thumbnail(pixels: NDArray[np.uint8], *, max_px: int = 256) -> NDArray[np.uint8]:
    """Shrink (H, W, 3) to at most ``max_px`` on the longer side; never enlarge."""
    check_shape("pixels", pixels, (None, None, 3))
    height, width = pixels.shape[:2]
    factor = max_px / max(height, width)
    if factor >= 1.0:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk = PILImage.fromarray(pixels).resize(size, PILImage.Resampling.LANCZOS)
    return np.asarray(shrunk, dtype=np.uint8)


def fit_square(pixels: NDArray[np.uint8], *, side: int) -> NDArray[np.uint8]:
    """Scale (H, W, 3) to fit, centred, in a black square of ``side`` pixels, keeping its aspect."""
    check_shape("pixels", pixels, (None, None, 3))
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    scaled = PILImage.fromarray(pixels).resize(size, PILImage.Resampling.LANCZOS)
    square = PILImage.new("RGB", (side, side))
    square.paste(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square, dtype=np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 losslessly as PNG."""
    check_shape("pixels", pixels, (None, None, 3))
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 as JPEG at quality 90, for thumbnails."""
    check_shape("pixels", pixels, (None, None, 3))
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _decode_picture(
    data: bytes, *, frame: int
) -> tuple[NDArray[np.uint8], str, int, int, list[aspect.Statement]]:
    """Return pixels, format, bits per sample, number of frames, what is said of pixel shape."""
    known = _recognise(data)
    if known is None:
        raise ImageError(
            f"expected PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM; the content is {_describe(data)}. "
            "Export the image in one of these formats.",
            code="image.not_an_image",
            params={"found": _describe(data)},
        )
    PILImage.init()  # if formats are given, open() does not load the plug-ins it needs
    try:
        with _open(data) as picture:
            kind, n_frames = _turn_to_frame(picture, frame)
            if kind == "JPEG":
                check_jpeg_whole(data)
            bit_depth = _find_bit_depth(picture, data)
            samples = read_samples(picture)
            proportions = _read_proportions(picture, lambda: _open(data, frame))
            if is_deep_colour(find_raw_mode(picture)) and (kind == "TIFF" or n_frames == 1):
                pixels = read_deep_colour(lambda: _open(data, frame), turn=_turn_upright)
            else:
                pixels = _to_rgb(_read_upright(picture), samples)
            return pixels, kind, bit_depth, n_frames, proportions
    except ImageError:
        raise
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as err:
        raise ImageError(
            f"the image is too large: at most {MAX_PIXELS // 10**6} million pixels can be read. "
            "Export it smaller.",
            code="image.too_large",
            params={"limit": MAX_PIXELS // 10**6},
        ) from err
    except (UnidentifiedImageError, *_PILLOW_ERRORS) as err:
        if data.startswith(_BIG_ENDIAN_BIG_TIFF):
            raise refuse_kind("a big-endian BigTIFF") from err
        if known == "TIFF" and isinstance(err, UnidentifiedImageError) and is_whole(data):
            raise refuse_kind("an unusual layout of samples") from err
        raise ImageError(
            f"the file begins like {known} but is damaged or was cut off. Copy or export it again.",
            code="image.truncated",
            params={"format": known},
        ) from err


def _recognise(data: bytes) -> str | None:
    """Recognise the format by its first bytes; short signatures are checked further."""
    known = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if known == "BMP" and int.from_bytes(data[14:18], "little") not in _BMP_HEADER_SIZES:
        return None
    if known == "WebP" and data[8:12] != b"WEBP":
        return None
    return known


@hush()
def _open(data: bytes, frame: int = 0) -> ImageFile:
    picture = PILImage.open(io.BytesIO(data), formats=_FORMATS)
    if frame:
        picture.seek(frame)
    return picture


@hush()
def _turn_to_frame(picture: ImageFile, frame: int) -> tuple[str, int]:
    """Seek a frame of an opened file before decoding; return format and number of frames."""
    check_size(*picture.size)
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)
    n_frames = 1 if kind == "JPEG" else int(getattr(picture, "n_frames", 1))
    refuse_frame(frame, n_frames)
    if frame:
        picture.seek(frame)
        check_size(*picture.size)
    return kind, n_frames


@hush()
def _read_proportions(
    picture: ImageFile, open_again: Callable[[], ImageFile]
) -> list[aspect.Statement]:
    """What an opened file states of its pixels' shape, as they lie when it is turned upright."""
    stated = aspect.read_picture(picture)
    # looking for a PNG's orientation loads it: rarely needed, so on a second opening
    if not stated or not exchanges_axes(find_orientation(open_again())):
        return stated
    return [aspect.Statement(s.source, 1 / s.ratio) for s in stated]


@hush()
def _read_upright(picture: ImageFile) -> PILImage.Image:
    picture.load()
    return _turn_upright(picture)


def _turn_upright(picture: PILImage.Image) -> PILImage.Image:
    """Apply the orientation that is left after loading: Pillow turns some TIFF files itself."""
    return turn_upright(picture, find_orientation(picture))


def _to_rgb(picture: PILImage.Image, samples: Samples | None) -> NDArray[np.uint8]:
    mended = mend_samples(picture, samples)
    if mended is not None and mended.dtype == np.uint8:
        return np.repeat(mended.astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode in _WIDE_MODES:
        values = np.asarray(picture) if mended is None else mended
        grey = stretch(values)
        if samples is not None and samples.is_white_zero:  # Pillow inverts these only up to 8 bits
            grey = (255 - grey).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return _convert_to_rgb(picture)


@hush()
def _convert_to_rgb(picture: PILImage.Image) -> NDArray[np.uint8]:
    """Convert 8-bit colour or grey to RGB, with transparency on black."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        black = PILImage.new("RGBA", rgba.size, (0, 0, 0, 255))
        picture = PILImage.alpha_composite(black, rgba)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _find_bit_depth(picture: PILImage.Image, data: bytes) -> int:
    if picture.format == "PNG" and len(data) > 24:
        return data[24]  # IHDR
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return int(bits[0] if isinstance(bits, tuple) else bits)
    return {"1": 1, "F": 32, "I": 32}.get(picture.mode, 8)


def _describe(data: bytes) -> str:
    for start, kind in _FOREIGN.items():
        if data.startswith(start):
            return kind
    head = data[:512]
    if head.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        return "a web page"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as err:
        # a character cut off at the end of the sample is still text
        text = head[: err.start].decode("utf-8") if err.start > len(head) - 4 else "\0"
    is_text = all(c.isprintable() or c in "\r\n\t" for c in text)
    return "text" if is_text else "of no known kind"
