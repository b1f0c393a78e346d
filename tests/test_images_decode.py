"""Every format by hand, DICOM polarity against an independent reference, refusals with reasons."""

import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import PYDICOM_FILES, build_dicom, encode, ramp
from PIL import Image as PILImage

from core.errors import ImageError
from core.images import dicom_grey, intensity, quiet
from core.images.decode import decode, encode_jpeg, encode_png, load, thumbnail
from core.images.intensity import scale_to_uint8, stretch, tally


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_grey_8_bit_is_kept_exactly(kind: str) -> None:
    image = decode(encode(ramp(), kind), name="a")
    assert image.format == kind
    np.testing.assert_array_equal(image.pixels, np.repeat(ramp()[:, :, None], 3, axis=2))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_rgb_is_kept_exactly(
    kind: str, options: dict[str, object], rng: np.random.Generator
) -> None:
    array = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = encode(array, kind, **options)
    before = bytes(data)
    image = decode(data, name="a")
    np.testing.assert_array_equal(image.pixels, array)
    assert data == before
    assert not image.pixels.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_stretched_from_its_own_range(kind: str) -> None:
    image = decode(encode(ramp(np.uint16, 1000) + np.uint16(500), kind))
    assert image.bit_depth == 16
    assert (image.pixels.min(), image.pixels.max()) == (0, 255)
    assert image.pixels[4, 0, 0] == round(255 * int(ramp(np.uint16, 1000)[4, 0]) / 1000)


def test_float_tiff_with_a_hole_is_read() -> None:
    array = ramp(np.float32, 1)
    array[0, 0] = np.nan
    assert decode(encode(array, "TIFF")).pixels.max() == 255


def test_transparency_becomes_black_and_palettes_colour() -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (200, 100, 50, 255)
    rgba[2:] = (255, 255, 255, 0)
    pixels = decode(encode(rgba, "PNG")).pixels
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[3, 3].tolist() == [0, 0, 0]
    buffer = io.BytesIO()
    PILImage.fromarray(rgba[:, :, :3]).quantize(2).save(buffer, format="PNG")
    assert abs(decode(buffer.getvalue()).pixels[0, 0].astype(int) - [200, 100, 50]).max() <= 2


def test_exif_orientation_is_applied() -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to view
    array = np.zeros((4, 8, 3), dtype=np.uint8)
    array[:, :4] = 255
    pixels = decode(encode(array, "JPEG", exif=exif, quality=95)).pixels
    assert pixels.shape == (8, 4, 3)
    assert pixels[0].mean() > 200
    assert pixels[-1].mean() < 50


def test_cmyk_and_one_bit_are_read() -> None:
    buffer = io.BytesIO()
    PILImage.fromarray(np.repeat(ramp()[:, :, None], 3, axis=2)).convert("CMYK").save(
        buffer, format="JPEG"
    )
    assert decode(buffer.getvalue()).pixels.shape == (8, 8, 3)
    assert set(np.unique(decode(encode(ramp() > 99, "PNG")).pixels)) == {0, 255}


def test_frames_of_a_tiff() -> None:
    pages = [PILImage.fromarray(ramp()), PILImage.fromarray(ramp()[::-1].copy())]
    buffer = io.BytesIO()
    pages[0].save(buffer, format="TIFF", save_all=True, append_images=pages[1:])
    assert decode(buffer.getvalue()).n_frames == 2
    np.testing.assert_array_equal(decode(buffer.getvalue(), frame=1).pixels[:, :, 0], ramp()[::-1])
    with pytest.raises(ImageError, match="frame 2 was asked for; the file has frames 0 to 1"):
        decode(buffer.getvalue(), frame=2)


