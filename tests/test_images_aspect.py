"""Pixels that are not square: which statement counts, and the picture in its true proportion."""

import io
import struct
import zlib

import numpy as np
import pytest
from pictures import build_dicom, encode
from PIL import Image as PILImage
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from core.images import aspect
from core.images.decode import Image, decode

CIRCLE = 40  # diameter as true


def draw_circle(ratio: float) -> np.ndarray:
    """A disc as it lies in an image whose pixels are ``ratio`` times as high as wide."""
    rows = round(60 / ratio)
    y, x = np.mgrid[:rows, :60]
    inside = ((y + 0.5) * ratio - 30) ** 2 + (x + 0.5 - 30) ** 2 < (CIRCLE / 2) ** 2
    return np.where(inside, 200, 20).astype(np.uint8)


def measure(image: Image) -> tuple[int, int]:
    """Height and width of the disc."""
    bright = image.pixels[:, :, 0] > 110
    return int(bright.any(axis=1).sum()), int(bright.any(axis=0).sum())


def list_codes(image: Image) -> list[str]:
    return [notice.code for notice in image.notices if notice.code.startswith("image.aspect")]


def _region(dy: float, dx: float, *, units: int = 3, spatial: int = 1) -> Dataset:
    region = Dataset()
    region.RegionSpatialFormat = spatial
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = units
    region.PhysicalDeltaX, region.PhysicalDeltaY = dx, dy
    return region


def _measures(pair: list[float]) -> Sequence:
    measures, group = Dataset(), Dataset()
    measures.PixelSpacing = pair
    group.PixelMeasuresSequence = Sequence([measures])
    return Sequence([group])


STATEMENTS = {
    "PixelSpacing": {"PixelSpacing": [0.3, 0.2]},
    "ImagerPixelSpacing": {"ImagerPixelSpacing": [0.3, 0.2]},
    "NominalScannedPixelSpacing": {"NominalScannedPixelSpacing": [0.3, 0.2]},
    "PixelAspectRatio": {"PixelAspectRatio": [3, 2]},
    "SequenceOfUltrasoundRegions": {
        "SequenceOfUltrasoundRegions": Sequence(
            [_region(0.03, 0.02), _region(-0.06, 0.04), _region(0.1, 0.4, units=4, spatial=2)]
        )
    },
    "of all frames": {"SharedFunctionalGroupsSequence": _measures([0.3, 0.2])},
    "of one frame": {
        "PerFrameFunctionalGroupsSequence": _measures([0.3, 0.2]),
        "SharedFunctionalGroupsSequence": _measures([0.2, 0.2]),
    },
    "spacing before ratio": {"PixelSpacing": [0.3, 0.2], "PixelAspectRatio": [3, 2]},
    "region before a filler": {
        "SequenceOfUltrasoundRegions": Sequence([_region(0.03, 0.02)]),
        "PixelAspectRatio": [3, 2],
    },
    "nonsense is passed over": {"PixelSpacing": [0, 0], "PixelAspectRatio": [3, 2]},
}


@pytest.mark.parametrize("tags", STATEMENTS.values(), ids=STATEMENTS)
def test_a_circle_is_round_whatever_states_the_pixels_shape(tags: dict[str, object]) -> None:
    squashed = draw_circle(1.5)
    plain = decode(build_dicom(squashed))
    assert plain.pixels.shape == (40, 60, 3)
    assert measure(plain)[1] == CIRCLE > 1.4 * measure(plain)[0]
    image = decode(build_dicom(squashed, **tags))
    assert image.pixels.shape == (60, 60, 3)
    height, width = measure(image)
    assert abs(height - CIRCLE) <= 1
    assert abs(width - CIRCLE) <= 1
    assert "image.aspect" in list_codes(image)
    assert image.is_grey


def test_wide_pixels_are_widened() -> None:
    tall = draw_circle(0.5)  # 120 x 60
    image = decode(build_dicom(tall, PixelAspectRatio=[1, 2]))
    assert image.pixels.shape == (120, 120, 3)
    assert abs(measure(image)[0] - measure(image)[1]) <= 2
    assert image.notices[-1].params["old"] == "60 x 120"
    assert image.notices[-1].params["new"] == "120 x 120"


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"PixelSpacing": [0.2, 0.2]},
        {"PixelSpacing": [0.2001, 0.2]},  # within the tolerance
        {"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [1, 1]},
        {"SequenceOfUltrasoundRegions": Sequence([_region(0.1, 0.4, units=4)])},  # seconds
        {"SequenceOfUltrasoundRegions": Sequence([_region(0.1, 0.1), _region(0.3, 0.2)])},
        {"PixelSpacing": 0.2},
        {"PixelAspectRatio": [3, 0]},
    ],
)
def test_square_or_unstated_pixels_stay_as_they_are(tags: dict[str, object]) -> None:
    squashed = draw_circle(1.5)
    image = decode(build_dicom(squashed, **tags))
    assert list_codes(image) == []
    np.testing.assert_array_equal(image.pixels, decode(build_dicom(squashed)).pixels)


