"""Every format by hand, DICOM polarity against an independent reference, refusals with reasons."""

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as PILImage
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from core.errors import ImageError
from core.image_io import (
    decode,
    dicom_grey,
    encode_jpeg,
    encode_png,
    load,
    quiet,
    scaling,
    thumbnail,
)
from core.image_io.codestream import find_codestream_size
from core.image_io.dicom_grey import _apply_window
from core.image_io.scaling import scale_to_uint8, stretch, tally

PYDICOM_FILES = Path(pydicom.__file__).parent / "data"


def encode(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


def ramp(dtype: type = np.uint8, top: int = 255) -> np.ndarray:
    return np.linspace(0, top, 64).reshape(8, 8).astype(dtype)


def build_dicom(stored: np.ndarray, **tags: object) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.PatientName = "Secret^Patient"
    frames = stored.ndim == 3 and tags.get("PhotometricInterpretation") != "RGB"
    dataset.Rows, dataset.Columns = stored.shape[1:3] if frames else stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 or frames else 3
    if frames:
        dataset.NumberOfFrames = stored.shape[0]
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


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


def test_a_dicom_by_hand() -> None:
    stored = np.array([[0, 100], [200, 300]], dtype=np.uint16)
    image = decode(build_dicom(stored, WindowCenter=150.5, WindowWidth=201), name="x")
    # linear window: (x - 150) / 200 + 0.5
    assert image.pixels[:, :, 0].tolist() == [[0, 64], [191, 255]]
    assert (image.format, image.bit_depth, image.window) == ("DICOM", 16, (150.5, 201.0))
    inverted = decode(
        build_dicom(
            stored, WindowCenter=150.5, WindowWidth=201, PhotometricInterpretation="MONOCHROME1"
        )
    )
    np.testing.assert_array_equal(inverted.pixels, 255 - image.pixels)
    chosen = decode(build_dicom(stored), window=(50.5, 101.0))
    assert chosen.pixels[:, :, 0].tolist() == [[0, 252], [255, 255]]  # (x - 50.5) / 101 + 0.5


def test_rescale_applies_before_the_window() -> None:
    stored = np.array([[0, 1000], [1040, 2000]], dtype=np.uint16)
    data = build_dicom(
        stored, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=40, WindowWidth=400
    )
    pixels = decode(data).pixels[:, :, 0]
    assert pixels[0, 0] == 0
    assert 95 < pixels[0, 1] < 110
    assert pixels[1, 0] in (127, 128)
    assert pixels[1, 1] == 255


def test_padding_is_black_and_out_of_the_range() -> None:
    stored = np.array([[-2000, 0], [50, 100]], dtype=np.int16)
    for photometric, first in (("MONOCHROME2", 0), ("MONOCHROME1", 255)):
        data = build_dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        pixels = decode(data).pixels[:, :, 0]
        assert (pixels[0, 0], pixels[0, 1]) == (0, first)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_equal_pydicoms(function: str) -> None:
    values = np.linspace(-100, 400, 50)
    reference = Dataset()
    reference.WindowCenter, reference.WindowWidth = 120, 180
    reference.VOILUTFunction = function
    reference.PhotometricInterpretation, reference.BitsStored = "MONOCHROME2", 16
    reference.PixelRepresentation = 0
    theirs = apply_windowing(values.reshape(5, 10), reference).reshape(-1) / (2**16 - 1)
    ours = _apply_window(values, centre=120.0, width=180.0, function=function)
    np.testing.assert_allclose(np.clip(ours, 0, 1), theirs, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_the_files_own_preset_keeps_its_function(function: str) -> None:
    stored = ramp(np.uint16, 400)
    data = build_dicom(
        stored, WindowCenter=[150, 90], WindowWidth=[200, 60], VOILUTFunction=function
    )
    as_it_is = decode(data)
    np.testing.assert_array_equal(decode(data, window=(150.0, 200.0)).pixels, as_it_is.pixels)
    second = _apply_window(stored.astype(float), centre=90.0, width=60.0, function=function)
    np.testing.assert_array_equal(
        decode(data, window=(90.0, 60.0)).pixels[:, :, 0],
        np.round(np.clip(second, 0, 1) * 255),
    )
    free = _apply_window(stored.astype(float), centre=150.0, width=201.0, function="LINEAR_EXACT")
    np.testing.assert_array_equal(
        decode(data, window=(150.0, 201.0)).pixels[:, :, 0], np.round(np.clip(free, 0, 1) * 255)
    )


@pytest.mark.parametrize("is_signed", [False, True])
def test_bits_that_lie_high_are_moved_down(is_signed: bool) -> None:
    values = ramp(np.int16 if is_signed else np.uint16, 3000) - (1500 if is_signed else 0)
    tags = {"WindowCenter": 700, "WindowWidth": 900, "BitsStored": 12}
    low = build_dicom(values, **tags, HighBit=11)
    high = build_dicom(values * 16 + 5, **tags, HighBit=15)  # what lies below is no image
    np.testing.assert_array_equal(decode(high).pixels, decode(low).pixels)
    colour = np.stack([ramp(np.uint16, 4095)] * 3, axis=2)
    rgb = {"PhotometricInterpretation": "RGB", "BitsStored": 12}
    np.testing.assert_array_equal(
        decode(build_dicom(colour * 16, **rgb, HighBit=15)).pixels,
        decode(build_dicom(colour, **rgb, HighBit=11)).pixels,
    )
    np.testing.assert_array_equal(  # bit 16 of 16 does not exist
        decode(build_dicom(colour, **rgb, HighBit=16)).pixels,
        decode(build_dicom(colour, **rgb, HighBit=11)).pixels,
    )


def test_frames_of_a_dicom_and_its_colour(rng: np.random.Generator) -> None:
    stored = rng.integers(0, 255, (3, 6, 5), dtype=np.uint8)
    data = build_dicom(stored, WindowCenter=128, WindowWidth=256)
    image = decode(data, frame=2)
    assert image.n_frames == 3
    assert np.abs(image.pixels[:, :, 0].astype(int) - stored[2]).max() <= 1
    colour = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        decode(build_dicom(colour, PhotometricInterpretation="RGB")).pixels, colour
    )


def test_every_pydicom_file_is_decoded_or_refused_with_a_reason() -> None:
    """Polarity is checked against plain stored values, with pydicom's rescale."""
    files = [p for p in sorted(PYDICOM_FILES.rglob("*")) if p.is_file() and p.suffix == ".dcm"]
    n_decoded, refused = 0, dict[str, str]()
    for path in files:
        data = path.read_bytes()
        try:
            image = decode(data, name=path.name)
        except ImageError as err:
            refused[path.name] = err.code
            continue
        n_decoded += 1
        _check_polarity(path, image.pixels)
    assert n_decoded >= 70
    pixel_refusals = {n: c for n, c in refused.items() if c != "image.dicom_no_pixels"}
    assert pixel_refusals == {
        # 12-bit JPEG with marker errors; Pillow and libjpeg both refuse it
        "JPEG-lossy.dcm": "image.dicom_unsupported",
        "JPEG2000-embedded-sequence-delimiter.dcm": "image.dicom_unsupported",
        "MR_truncated.dcm": "image.truncated",
        "badVR.dcm": "image.dicom_unsupported",  # NumberOfFrames is "1A"
        "meta_missing_tsyntax.dcm": "image.empty",  # no Rows and Columns
        "nested_priv_SQ.dcm": "image.empty",
        "no_meta.dcm": "image.not_an_image",
    }


def _check_polarity(path: Path, pixels: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd files on purpose
        dataset = pydicom.dcmread(path, force=True)
        photometric = str(dataset.get("PhotometricInterpretation"))
        is_grey = photometric.startswith("MONOCHROME")
        if not is_grey or "TransferSyntaxUID" not in dataset.file_meta:
            return
        stored = dataset.pixel_array
    first = stored[0] if stored.ndim == 3 else stored
    plain = apply_modality_lut(first, dataset).astype(float).reshape(-1)
    shown = pixels[:, :, 0].astype(float).reshape(-1)
    sign = -1 if photometric == "MONOCHROME1" else 1
    assert sign * np.corrcoef(plain, shown)[0, 1] > 0.2, path.name


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


@pytest.mark.parametrize("slope", [-2, 1, 0.37])
@pytest.mark.parametrize("padding", [{}, {"PixelPaddingValue": -2000}])
def test_dicom_values_are_shaded_as_the_pixels_themselves(
    slope: float, padding: dict[str, int], rng: np.random.Generator
) -> None:
    stored = rng.normal(100, 400, (90, 80)).astype(np.int16)
    stored[:9] = -2000
    data = build_dicom(stored, RescaleSlope=slope, RescaleIntercept=-3, **padding)
    is_valid = stored != (-2000 if padding else 9999)
    expected = scale_to_uint8(stored.astype(np.float64) * slope - 3, is_valid=is_valid)
    np.testing.assert_array_equal(decode(data).pixels[:, :, 0], expected)


def test_a_deep_picture_takes_a_few_bytes_a_pixel() -> None:
    stored = np.zeros((2000, 2000), np.uint16)
    stored[:64] = np.arange(2000)
    for data in (build_dicom(stored, WindowCenter=99, WindowWidth=400), build_tiff_16(stored, 1)):
        tracemalloc.start()
        decode(data)
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 * stored.size, peak / stored.size  # 40 before: the image in float64


def test_only_the_libraries_work_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image is scaled while others are read."""
    is_free: list[bool] = []
    real = scaling.tally

    def try_lock(*arguments: object, **options: object) -> object:
        with ThreadPoolExecutor(1) as pool:
            is_free.append(pool.submit(quiet._LOCK.acquire, blocking=False).result())
            if is_free[-1]:
                pool.submit(quiet._LOCK.release).result()
        return real(*arguments, **options)

    for module in (scaling, dicom_grey):
        monkeypatch.setattr(module, "tally", try_lock)
    decode(build_dicom(ramp(np.uint16, 4000)))
    decode(build_tiff_16(ramp(np.uint16, 4000), 1))
    assert is_free == [True, True]


def test_fractions_are_not_cut_in_two_by_a_window() -> None:
    stored = ramp(np.uint16, 4095)
    data = build_dicom(
        stored, RescaleSlope=0.0002442, RescaleIntercept=0, WindowCenter=0.5, WindowWidth=1
    )
    for window in (None, (0.5, 1.0), (0.5, 0.9)):
        shown = decode(data, window=window).pixels[:, :, 0].astype(float)
        width = window[1] if window else 1.0
        expected = 255 * np.clip((stored * 0.0002442 - 0.5) / width + 0.5, 0, 1)
        assert np.abs(shown - expected).max() <= 0.5


def test_what_shows_a_frame_is_said() -> None:
    stored = ramp(np.uint16, 4000)
    voi = build_table(np.arange(4096, dtype=np.uint16), n_bits=12)
    window = {"WindowCenter": [60000, 2000], "WindowWidth": [10, 4000]}
    assert decode(build_dicom(stored)).file_display == "range"
    assert decode(build_dicom(stored, **window)).file_display == "range"
    useful = build_dicom(stored, WindowCenter=2000, WindowWidth=4000)
    assert decode(useful).file_display == "window"
    assert decode(useful, window=(9.0, 9.0)).file_display == "window"
    assert decode(build_dicom(stored, VOILUTSequence=[voi], **window)).file_display == "table"
    assert decode(encode(ramp(), "PNG")).file_display is None


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_presentation_shape_inverse_inverts_once(photometric: str) -> None:
    stored = ramp(np.uint16, 4000)
    plain = decode(build_dicom(stored)).pixels
    data = build_dicom(
        stored, PresentationLUTShape="INVERSE", PhotometricInterpretation=photometric
    )
    np.testing.assert_array_equal(decode(data).pixels, 255 - plain)


def build_table(entries: np.ndarray, *, n_bits: int) -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [entries.size, 0, n_bits]
    table.LUTData = entries.tobytes()
    table["LUTData"].VR = "OW"
    return table


def test_lookup_tables_by_hand() -> None:
    stored = np.array([[0, 1], [2, 9]], dtype=np.uint16)  # 9 is past the end: the last entry
    voi = build_table(np.array([4095, 0, 2048, 1365], dtype=np.uint16), n_bits=12)
    assert decode(build_dicom(stored, VOILUTSequence=[voi])).pixels[:, :, 0].tolist() == [
        [255, 0],
        [128, 85],
    ]
    modality = build_table(np.array([0, 100, 200, 50], dtype=np.uint16), n_bits=16)
    shown = decode(build_dicom(stored, ModalityLUTSequence=[modality])).pixels[:, :, 0]
    assert shown.tolist() == [[0, 128], [255, 64]]
    bytes_ = build_table((np.arange(4096) // 16).astype(np.uint8), n_bits=8)
    deep = np.array([[0, 1600], [2048, 4095]], dtype=np.uint16)
    assert decode(build_dicom(deep, VOILUTSequence=[bytes_])).pixels[:, :, 0].tolist() == [
        [0, 100],
        [128, 255],
    ]


def test_a_useless_window_is_passed_over_and_a_wrong_one_refused() -> None:
    stored = ramp(np.uint16, 4000)
    image = decode(build_dicom(stored, WindowCenter=60000, WindowWidth=10))
    assert image.window is None
    np.testing.assert_array_equal(image.pixels, decode(build_dicom(stored)).pixels)
    with pytest.raises(ImageError, match="width above 0"):
        decode(build_dicom(stored), window=(100.0, 0.0))


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope"])
def test_optional_tags_that_are_text_count_as_absent(keyword: str) -> None:
    other = {"WindowCenter": {"WindowWidth": 10}, "RescaleSlope": {"RescaleIntercept": 0}}[keyword]
    stored = ramp(np.uint16, 4000)
    data = build_dicom(stored, **{keyword: "12345678"}, **other).replace(b"12345678", b"abc     ")
    np.testing.assert_array_equal(decode(data).pixels, decode(build_dicom(stored)).pixels)


def test_colours_that_would_come_out_wrong_are_refused() -> None:
    colour = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = build_dicom(colour, PhotometricInterpretation="RGB").replace(b"RGB ", b"HSV ")
    with pytest.raises(ImageError, match="Export it as RGB") as caught:
        decode(data)
    assert caught.value.code == "image.dicom_unsupported"


def test_a_deflated_file_is_read_and_a_deflated_bomb_is_not() -> None:
    dataset = pydicom.dcmread(io.BytesIO(build_dicom(ramp(np.uint16, 4000))))
    expected = decode(build_dicom(ramp(np.uint16, 4000))).pixels
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    data = buffer.getvalue()
    np.testing.assert_array_equal(decode(data).pixels, expected)
    (length,) = struct.unpack("<I", data[140:144])
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = bytes(2**20)
    bomb = b"".join(packer.compress(mebibyte) for _ in range(520)) + packer.flush()
    with pytest.raises(ImageError) as caught:
        decode(data[: 144 + length] + bomb)
    assert caught.value.code == "image.too_large"


def build_jpeg_dicom(frames: list[bytes], **tags: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(build_dicom(ramp())))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_compressed_frames_that_lie_are_refused_before_decoding() -> None:
    jpeg = encode(ramp(), "JPEG", quality=95)
    assert decode(build_jpeg_dicom([jpeg])).format == "DICOM"
    start = jpeg.index(b"\xff\xc0") + 5
    for height, width in ((60000, 60000), (0, 8), (8, 9)):
        lying = jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]
        with pytest.raises(ImageError, match=f"{width} x {height} pixels, its header 8 x 8"):
            decode(build_jpeg_dicom([lying]))
    with pytest.raises(ImageError, match="2000000 frames, at most 1") as caught:
        decode(build_jpeg_dicom([jpeg], NumberOfFrames=2000000))
    assert caught.value.code == "image.truncated"


def test_codestream_sizes_by_hand() -> None:
    j2k = b"\xff\x4f\xff\x51\x00\x2f\x00\x00" + struct.pack(">4I", 70, 50, 10, 20)
    assert find_codestream_size(j2k) == (60, 30)
    jpeg_ls = b"\xff\xd8\xff\xf7\x00\x0b\x08" + struct.pack(">HH", 30, 60)
    assert find_codestream_size(jpeg_ls) == (60, 30)
    assert find_codestream_size(b"\xff\xd8\xff\xe0\xff\xff short") is None
    assert find_codestream_size(b"RLE") is None
    signature = struct.pack(">I", 12) + b"jP  \r\n\x87\n"
    other_box = struct.pack(">I", 10) + b"xml ab"
    jp2 = signature + other_box + struct.pack(">I", 0) + b"jp2c" + j2k
    assert find_codestream_size(jp2) == (60, 30)
    with pytest.raises(ImageError, match="empty box"):  # pydicom would loop for ever
        find_codestream_size(signature + struct.pack(">I", 0) + b"xml " + jp2)
    with pytest.raises(ImageError, match="empty box"):
        find_codestream_size(signature + other_box + b"\0\0")


def test_a_damaged_rle_frame_is_refused() -> None:
    """pylibjpeg-rle panics on these with an exception that is no Exception."""
    data = (PYDICOM_FILES / "test_files" / "MR_small_RLE.dcm").read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(data)
        broken[int(rng.integers(len(data) - 6000, len(data)))] = int(rng.integers(128))
        with contextlib.suppress(ImageError):
            assert decode(bytes(broken)).pixels.shape == (64, 64, 3)


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


def test_nesting_without_end_is_refused() -> None:
    data = build_dicom(ramp())
    (length,) = struct.unpack("<I", data[140:144])
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(ImageError):
        decode(data[: 144 + length] + item * 3000)


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than it holds."""
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


def test_a_dicom_that_lies_about_its_size_is_refused() -> None:
    for tags, code in (
        ({"Rows": 60000, "Columns": 60000}, "image.too_large"),
        ({"Rows": 0}, "image.empty"),
        ({"NumberOfFrames": 9999}, "image.truncated"),
    ):
        with pytest.raises(ImageError) as caught:
            decode(build_dicom(ramp(), **tags))
        assert caught.value.code == code


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