def test_refusals_have_their_code() -> None:
    png = encode(ramp(), "PNG")
    cases = {
        "image.empty": b"",
        "image.not_an_image": b"patient list\nname,age\n",
        "image.truncated": png[: len(png) // 2],
        "image.constant": encode(np.full((5, 5), 7, dtype=np.uint8), "PNG"),
        "image.too_large": _bomb(60000, 60000),
        "image.dicom_no_pixels": build_dicom(ramp())[:300],
    }
    for code, data in cases.items():
        with pytest.raises(ImageError) as caught:
            decode(data, name="scan.png")
        assert caught.value.code == code
        assert "Secret" not in str(caught.value)


def build_png_16(samples: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits per sample, (H, W, C), which Pillow cannot write in colour."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        crc = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return data


def build_tiff_16(samples: np.ndarray, photometric: int) -> bytes:
    """An uncompressed little-endian TIFF of 16 bits, grey (H, W) or colour (H, W, 3)."""
    height, width = samples.shape[:2]
    n = 1 if samples.ndim == 2 else samples.shape[2]
    end = 8 + 2 + 12 * 9 + 4
    fields = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, n, 16 if n == 1 else end),
        (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, end + 8), (277, 3, 1, n),
        (278, 4, 1, height), (279, 4, 1, samples.size * 2),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4)
    return head + struct.pack("<4H", 16, 16, 16, 16) + samples.astype("<u2").tobytes()


def build_tiff(
    samples: np.ndarray,
    *,
    order: str = "<",
    photometric: int | None = None,
    is_planar: bool = False,
    n_missing: int = 0,
) -> bytes:
    """An uncompressed TIFF of any samples, (H, W) or (H, W, C), in chunks or in planes."""
    height, width = samples.shape[:2]
    n = 1 if samples.ndim == 2 else samples.shape[2]
    stored = samples.astype(samples.dtype.newbyteorder(order))
    planes = [stored[:, :, c].tobytes() for c in range(n)] if is_planar else [stored.tobytes()]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    bits = samples.dtype.itemsize * 8
    shade = photometric if photometric is not None else (1 if n == 1 else 2)
    n_fields, extra = 11, b""
    end = 8 + 2 + 12 * n_fields + 4
    begin = end + 4 * n + 8 * len(planes)
    fields = [(256, [width]), (257, [height]), (258, [bits] * n), (259, [1]), (262, [shade])]
    starts = [begin + sum(map(len, planes[:i])) for i in range(len(planes))]
    fields += [(273, starts), (277, [n]), (278, [height]), (279, [len(p) for p in planes])]
    fields += [(284, [2 if is_planar else 1]), (339, [kind] * n)]
    directory = struct.pack(order + "H", n_fields)
    for tag, values in fields:
        is_long = tag in (256, 257, 273, 278, 279)
        packed = struct.pack(f"{order}{len(values)}{'I' if is_long else 'H'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(order + "I", end + len(extra)), extra + packed
        directory += struct.pack(order + "HHI", tag, 4 if is_long else 3, len(values))
        directory += packed.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    data = head + directory + bytes(4) + extra.ljust(begin - end, b"\0") + b"".join(planes)
    return data[: len(data) - n_missing]


def test_unsigned_32_bit_and_signed_8_bit_tiffs_are_read_as_they_are() -> None:
    deep = ramp(np.float64, 4294967295.0).astype(np.uint32)
    plain = decode(build_tiff(ramp(np.uint16, 65535))).pixels
    assert np.abs(decode(build_tiff(deep)).pixels.astype(int) - plain).max() <= 1
    signed = (ramp(np.int16, 255) - 128).astype(np.int8)
    for order in "<>":
        shown = decode(build_tiff(signed, order=order)).pixels[:, :, 0]
        np.testing.assert_array_equal(shown, ramp(np.int16, 255))


@pytest.mark.parametrize("order", ["<", ">"])
def test_kinds_of_tiff_that_pillow_cuts_wrong_are_refused(order: str) -> None:
    colour = np.stack([ramp(np.uint16, 60000), ramp(np.uint16, 30000), ramp(np.uint16, 9)], 2)
    with pytest.raises(ImageError, match="kind of TIFF that cannot be read here") as caught:
        decode(build_tiff(colour, order=order, is_planar=True))
    assert caught.value.code == "image.tiff_kind"
    eight = (colour // 256).astype(np.uint8)
    np.testing.assert_array_equal(
        decode(build_tiff(eight, order=order, is_planar=True)).pixels, eight
    )


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (ramp(np.uint16, 4000), {"order": ">", "photometric": 0}),
        (ramp(np.float64, 1), {}),
        (ramp(np.uint32, 4000), {"order": ">"}),
    ],
    ids=["big-endian white is zero", "float64", "big-endian uint32"],
)
def test_sound_tiffs_that_cannot_be_read_are_not_called_damaged(
    samples: np.ndarray, options: dict[str, object]
) -> None:
    with pytest.raises(ImageError, match="kind of TIFF") as caught:
        decode(build_tiff(samples, **options))
    assert caught.value.code == "image.tiff_kind"
    with pytest.raises(ImageError) as caught:
        decode(build_tiff(samples, n_missing=9, **options))
    assert caught.value.code == "image.truncated"