def test_impossible_and_contradicting_statements_are_said() -> None:
    squashed = draw_circle(1.5)
    image = decode(build_dicom(squashed, PixelSpacing=[100, 0.2]))
    assert (list_codes(image), image.pixels.shape) == (["image.aspect_ignored"], (40, 60, 3))
    both = decode(build_dicom(squashed, PixelSpacing=[0.3, 0.2], ImagerPixelSpacing=[0.2, 0.2]))
    assert list_codes(both) == ["image.aspect_conflict", "image.aspect"]
    assert both.pixels.shape == (60, 60, 3)


def test_a_measured_spacing_outweighs_the_ratio_and_a_filler_is_no_contradiction() -> None:
    squashed = draw_circle(1.5)
    filled = decode(build_dicom(squashed, PixelSpacing=[0.3, 0.2], PixelAspectRatio=[1, 1]))
    assert (list_codes(filled), filled.pixels.shape) == (["image.aspect"], (60, 60, 3))
    square = decode(build_dicom(squashed, PixelSpacing=[0.2, 0.2], PixelAspectRatio=[3, 2]))
    assert (list_codes(square), square.pixels.shape) == (["image.aspect_conflict"], (40, 60, 3))
    frame = {
        "PerFrameFunctionalGroupsSequence": _measures([0.3, 0.2]),
        "SharedFunctionalGroupsSequence": _measures([0.2, 0.2]),
    }
    assert list_codes(decode(build_dicom(squashed, **frame))) == ["image.aspect"]


def test_the_pixel_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aspect, "MAX_PIXELS", 3000)
    image = decode(build_dicom(draw_circle(1.5), PixelAspectRatio=[3, 2]))
    assert image.pixels.shape == (40, 40, 3)  # narrowed, not heightened
    assert abs(measure(image)[0] - measure(image)[1]) <= 2


def _add_phys(png: bytes, across: int, down: int, unit: int) -> bytes:
    body = b"pHYs" + struct.pack(">IIB", across, down, unit)
    chunk = struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def _set_jfif(jpeg: bytes, unit: int, across: int, down: int) -> bytes:
    at = jpeg.index(b"JFIF\0") + 7
    return jpeg[:at] + struct.pack(">BHH", unit, across, down) + jpeg[at + 5 :]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            encode(draw_circle(1.5), "TIFF", x_resolution=204.0, y_resolution=136.0), id="TIFF"
        ),
        pytest.param(
            encode(draw_circle(1.5), "TIFF", tiffinfo={282: 3.0, 283: 2.0, 296: 1}),
            id="TIFF without a unit",
        ),
        pytest.param(_add_phys(encode(draw_circle(1.5), "PNG"), 3, 2, 0), id="PNG ratio"),
        pytest.param(_add_phys(encode(draw_circle(1.5), "PNG"), 3000, 2000, 1), id="PNG metres"),
        pytest.param(_set_jfif(encode(draw_circle(1.5), "JPEG", quality=95), 0, 3, 2), id="JFIF"),
        pytest.param(
            encode(draw_circle(1.5), "JPEG", quality=95, dpi=(300, 200)), id="JFIF inches"
        ),
        pytest.param(encode(draw_circle(1.5), "BMP", dpi=(300, 200)), id="BMP"),
    ],
)
def test_a_pictures_unequal_density_counts(data: bytes) -> None:
    image = decode(data)
    assert image.pixels.shape == (60, 60, 3)
    assert abs(measure(image)[0] - measure(image)[1]) <= 2
    assert list_codes(image) == ["image.aspect"]


def test_density_is_of_the_image_before_it_is_turned() -> None:
    turned = np.rot90(draw_circle(1.5))  # 60 x 40, pixels wide after a turn back
    exif = PILImage.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    # stored lying down: across is dense in what becomes the height
    PILImage.fromarray(np.ascontiguousarray(turned)).save(
        buffer, "JPEG", quality=95, exif=exif, dpi=(200, 300)
    )
    image = decode(buffer.getvalue())
    assert image.pixels.shape == (60, 60, 3)
    assert abs(measure(image)[0] - measure(image)[1]) <= 2


@pytest.mark.parametrize(
    "data",
    [
        _set_jfif(encode(draw_circle(1.5), "JPEG", quality=95), 0, 1, 1),
        _set_jfif(encode(draw_circle(1.5), "JPEG", quality=95), 0, 0, 0),
        encode(draw_circle(1.5), "PNG", dpi=(300, 300)),
    ],
)
def test_equal_or_empty_densities_say_nothing(data: bytes) -> None:
    image = decode(data)
    assert (image.pixels.shape, image.notices) == ((40, 60, 3), ())
