"""Convert stored values of a grey DICOM frame to display levels 0..255.

Owns the modality table or rescale, the window or VOI table, polarity and padding (PS3.3 C.7.6.3,
C.11.1, C.11.2). An optional tag that cannot be interpreted is treated as absent.
"""

import dataclasses
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

from core.images.intensity import place_shades, scale_to_uint8, tally
from core.images.quiet import hush

_TAG_ERRORS = (
    BytesLengthException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    struct.error,
)
_DISPLAY_TAGS = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
)


# How a frame is displayed if no window is requested: the file's VOI table, its first window or, if
# neither shows anything, the range of the frame's values.
FileDisplay = Literal["table", "window", "range"]


@dataclass(frozen=True)
class WindowPreset:
    """A window suggested by the file."""

    name: str  # the file's explanation; empty if there is none
    centre: float
    width: float


@dataclass(frozen=True, eq=False)
class Shades:
    """A frame ready for display, with its display settings."""

    grey: NDArray[np.uint8]  # (H, W)
    window: tuple[float, float] | None  # centre and width, if one was applied
    presets: tuple[WindowPreset, ...]
    value_range: tuple[float, float]  # excluding padding, modality units
    file_display: FileDisplay


def show_grey(
    dataset: Dataset,
    stored: NDArray[np.generic],
    *,
    frame: int,
    window: tuple[float, float] | None,
    invert: bool = False,
) -> Shades:
    """Convert a frame to display levels.

    A window in the file that shows nothing of this frame is skipped. MONOCHROME1 and the
    presentation LUT shape INVERSE both mean that low values are bright; a file with both (as is
    usual in digital X-ray, PS3.3 C.8.11.3.1.2) is inverted once. Padding is always black.

    Args:
        dataset: the image; not modified.
        stored: (H, W) stored values.
        frame: index, for tags kept per frame.
        window: centre and width that replace the file's. One of the file's presets is applied with
            the file's VOI LUT function, any other window linearly (LINEAR_EXACT).
        invert: invert the result; padding stays black.
    """
    found = tally(stored)
    if found is None:
        return _shade(dataset, stored, frame=frame, window=window, invert=invert)
    known, counts = found
    shades = _shade(dataset, known, counts=counts, frame=frame, window=window, invert=invert)
    grey = place_shades(stored, known=known, shades=shades.grey)
    return dataclasses.replace(shades, grey=grey)


@np.errstate(all="ignore")
def _shade(
    dataset: Dataset,
    stored: NDArray[np.generic],
    *,
    counts: NDArray[np.int64] | None = None,
    frame: int,
    window: tuple[float, float] | None,
    invert: bool,
) -> Shades:
    """``show_grey`` for pixels, or for distinct values with ``counts`` of each; any shape."""
    display = _collect_display_tags(dataset, frame)
    is_little = bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
    is_padding = _find_padding(dataset, stored)
    values = _apply_modality(display, stored, is_little=is_little)
    presets = _list_presets(display)
    grey, used, file_display = _show_by_file(
        display, values, is_little=is_little, is_padding=is_padding
    )
    if window is not None:
        is_own = window in [(preset.centre, preset.width) for preset in presets]
        function = _choose_function(display, values) if is_own else "LINEAR_EXACT"
        shares = _apply_window(values, centre=window[0], width=window[1], function=function)
        grey, used = _to_grey(shares), window
    elif grey is None:
        grey = scale_to_uint8(values, is_valid=~is_padding, counts=counts)
    if _is_low_bright(dataset) != invert:
        grey = (255 - grey).astype(np.uint8)
    is_shown = ~is_padding & np.isfinite(values)
    seen = values[is_shown] if is_shown.any() else np.zeros(1)
    return Shades(
        grey=np.where(is_shown, grey, 0).astype(np.uint8),
        window=used,
        presets=presets,
        value_range=(float(seen.min()), float(seen.max())),
        file_display=file_display,
    )


def _show_by_file(
    display: Dataset,
    values: NDArray[np.float64],
    *,
    is_little: bool,
    is_padding: NDArray[np.bool_],
) -> tuple[NDArray[np.uint8] | None, tuple[float, float] | None, FileDisplay]:
    """Display by the file's VOI table or else its first window; return levels, window and which.

    No levels if it has neither, or if they show nothing of this frame; then the range is shown.
    """
    kind: FileDisplay = "table"
    used = None
    if (table := _find_table(display, "VOILUTSequence")) is not None:
        shares = _look_up(values, table, is_little=is_little, in_shares=True)
    elif (used := _find_window(display)) is not None:
        kind, function = "window", _choose_function(display, values)
        shares = _apply_window(values, centre=used[0], width=used[1], function=function)
    else:
        return None, None, "range"
    grey = _to_grey(shares)
    if not is_padding.all() and np.ptp(grey[~is_padding]) == 0:
        return None, None, "range"
    return grey, used, kind


