"""Overlay graphics of a DICOM file: found, placed, said, and never read."""

import io

import numpy as np
import pydicom
from pictures import PYDICOM_FILES, build_dicom, ramp
from pydicom.pixels import pack_bits

from core.images.decode import decode
from core.images.overlays import draw_overlay

SHAPE = (12, 20)
STORED = np.linspace(0, 255, 240).reshape(SHAPE).astype(np.uint8)


def _add(plane: np.ndarray, *, group: int = 0x6000, **extra: object) -> dict[str, object]:
    """Tags of one overlay, for ``build``."""
    return {"group": group, "plane": plane, **extra}


def build(stored: np.ndarray, *overlays: dict[str, object], **tags: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(build_dicom(stored, **tags)))
    for overlay in overlays:
        group, plane = overlay["group"], overlay["plane"]
        rows, columns = plane.shape[-2:]
        dataset.add_new((group, 0x0010), "US", rows)
        dataset.add_new((group, 0x0011), "US", columns)
        dataset.add_new((group, 0x0040), "CS", "G")
        dataset.add_new((group, 0x0050), "SS", overlay.get("origin", [1, 1]))
        dataset.add_new((group, 0x0100), "US", 1)
        dataset.add_new((group, 0x0102), "US", overlay.get("bit", 0))
        if plane.ndim == 3:
            dataset.add_new((group, 0x0015), "IS", plane.shape[0])
            dataset.add_new((group, 0x0051), "US", overlay.get("first", 1))
        if "bit" not in overlay:
            dataset.add_new((group, 0x3000), "OW", pack_bits(plane.astype(np.uint8).reshape(-1)))
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _plane(*cells: tuple[int, int], shape: tuple[int, int] = SHAPE) -> np.ndarray:
    plane = np.zeros(shape, dtype=bool)
    for cell in cells:
        plane[cell] = True
    return plane


def _say(data: bytes) -> list[tuple[str, object]]:
    found = decode(data).notices
    return [(n.code, n.params["n"]) for n in found if n.code.startswith("image.overlays")]


def test_overlays_are_counted_joined_and_not_read() -> None:
    first, second = _plane((0, 0), (3, 7)), _plane((11, 19))
    data = build(STORED, _add(first), _add(second, group=0x6002), _add(_plane(), group=0x6004))
    image = decode(data)
    assert image.overlay is not None
    np.testing.assert_array_equal(image.overlay, first | second)
    assert _say(data) == [("image.overlays", 2)]  # the third draws nothing
    np.testing.assert_array_equal(image.pixels, decode(build_dicom(STORED)).pixels)
    assert decode(build_dicom(STORED)).overlay is None


def test_an_overlay_is_placed_by_its_origin() -> None:
    small = _plane((0, 0), (1, 2), shape=(2, 3))
    inside = decode(build(STORED, _add(small, origin=[5, 9]))).overlay
    np.testing.assert_array_equal(inside, _plane((4, 8), (5, 10)))
    cut = decode(build(STORED, _add(small, origin=[0, -1]))).overlay
    np.testing.assert_array_equal(cut, _plane((0, 0)))
    data = build(STORED, _add(small, origin=[500, 1]))
    assert decode(data).overlay is None
    assert _say(data) == [("image.overlays_hidden", 1)]


def test_an_overlay_in_the_pixel_cells_unused_bits_is_found() -> None:
    values = (STORED.astype(np.uint16)) * 16
    plane = _plane((2, 2), (9, 18))
    cells = values | (plane.astype(np.uint16) << 13)
    twelve = {"BitsStored": 12, "HighBit": 11}
    image = decode(build(cells, _add(plane, bit=13), **twelve))
    np.testing.assert_array_equal(image.overlay, plane)
    np.testing.assert_array_equal(image.pixels, decode(build_dicom(values, **twelve)).pixels)
    assert decode(build(cells, _add(plane, bit=5), **twelve)).overlay is None  # the value's own bit


def test_a_frame_shows_its_own_overlay() -> None:
    frames = np.stack([STORED, STORED[::-1], STORED])
    planes = np.stack([_plane((1, 1)), _plane((2, 2))])
    data = build(frames, _add(planes, first=2))
    shown = [decode(data, frame=f).overlay for f in range(3)]
    assert shown[0] is None
    np.testing.assert_array_equal(shown[1], planes[0])
    np.testing.assert_array_equal(shown[2], planes[1])
    alone = build(frames, _add(_plane((4, 4))))  # one plane, of every frame
    np.testing.assert_array_equal(decode(alone, frame=2).overlay, _plane((4, 4)))


def test_an_overlay_follows_the_true_proportion_of_the_pixels() -> None:
    plane = np.zeros(SHAPE, dtype=bool)
    plane[6:, 10:] = True
    image = decode(build(STORED, _add(plane), PixelSpacing=[0.4, 0.2]))
    assert image.pixels.shape == (24, 20, 3)
    np.testing.assert_array_equal(image.overlay, plane.repeat(2, axis=0))


def test_a_broken_overlay_does_not_cost_the_image() -> None:
    short = build(STORED, {"group": 0x6000, "plane": _plane((0, 0), shape=(2, 2))})
    at = short.index(b"\x00\x60\x10\x00US")
    grown = short[: at + 8] + b"\xff\xff" + short[at + 10 :]
    assert decode(grown).overlay is None
    assert _say(grown) == [("image.overlays_hidden", 1)]


def test_pydicoms_own_overlay_file() -> None:
    data = (PYDICOM_FILES / "test_files" / "examples_overlay.dcm").read_bytes()
    image = decode(data)
    expected = pydicom.dcmread(io.BytesIO(data)).overlay_array(0x6000)
    np.testing.assert_array_equal(image.overlay, expected.astype(bool))
    assert _say(data) == [("image.overlays", 1)]


def test_graphics_are_drawn_on_a_copy() -> None:
    pixels = np.repeat(ramp()[:, :, None], 3, axis=2)
    mask = np.zeros((8, 8), dtype=bool)
    mask[2, 3] = True
    before = pixels.copy()
    drawn = draw_overlay(pixels, mask)
    assert drawn[2, 3].tolist() == [255, 214, 0]
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(drawn[~mask], pixels[~mask])
