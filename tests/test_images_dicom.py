"""DICOM by hand, its polarity and windows against pydicom's own, refusals with reasons."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pictures import PYDICOM_FILES, build_dicom, encode, ramp
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from core.errors import ImageError
from core.images.codestream import Codestream, read_codestream
from core.images.decode import decode
from core.images.dicom_grey import _apply_window
from core.images.intensity import scale_to_uint8


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
    high = build_dicom(values * 16 + 5, **tags, HighBit=15)  # the bits below are not image data
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
        if path.name != "JPEG-lossy.dcm":  # its scan header is wrong; pydicom's decoders refuse it
            _check_polarity(path, image.pixels)
    assert n_decoded >= 63
    not_pictures = {n for n, code in refused.items() if code == "image.dicom_object"}
    assert not_pictures >= {"liver_1frame.dcm", "rtdose.dcm", "rtdose_rle.dcm", "rtplan.dcm"}
    others = ("image.dicom_no_pixels", "image.dicom_object")
    pixel_refusals = {n: c for n, c in refused.items() if c not in others}
    assert pixel_refusals == {
        "JPEG2000-embedded-sequence-delimiter.dcm": "image.dicom_unsupported",
        "MR_truncated.dcm": "image.truncated",
        "meta_missing_tsyntax.dcm": "image.empty",  # no Rows and Columns
        "nested_priv_SQ.dcm": "image.empty",
        "no_meta.dcm": "image.not_an_image",
    }


def _check_polarity(path: Path, pixels: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deliberately unusual files
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


def test_codestream_headers_by_hand() -> None:
    j2k = b"\xff\x4f\xff\x51\x00\x2f\x00\x00" + struct.pack(">4I", 70, 50, 10, 20)
    j2k += struct.pack(">4IHB", 60, 30, 10, 20, 3, 0x80 + 11)  # signed, 12 bits
    assert read_codestream(j2k) == Codestream(60, 30, precision=12, n_samples=3)
    jpeg_ls = b"\xff\xd8\xff\xf7\x00\x0b\x0c" + struct.pack(">HH", 30, 60) + b"\1\1\x11\0"
    assert read_codestream(jpeg_ls) == Codestream(60, 30, precision=12)
    scan = b"\xff\xda\0\x08\1\1\0"
    assert not read_codestream(jpeg_ls + scan + b"\2\0\0").is_lossless  # NEAR of 2
    assert read_codestream(jpeg_ls + scan + b"\0\0\0").is_lossless
    assert read_codestream(b"\xff\xd8\xff\xe0\xff\xff short") is None
    assert read_codestream(b"RLE") is None
    signature = struct.pack(">I", 12) + b"jP  \r\n\x87\n"
    other_box = struct.pack(">I", 10) + b"xml ab"
    jp2 = signature + other_box + struct.pack(">I", 0) + b"jp2c" + j2k
    assert read_codestream(jp2) == read_codestream(j2k)
    with pytest.raises(ImageError, match="empty box"):  # pydicom would loop for ever
        read_codestream(signature + struct.pack(">I", 0) + b"xml " + jp2)
    with pytest.raises(ImageError, match="empty box"):
        read_codestream(signature + other_box + b"\0\0")


def test_a_damaged_rle_frame_is_refused() -> None:
    """pylibjpeg-rle panics on these with an exception that is not an Exception."""
    data = (PYDICOM_FILES / "test_files" / "MR_small_RLE.dcm").read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(data)
        broken[int(rng.integers(len(data) - 6000, len(data)))] = int(rng.integers(128))
        with contextlib.suppress(ImageError):
            assert decode(bytes(broken)).pixels.shape == (64, 64, 3)


def test_nesting_without_end_is_refused() -> None:
    data = build_dicom(ramp())
    (length,) = struct.unpack("<I", data[140:144])
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(ImageError):
        decode(data[: 144 + length] + item * 3000)


def test_a_dicom_that_lies_about_its_size_is_refused() -> None:
    for tags, code in (
        ({"Rows": 60000, "Columns": 60000}, "image.too_large"),
        ({"Rows": 0}, "image.empty"),
        ({"NumberOfFrames": 9999}, "image.truncated"),
    ):
        with pytest.raises(ImageError) as caught:
            decode(build_dicom(ramp(), **tags))
        assert caught.value.code == code