@pytest.mark.parametrize("build", [build_png_16, build_tiff_16])
def test_12_bit_colour_in_16_bits_keeps_its_contrast(build: object) -> None:
    colour = np.zeros((2, 2, 3), dtype=np.uint16)
    colour[0, 0], colour[1, 1] = (4095, 2048, 0), (0, 16, 1024)
    pixels = decode(build(colour, 2)).pixels
    assert pixels[0, 0].tolist() == [255, 128, 0]  # x / 4095 * 255
    assert pixels[1, 1].tolist() == [0, 1, 64]
    assert pixels[0, 1].tolist() == [0, 0, 0]


def test_full_16_bit_colour_and_alpha_are_scaled_by_65535() -> None:
    rgba = np.full((2, 2, 4), 65535, dtype=np.uint16)
    rgba[0, 0] = (65535, 32768, 0, 32768)
    assert decode(build_png_16(rgba, 6)).pixels[0, 0].tolist() == [128, 64, 0]


def test_16_bit_grey_with_alpha_keeps_its_low_byte() -> None:
    grey_alpha = np.array([[[1000, 65535], [1100, 65535]], [[1200, 65535], [1, 0]]], np.uint16)
    pixels = decode(build_png_16(grey_alpha, 4)).pixels[:, :, 0]
    assert pixels.tolist() == [[0, 128], [255, 0]]


def test_white_is_zero_of_16_bits_is_inverted() -> None:
    stored = ramp(np.uint16, 4000)
    black_is_zero, white_is_zero = (decode(build_tiff_16(stored, p)).pixels for p in (1, 0))
    assert black_is_zero[0, 0, 0] == 0
    np.testing.assert_array_equal(white_is_zero, 255 - black_is_zero)


def test_one_hot_pixel_does_not_darken_the_rest() -> None:
    stored = np.tile(np.arange(100, dtype=np.uint16) + 1000, (100, 1))
    stored[0, 0] = 65535
    pixels = decode(build_tiff_16(stored, 1)).pixels[:, :, 0]
    assert pixels[0, 0] == 255
    assert pixels[5, 99] == 255
    assert pixels[5, 0] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, ">u2"])
@pytest.mark.parametrize("n", [1, 7, 999, 1000, 1001, 2001, 40_000])
def test_counted_values_are_stretched_as_the_pixels_themselves(
    dtype: str, n: int, rng: np.random.Generator
) -> None:
    limits = np.iinfo(dtype)
    spread = rng.normal(0, (limits.max - limits.min) / 8, n) + (limits.max + limits.min) / 2
    values = np.clip(spread, limits.min, limits.max).astype(dtype).reshape(n, 1)
    is_valid = rng.random((n, 1)) < 0.9
    for mask in (None, is_valid):
        by_pixel = scale_to_uint8(values.astype(np.float64), is_valid=mask)
        np.testing.assert_array_equal(stretch(values, is_valid=mask), by_pixel)
    assert tally(values.astype(np.float64)) is None


def test_a_deep_picture_takes_a_few_bytes_a_pixel() -> None:
    stored = np.zeros((2000, 2000), np.uint16)
    stored[:64] = np.arange(2000)
    for data in (build_dicom(stored, WindowCenter=99, WindowWidth=400), build_tiff_16(stored, 1)):
        tracemalloc.start()
        decode(data)
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 * stored.size, peak / stored.size  # was 40 with the image in float64