def _to_grey(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.round(np.clip(np.nan_to_num(shares), 0.0, 1.0) * 255).astype(np.uint8)


def _choose_function(display: Dataset, values: NDArray[np.float64]) -> str:
    """The file's VOI LUT function; LINEAR assumes integers and would distort fractions."""
    function = str(display.get("VOILUTFunction") or "LINEAR").upper()
    if function in ("SIGMOID", "LINEAR_EXACT"):
        return function
    finite = values[np.isfinite(values)]
    return "LINEAR" if np.array_equal(finite, np.round(finite)) else "LINEAR_EXACT"


@hush()
def _is_low_bright(dataset: Dataset) -> bool:
    is_inverse = str(dataset.get("PresentationLUTShape", "")) == "INVERSE"
    return is_inverse or dataset.PhotometricInterpretation == "MONOCHROME1"


@hush()
def _list_presets(display: Dataset) -> tuple[WindowPreset, ...]:
    """List every usable window in the file with its explanation (no patient information)."""
    try:
        centres, widths = (_as_list(display.get(k)) for k in ("WindowCenter", "WindowWidth"))
        names = [str(v) for v in _as_list(display.get("WindowCenterWidthExplanation"))]
        pairs = [(float(c), float(w)) for c, w in zip(centres, widths, strict=False)]  # type: ignore[arg-type]
    except _TAG_ERRORS:
        return ()
    names += [""] * (len(pairs) - len(names))
    return tuple(
        WindowPreset(name.strip()[:40], centre, width)
        for name, (centre, width) in zip(names, pairs, strict=False)
        if np.isfinite(centre) and np.isfinite(width) and width > 0
    )


def _as_list(value: object) -> list[object]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list) else [value]


@hush()
def find_number(tags: Dataset, keyword: str) -> float | None:
    """The first value of a numeric tag; None if it is absent or not a finite number."""
    try:
        value = tags.get(keyword)
        first = value[0] if isinstance(value, MultiValue) else value
        number = float(first)  # type: ignore[arg-type]
    except _TAG_ERRORS:
        return None
    return number if np.isfinite(number) else None


def _apply_modality(
    display: Dataset, stored: NDArray[np.generic], *, is_little: bool
) -> NDArray[np.float64]:
    """Stored values -> modality units; unchanged without table or rescale."""
    values: NDArray[np.float64] = stored.astype(np.float64)
    table = _find_table(display, "ModalityLUTSequence")
    if table is not None:
        return _look_up(values, table, is_little=is_little, in_shares=False)
    slope = find_number(display, "RescaleSlope") or 1.0  # a slope of 0 would erase the image
    return values * slope + (find_number(display, "RescaleIntercept") or 0.0)


@hush()
def _find_table(display: Dataset, keyword: str) -> Dataset | None:
    """The first lookup table of a sequence, if usable."""
    try:
        table = display.get(keyword)[0]
        is_usable = len(table.LUTDescriptor) == 3 and len(table.LUTData) > 1
    except _TAG_ERRORS:
        return None
    return table if is_usable else None


def _look_up(
    values: NDArray[np.float64], table: Dataset, *, is_little: bool, in_shares: bool
) -> NDArray[np.float64]:
    """Map values through a table of PS3.3 C.11.1.1 or C.11.2.1.1, either to its entries or to 0..1.

    pydicom 3.0.2 is not used: its apply_voi counts entries in their own data type, so a table
    of 4096 entries of 8 bits overflows.
    """
    n_entries, first, n_bits = (int(v) for v in table.LUTDescriptor)
    n_entries = n_entries or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # a signed number that was read as unsigned
    data = table.LUTData
    if isinstance(data, bytes):
        wide = "<u2" if is_little else ">u2"
        n_usable = len(data) // 2 * 2
        entries = (
            np.frombuffer(data[:n_usable], dtype=wide)
            if len(data) >= 2 * n_entries
            else np.frombuffer(data, dtype=np.uint8)
        )
    else:
        entries = np.asarray([int(v) for v in data])
    entries = entries[:n_entries]
    index = np.clip(np.round(np.nan_to_num(values)) - first, 0, len(entries) - 1)
    found: NDArray[np.float64] = entries[index.astype(np.intp)].astype(np.float64)
    if not in_shares:
        return found
    return found / (2.0**n_bits - 1 if 1 <= n_bits <= 16 else max(1.0, float(entries.max())))


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
    """The first window of the file, if usable."""
    centre, width = find_number(display, "WindowCenter"), find_number(display, "WindowWidth")
    return (centre, width) if centre is not None and width is not None and width > 0 else None


@hush()
def _collect_display_tags(dataset: Dataset, frame: int) -> Dataset:
    """Collect a frame's rescale and window, which enhanced objects keep in functional groups."""
    display = Dataset()
    sources = [dataset]
    for keyword, chosen in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", frame),
    ):
        for inner in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            try:
                sources += list(dataset[keyword].value[chosen][inner].value)
            except _TAG_ERRORS:
                continue
    for source in sources:
        for keyword in _DISPLAY_TAGS:
            try:
                if not source[keyword].is_empty:
                    display[keyword] = source[keyword]
            except _TAG_ERRORS:
                continue
    return display


def _find_padding(dataset: Dataset, stored: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Find padding pixels by PixelPaddingValue and its range limit."""
    kind = "Pixel" if stored.dtype.kind in "iu" else "FloatPixel"
    if stored.dtype == np.float64:
        kind = "DoubleFloatPixel"
    first = find_number(dataset, f"{kind}PaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = find_number(dataset, f"{kind}PaddingRangeLimit")
    limits = [first, first if last is None else last]
    if stored.dtype.kind == "i":  # signed values stored as unsigned
        top = 2 ** (8 * stored.dtype.itemsize)
        limits = [limit - top if limit >= top / 2 else limit for limit in limits]
    numbers = stored.astype(np.float64)
    return (numbers >= min(limits)) & (numbers <= max(limits))
