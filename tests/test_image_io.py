"""Every format by hand, DICOM polarity against an independent reference, refusals with reasons."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as PILImage
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from core.errors import ImageError
from core.image_io import decode, encode_jpeg, encode_png, load, thumbnail
from core.image_io.dicom import _apply_window

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
    assert chosen.pixels[:, :, 0].tolist() == [[0, 255], [255, 255]]


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
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(ImageError, match="cannot be read") as caught:
            load(path)
        assert caught.value.code == "image.missing"


def test_thumbnails_shrink_and_never_enlarge(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (300, 600, 3), dtype=np.uint8)
    assert thumbnail(pixels).shape == (128, 256, 3)
    assert thumbnail(pixels[:10, :20]).shape == (10, 20, 3)
    np.testing.assert_array_equal(decode(encode_png(pixels)).pixels, pixels)
    assert decode(encode_jpeg(pixels)).format == "JPEG"
