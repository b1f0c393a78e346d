"""How a DICOM file's header says its pixels are stored.

Owns the image pixel tags (PS3.3 C.7.6.3): what a missing one must be, and refusing a file where
only a guess would do, because a wrong guess shows a wrong picture. Messages name the tag.
"""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from core.errors import ImageError
from core.images.intensity import check_frame_bytes, check_size

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_N_SAMPLES = {"PALETTE COLOR": 1, "RGB": 3, "HSV": 3}
PACKED_BITS = 12  # of ACR-NEMA
_NATIVE_BITS = (1, 8, 16, 32, 64)


@dataclass(frozen=True)
class Layout:
    """The image pixel tags of one file, complete."""

    columns: int
    rows: int
    n_frames: int
    n_samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool | None  # None: not stated
    photometric: str
    keyword: str  # of the pixel data

    @property
    def is_float(self) -> bool:
        """Whether the values are fractions, which have no unused bits."""
        return self.keyword != "PixelData"


def read_layout(dataset: Dataset) -> Layout:
    """Read the tags, with the standard's own value for a missing one if there is just one.

    Raises:
        ImageError: a tag is missing or impossible, or the frame is too large.
    """
    columns, rows = (_read_number(dataset, k) or 0 for k in ("Columns", "Rows"))
    check_size(columns, rows)
    keyword = next(k for k in PIXEL_KEYWORDS if k in dataset)
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if not photometric:
        raise refuse_tag("PhotometricInterpretation", "is missing")
    n_samples = _read_samples(dataset, photometric)
    allocated = _read_number(dataset, "BitsAllocated") or _allocate(keyword)
    check_frame_bytes(columns * rows * n_samples * max(8, allocated) // 8)
    stored, high = _read_bits(dataset, allocated, is_float=keyword != "PixelData")
    representation = _read_number(dataset, "PixelRepresentation")
    if representation not in (None, 0, 1):
        raise refuse_tag("PixelRepresentation", f"is {representation}, expected 0 or 1")
    is_signed = None if representation is None else representation == 1
    if stored == 1 or (n_samples > 1 and is_signed is None):
        is_signed = False  # colour is unsigned (C.7.6.3.1), and a single bit has no sign
    return Layout(
        columns=columns,
        rows=rows,
        n_frames=max(1, _read_number(dataset, "NumberOfFrames") or 1),
        n_samples=n_samples,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        is_signed=is_signed,
        photometric=photometric,
        keyword=keyword,
    )


def complete(dataset: Dataset, layout: Layout) -> None:
    """Write the layout into the data set, for pydicom, which takes no tag as read."""
    dataset.NumberOfFrames = layout.n_frames
    dataset.SamplesPerPixel = layout.n_samples
    dataset.BitsAllocated = layout.bits_allocated
    dataset.BitsStored = layout.bits_stored
    dataset.HighBit = layout.high_bit
    dataset.PixelRepresentation = int(bool(layout.is_signed))
    if layout.n_samples > 1 and dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.PlanarConfiguration = 0  # a codestream defines its own, and RLE has planes


def check_native(dataset: Dataset, layout: Layout) -> None:
    """Refuse an uncompressed layout that cannot be read, or fewer bytes than it needs.

    Raises:
        ImageError: with the tag, or the number of bytes.
    """
    if layout.bits_allocated not in (*_NATIVE_BITS, PACKED_BITS):
        raise refuse_tag("BitsAllocated", f"is {layout.bits_allocated}, expected 8, 12 or 16")
    if layout.n_samples > 1 and dataset.get("PlanarConfiguration") not in (0, 1):
        raise refuse_tag("PlanarConfiguration", "is missing or neither 0 nor 1")
    n_values = layout.rows * layout.columns * layout.n_samples * layout.n_frames
    if layout.photometric == "YBR_FULL_422":
        n_values = n_values * 2 // 3
    expected = -(-n_values * layout.bits_allocated // 8)
    came = len(dataset[layout.keyword].value or b"")
    if came < expected:
        raise ImageError(
            f"the DICOM file is cut off: its header promises {expected} bytes of pixels, "
            f"{came} are there. Copy or export it again.",
            code="image.truncated",
            params={"format": "DICOM"},
        )


def refuse_sign() -> ImageError:
    """Build the error for values that are negative or large, which the file does not say."""
    return refuse_tag("PixelRepresentation", "is missing and its values could be negative")


def _read_number(dataset: Dataset, keyword: str) -> int | None:
    """The tag's number; None if it is absent or empty."""
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else int(value)
    except (TypeError, ValueError, AttributeError, OverflowError) as err:
        raise refuse_tag(keyword, "is not a number") from err


def _read_samples(dataset: Dataset, photometric: str) -> int:
    n_samples = _read_number(dataset, "SamplesPerPixel")
    if n_samples is not None:
        return n_samples
    is_grey = photometric.startswith("MONOCHROME")
    known = 1 if is_grey else 3 if photometric.startswith("YBR") else _N_SAMPLES.get(photometric)
    if known is None:
        raise refuse_tag("SamplesPerPixel", "is missing")
    return known


def _allocate(keyword: str) -> int:
    if keyword == "PixelData":
        raise refuse_tag("BitsAllocated", "is missing")
    return 32 if keyword == "FloatPixelData" else 64


def _read_bits(dataset: Dataset, allocated: int, *, is_float: bool) -> tuple[int, int]:
    """Bits per value and the highest of them; an impossible HighBit is treated as absent."""
    stored, high = _read_number(dataset, "BitsStored"), _read_number(dataset, "HighBit")
    if is_float:
        return allocated, allocated - 1
    if not stored:
        if high is None and allocated > 8:
            raise refuse_tag("BitsStored", "is missing")
        stored = allocated if high is None else high + 1
    if not 1 <= stored <= allocated:
        raise refuse_tag("BitsStored", f"is {stored}, expected 1 to {allocated}")
    return stored, high if high is not None and stored <= high < allocated else stored - 1


def refuse_tag(tag: str, what: str) -> ImageError:
    """Build the error for a tag that is missing or impossible."""
    return ImageError(
        f"the DICOM file cannot be shown safely: its tag {tag} {what}. Export it again from the "
        "archive, or ask for it in another format.",
        code="image.dicom_unsupported",
        params={"reason": f"{tag} {what}"},
    )