def test_only_the_libraries_work_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image is scaled while others are being decoded."""
    is_free: list[bool] = []
    real = intensity.tally

    def try_lock(*arguments: object, **options: object) -> object:
        with ThreadPoolExecutor(1) as pool:
            is_free.append(pool.submit(quiet._LOCK.acquire, blocking=False).result())
            if is_free[-1]:
                pool.submit(quiet._LOCK.release).result()
        return real(*arguments, **options)

    for module in (intensity, dicom_grey):
        monkeypatch.setattr(module, "tally", try_lock)
    decode(build_dicom(ramp(np.uint16, 4000)))
    decode(build_tiff_16(ramp(np.uint16, 4000), 1))
    assert is_free == [True, True]


@pytest.mark.parametrize("data", [b"BMI and age\n1,2,3\n", b"RIFF\x24\0\0\0WAVEfmt " + bytes(40)])
def test_short_signatures_are_looked_at_twice(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == "image.not_an_image"


def test_a_damaged_exif_block_does_not_refuse_the_image() -> None:
    broken = b"Exif\0\0II*\0\xff\xff\xff\xff"
    np.testing.assert_array_equal(
        decode(encode(ramp(), "PNG", exif=broken)).pixels[:, :, 0], ramp()
    )


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims far more than it contains."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000))):
        crc = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"<html><body>", "a web page"),
        ("Größe: 3 cm".encode(), "text"),
        (bytes([1, 0, 250, 255] * 9), "of no known kind"),
    ],
)
def test_what_came_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode(data)


def test_damage_anywhere_gives_an_image_or_an_image_error() -> None:
    rng = np.random.default_rng(7)
    rgb = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    jpegs = (PYDICOM_FILES / "test_files").glob("JPEG2000*.dcm")
    samples = [
        *(encode(rgb, kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")),
        build_dicom(ramp(np.uint16, 4000), WindowCenter=100, WindowWidth=500),
        *(p.read_bytes() for p in sorted(jpegs)[:2]),
    ]
    n_refused = 0
    for data in samples:
        for _ in range(25):
            broken = bytearray(data)
            for position in rng.integers(0, len(data), 6):
                broken[position] = rng.integers(0, 256)
            for piece in (bytes(broken), data[: int(rng.integers(1, len(data)))]):
                try:
                    decode(piece)
                except ImageError:
                    n_refused += 1
    assert n_refused > 100


def test_load_says_why_a_path_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(encode(ramp(), "PNG"))
    assert load(tmp_path / "a.dat").name == "a.dat"
    for path in (tmp_path / "absent.png", tmp_path, Path("a\0b"), Path("/dev/zero")):
        with pytest.raises(ImageError, match="cannot be read") as caught:
            load(path)
        assert caught.value.code == "image.missing"


def test_thumbnails_shrink_and_never_enlarge(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (300, 600, 3), dtype=np.uint8)
    assert thumbnail(pixels).shape == (128, 256, 3)
    assert thumbnail(pixels[:10, :20]).shape == (10, 20, 3)
    np.testing.assert_array_equal(decode(encode_png(pixels)).pixels, pixels)
    assert decode(encode_jpeg(pixels)).format == "JPEG"


def _build_tiff(*, orientation: tuple[int, bytes] | None = None, big: str = "") -> bytes:
    """A TIFF of 2 x 3 grey pixels: classic or BigTIFF, with orientation of any type."""
    pixels = bytes([10, 20, 30, 40, 50, 250])
    order = big or "<"
    word = "Q" if big else "I"
    entries = [(256, 3, 3), (257, 3, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    head = b"II" if order == "<" else b"MM"
    size = 20 if big else 12
    n_entries = len(entries) + 3 + bool(orientation)
    start = 16 if big else 8
    n_head = 8 if big else 2
    at = start + n_head + n_entries * size + (8 if big else 4)
    entries += [(273, 4, at), (278, 3, 2), (279, 4, len(pixels))]
    rows = []
    for tag, kind, value in entries:
        body = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", value)
        rows.append((tag, kind, body))
    if orientation:
        rows.append((274, *orientation))
    directory = b"".join(
        struct.pack(f"{order}HH{word}", tag, kind, 1) + body.ljust(8 if big else 4, b"\0")
        for tag, kind, body in sorted(rows)
    )
    version = struct.pack(f"{order}HHH", 43, 8, 0) if big else struct.pack(f"{order}H", 42)
    count = struct.pack(f"{order}{'Q' if big else 'H'}", n_entries)
    return (
        head + version + struct.pack(f"{order}{word}", start) + count + directory
        + struct.pack(f"{order}{word}", 0) + pixels
    )  # fmt: skip


def test_a_bigtiff_is_read() -> None:
    classic, big = decode(_build_tiff()), decode(_build_tiff(big="<"))
    assert classic.pixels[:, :, 0].tolist() == [[10, 20, 30], [40, 50, 250]]
    np.testing.assert_array_equal(big.pixels, classic.pixels)
    assert big.format == "TIFF"
    saved = decode(encode(ramp(), "TIFF", big_tiff=True, compression="tiff_lzw"))
    np.testing.assert_array_equal(saved.pixels[:, :, 0], ramp())


def test_a_bigtiff_that_cannot_be_read_is_refused_in_words() -> None:
    big = _build_tiff(big="<")
    wide = big.replace(struct.pack("<HHQI", 256, 3, 1, 3), struct.pack("<HHQI", 256, 4, 1, 10**6))
    wide = wide.replace(struct.pack("<HHQI", 257, 3, 1, 2), struct.pack("<HHQI", 257, 4, 1, 10**6))
    for data, code in (
        (_build_tiff(big=">"), "image.tiff_kind"),
        (big[:40], "image.truncated"),
        (big[:-3], "image.truncated"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 60, "image.truncated"),
        (wide, "image.too_large"),
    ):
        with pytest.raises(ImageError) as caught:
            decode(data)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (1, b"\x06"),  # BYTE
        (3, b"\x06\0"),  # SHORT, as the standard has it
        (4, b"\x06\0\0\0"),  # LONG
        (6, b"\x06"),  # SBYTE
        (7, b"\x06"),  # UNDEFINED
        (2, b"6"),  # ASCII
    ],
)
def test_orientation_of_any_type_is_applied(kind: int, value: bytes) -> None:
    upright = [[40, 10], [50, 20], [250, 30]]
    tiff = _build_tiff(orientation=(kind, value))
    assert decode(tiff).pixels[:, :, 0].tolist() == upright
    picture = PILImage.fromarray(np.array([[10, 20, 30], [40, 50, 250]], np.uint8))
    count = struct.pack("<H", 1)
    entry = struct.pack("<HHI", 274, kind, 1) + value.ljust(4, b"\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + count + entry + b"\0\0\0\0"
    for kind_of_file, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {})):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, kind_of_file, exif=exif, **options)
        shown = decode(buffer.getvalue()).pixels[:, :, 0].astype(int)
        assert shown.shape == (3, 2), kind_of_file
        if kind_of_file != "JPEG":
            assert shown.tolist() == upright


@pytest.mark.parametrize("value", [b"\0", b"\x09", b"\xff"])
def test_an_orientation_out_of_range_is_none(value: bytes) -> None:
    image = decode(_build_tiff(orientation=(1, value)))
    assert image.pixels[:, :, 0].tolist() == [[10, 20, 30], [40, 50, 250]]


def test_a_file_that_would_fill_the_memory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "disc.iso"
    with path.open("wb") as handle:
        handle.truncate(5 << 30)  # takes no room on the disk
    with pytest.raises(ImageError, match="at most 2 GiB are read") as caught:
        load(path)
    assert caught.value.code == "image.too_large"


def test_every_single_bit_flip_of_an_animation_is_shown_or_refused() -> None:
    first = PILImage.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    second = PILImage.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)[::-1] * 3).convert("P")
    buffer = io.BytesIO()
    frames = [first.quantize(4), second.quantize(4)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    sound = buffer.getvalue()
    assert len(sound) < 250
    n_refused = 0
    for place in range(8 * len(sound)):
        broken = bytearray(sound)
        broken[place // 8] ^= 1 << place % 8
        for frame in (0, 1):
            try:
                decode(bytes(broken), frame=frame)
            except ImageError:
                n_refused += 1
    assert n_refused > 100
