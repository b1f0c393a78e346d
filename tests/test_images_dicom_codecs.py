"""Compressed frames made at run time: bits outside BitsStored, frames cut short, missing tags."""

import base64
import io

import jpeg_ls
import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array as encode_j2k
from pictures import PYDICOM_FILES, build_dicom, encode, ramp
from PIL import Image as PILImage
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from core.errors import ImageError
from core.images.decode import decode
from core.images.dicom import _decode_stored, _read
from core.images.dicom_layout import Layout
from core.images.jpeg_segments import list_segments
from core.images.stored_bits import take_stored_bits

# 12 x 12 signed values of 12 bits, other bits set above them, as dcmtk's dcmcjpeg +e1 stores them.
_LOSSLESS_JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|HA+a5C9AS3;_WV0RO}Q761VO0RR910000000000000jS3IEyv2mt{A0RR98{{V4I"
    "aZ7PaaZ7PaaZ6!KaZ7PaaZ7Papd#Xy;+Eo;;+Eo;;+Dde;+Eo;;+Eo<K+VN1#Vy4x#Vy4xg)PM`#Vy4x#Vy4yf~$&K"
    "id%|Xid%|X3R{X>id%|Xid%|Z2X_>=6t@(&6t@(%6t@(&6t@(&6t@(*6D}!kDQ+olDQqcjDQ+olDQ+olDQ+orF5FVw"
    "QruG9QrJ@5QruG9QruG9QruGLZn&kmrMRWArMRWIrMRWIrMRWIrMRWg{{V4IaZ6!KaZ7PaaZ7PaaZ7PaaZ7PaqC(=9"
    ";+Dde;+Eo;;+Eo;;+Eo;;+Eo<MGeI*g)PM`#Vy4x#Vy4x#Vy4x#Vy4zSzJ=wQruG9QruG9QruG9QruG9QruGi0RR8l"
)


def build_values(side: int = 12) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (x * 331 + y * y * 17) % 4096 - 2048


def build_words(side: int = 12) -> np.ndarray:
    """The values in words of 16 bits whose upper four hold something else."""
    y, x = np.mgrid[:side, :side]
    return ((build_values(side) & 4095) | (x * 7 + y) % 16 << 12).astype(np.uint16)


def build_compressed(native: bytes, frames: list[bytes], syntax: UID, **tags: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(native))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def read_stored(data: bytes, frame: int = 0) -> np.ndarray:
    return _decode_stored(_read(data), frame).values


def compress_words(name: str, words: np.ndarray, native: bytes) -> bytes:
    if name == "rle":
        dataset = pydicom.dcmread(io.BytesIO(native))
        dataset.compress(RLELossless)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()
    if name == "jpeg-ls":
        frame = bytes(jpeg_ls.encode_array(words, 0, 0))
        return build_compressed(native, [frame], JPEGLSLossless)
    if name == "jpeg-2000":
        frame = bytes(encode_j2k(words, bits_stored=16, photometric_interpretation=2))
        return build_compressed(native, [frame], JPEG2000Lossless)
    return build_compressed(native, [_LOSSLESS_JPEG], JPEGLosslessSV1)


@pytest.mark.parametrize("name", ["native", "rle", "jpeg", "jpeg-ls", "jpeg-2000"])
def test_bits_above_the_value_are_no_part_of_it(name: str) -> None:
    side = 12 if name == "jpeg" else 40
    words = build_words(side)
    native = build_dicom(words.view(np.int16), BitsStored=12, HighBit=11)
    data = native if name == "native" else compress_words(name, words, native)
    np.testing.assert_array_equal(read_stored(data), build_values(side))
    clean = build_dicom(build_values(side).astype(np.int16), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(decode(data).pixels, decode(clean).pixels)


@pytest.mark.parametrize("name", ["native", "rle", "jpeg-ls", "jpeg-2000"])
def test_a_high_bit_at_the_top_shifts_every_syntax_alike(name: str) -> None:
    words = (build_values(40) & 4095).astype(np.uint16) << 4 | 9
    native = build_dicom(words.view(np.int16), BitsStored=12, HighBit=15)
    data = native if name == "native" else compress_words(name, words, native)
    np.testing.assert_array_equal(read_stored(data), build_values(40))


def test_padding_is_found_behind_other_bits() -> None:
    values = build_values()
    values[:3] = -2000
    words = ((values & 4095) | 0x5000).astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": -2000}
    native = build_dicom(words.view(np.int16), **tags)
    packed = compress_words("jpeg-ls", words, native)
    clean = decode(build_dicom(values.astype(np.int16), **tags)).pixels
    assert (clean[:3] == 0).all()
    np.testing.assert_array_equal(decode(native).pixels, clean)
    np.testing.assert_array_equal(decode(packed).pixels, clean)


def test_values_with_their_bits_taken_by_hand() -> None:
    def take(
        words: list[int], dtype: type, *, precision: int, is_lossy: bool = False, **tags: object
    ) -> list[int]:
        header = {"bits_stored": 12, "high_bit": 11, "is_signed": True, **tags}
        layout = Layout(1, 1, 1, 1, 16, photometric="MONOCHROME2", keyword="PixelData", **header)
        array = np.array(words, dtype=dtype)
        return take_stored_bits(array, layout, precision=precision, is_lossy=is_lossy).tolist()

    assert take([0xF800, 0x07FF, 0x5FFF], np.uint16, precision=16) == [-2048, 2047, -1]
    # a lossy word that overshoots is clamped: masked, it would jump to the other end
    assert take([2049, -2050, 5], np.int16, precision=16, is_lossy=True) == [2047, -2048, 5]
    unsigned = {"is_signed": False}
    assert take([4100, 7], np.uint16, precision=16, is_lossy=True, **unsigned) == [4095, 7]
    # a codestream of 12 bits has moved the value down, whatever HighBit says
    assert take([0xFFF, 1], np.uint16, precision=12, high_bit=15) == [-1, 1]
    assert take([0xFFF8, 0x10], np.uint16, precision=16, high_bit=15) == [-1, 1]
    assert take([200], np.uint8, precision=8, bits_stored=16, high_bit=15) == [200]


def build_frames() -> dict[str, tuple[bytes, bytes, UID]]:
    """A whole frame of each compression, with the native file it belongs to."""
    grey = (np.outer(np.arange(40), np.arange(40)) % 251).astype(np.uint8)
    noise = np.random.default_rng(2).integers(0, 4096, (40, 40), dtype=np.uint16)
    native = build_dicom(grey)
    deep = build_dicom(noise, BitsStored=12, HighBit=11)
    small = build_dicom(build_words().view(np.int16), BitsStored=12, HighBit=11)
    tiles = io.BytesIO()
    PILImage.fromarray(grey).save(tiles, "JPEG2000", tile_size=(16, 16), no_jp2=True)
    return {
        "jpeg": (encode(grey, "JPEG", quality=90), native, JPEGBaseline8Bit),
        "restarts": (encode(grey, "JPEG", restart_marker_blocks=3), native, JPEGBaseline8Bit),
        "progressive": (encode(grey, "JPEG", progressive=True), native, JPEGBaseline8Bit),
        "lossless": (_LOSSLESS_JPEG.rstrip(b"\0"), small, JPEGLosslessSV1),
        "jpeg-ls": (bytes(jpeg_ls.encode_array(noise, 0, 0)), deep, JPEGLSLossless),
        "near": (bytes(jpeg_ls.encode_array(noise, 2, 0)), deep, JPEGLSNearLossless),
        "j2k": (
            bytes(encode_j2k(noise, bits_stored=12, photometric_interpretation=2)),
            deep,
            JPEG2000Lossless,
        ),
        "tiles": (tiles.getvalue(), native, JPEG2000),
    }


@pytest.mark.parametrize("name", build_frames())
def test_a_frame_cut_short_is_refused(name: str) -> None:
    frame, native, syntax = build_frames()[name]
    decode(build_compressed(native, [frame + b"\0"], syntax))  # padding behind the end is legal
    begin = frame.index(b"\xff\x90" if "j2k" in name or name == "tiles" else b"\xff\xda")
    for share in (0.02, 0.3, 0.6, 0.9, 0.97):
        cut = frame[: begin + int((len(frame) - begin) * share)]
        for piece in (cut, cut + b"\xff\xd9"):  # with and without an end-of-image marker
            with pytest.raises(ImageError, match=r"cut off|not whole|damaged"):
                decode(build_compressed(native, [piece], syntax))
    with pytest.raises(ImageError, match="not whole"):
        decode(build_compressed(native, [frame[:-2]], syntax))


def test_a_missing_tile_is_refused() -> None:
    frame, native, syntax = build_frames()["tiles"]
    tiles = [i for i in range(len(frame)) if frame[i : i + 2] == b"\xff\x90"]
    assert len(tiles) == 9
    for piece in (frame[: tiles[5]] + b"\xff\xd9", frame[: tiles[3]] + frame[tiles[4] :]):
        with pytest.raises(ImageError, match="not whole"):
            decode(build_compressed(native, [piece], syntax))


def test_flipped_bytes_in_jpeg_ls_are_refused() -> None:
    """A lenient decoder shows every one of these."""
    frame, native, syntax = build_frames()["jpeg-ls"]
    rng = np.random.default_rng(5)
    n_refused = 0
    for place in rng.integers(60, len(frame) - 40, 40):
        broken = bytearray(frame)
        broken[place] ^= int(rng.integers(1, 256))
        try:
            decode(build_compressed(native, [bytes(broken)], syntax))
        except ImageError:
            n_refused += 1
    assert n_refused >= 30


def test_only_the_frame_asked_for_must_be_whole() -> None:
    frame, _, syntax = build_frames()["jpeg"]
    grey = (np.outer(np.arange(40), np.arange(40)) % 251).astype(np.uint8)
    native = build_dicom(np.stack([grey, grey]))
    frames = [frame, frame[: len(frame) // 2]]
    data = build_compressed(native, frames, syntax)
    assert decode(data, frame=0).n_frames == 2
    with pytest.raises(ImageError, match="not whole"):
        decode(data, frame=1)


def test_a_frame_in_several_fragments_is_joined() -> None:
    frame, native, syntax = build_frames()["jpeg"]
    dataset = pydicom.dcmread(io.BytesIO(build_compressed(native, [frame], syntax)))
    dataset.PixelData = encapsulate([frame], fragments_per_frame=3)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    whole = decode(build_compressed(native, [frame], syntax)).pixels
    np.testing.assert_array_equal(decode(buffer.getvalue()).pixels, whole)


def test_a_scan_said_to_end_at_coefficient_0_is_read() -> None:
    frame, native, _ = build_frames()["jpeg"]
    scan = next(s for s in list_segments(frame).found if s.marker == 0xDA)
    place = scan.begin + len(scan.content) - 2
    assert frame[place] == 63
    wrong = frame[:place] + b"\0" + frame[place + 1 :]
    expected = decode(build_compressed(native, [frame], JPEGExtended12Bit)).pixels
    mended = decode(build_compressed(native, [wrong], JPEGExtended12Bit)).pixels
    np.testing.assert_array_equal(mended, expected)
    real = (PYDICOM_FILES / "test_files" / "JPEG-lossy.dcm").read_bytes()
    stored = read_stored(real)  # 12 bits, compared with dcmtk's dcmdjpeg
    assert (stored.shape, int(stored.min()), int(stored.max())) == ((1024, 256), 0, 264)


@pytest.mark.parametrize("planes", [0, 1, 2])
def test_colours_of_jpeg_ls_by_every_interleave(planes: int) -> None:
    colour = np.random.default_rng(8).integers(0, 256, (10, 9, 3), dtype=np.uint8)
    source = np.ascontiguousarray(np.moveaxis(colour, 2, 0)) if planes == 0 else colour
    frame = bytes(jpeg_ls.encode_array(source, 0, planes))
    data = build_compressed(
        build_dicom(colour, PhotometricInterpretation="RGB"), [frame], JPEGLSLossless
    )
    np.testing.assert_array_equal(decode(data).pixels, colour)


def drop(data: bytes, *keywords: str, **tags: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    for keyword in keywords:
        del dataset[keyword]
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "keywords", [("SamplesPerPixel",), ("HighBit",), ("BitsStored",), ("NumberOfFrames",)]
)
def test_a_missing_tag_with_one_possible_value_is_read(keywords: tuple[str, ...]) -> None:
    data = build_dicom(ramp(np.uint16, 4000), BitsStored=12, HighBit=11, NumberOfFrames=1)
    np.testing.assert_array_equal(decode(drop(data, *keywords)).pixels, decode(data).pixels)


def test_samples_follow_from_the_colours() -> None:
    colour = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = build_dicom(colour, PhotometricInterpretation="RGB")
    np.testing.assert_array_equal(decode(drop(data, "SamplesPerPixel")).pixels, colour)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        (("PhotometricInterpretation",), "PhotometricInterpretation is missing"),
        (("BitsAllocated",), "BitsAllocated is missing"),
        (("BitsStored", "HighBit"), "BitsStored is missing"),
        (("PixelRepresentation",), "PixelRepresentation is missing"),
    ],
)
def test_a_tag_that_would_be_a_guess_is_named(keywords: tuple[str, ...], named: str) -> None:
    data = build_dicom(ramp(np.uint16, 65000), PatientID="77")
    with pytest.raises(ImageError, match=named) as caught:
        decode(drop(data, *keywords))
    assert caught.value.code == "image.dicom_unsupported"
    assert "Error" not in str(caught.value) + str(caught.value.params)


def test_a_missing_sign_is_no_matter_for_small_values_and_colour() -> None:
    data = build_dicom(ramp(np.uint16, 32000))
    np.testing.assert_array_equal(
        decode(drop(data, "PixelRepresentation")).pixels, decode(data).pixels
    )
    colour = np.arange(192, 240, dtype=np.uint8).reshape(4, 4, 3)
    data = build_dicom(colour, PhotometricInterpretation="RGB")
    np.testing.assert_array_equal(decode(drop(data, "PixelRepresentation")).pixels, colour)
    with pytest.raises(ImageError, match="PlanarConfiguration is missing"):
        decode(drop(data, "PlanarConfiguration"))
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)  # RLE always has planes
    np.testing.assert_array_equal(
        decode(drop(buffer.getvalue(), "PlanarConfiguration")).pixels, colour
    )


def test_a_palette_that_is_missing_is_named() -> None:
    data = build_dicom(ramp(), PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(ImageError, match="RedPaletteColorLookupTableDescriptor is missing"):
        decode(data)


def test_a_single_bit_has_no_sign() -> None:
    bits = np.random.default_rng(9).integers(0, 2, (8, 8), dtype=np.uint8)
    data = build_dicom(bits, BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=1)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.PixelData = np.packbits(bits, bitorder="little").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(read_stored(buffer.getvalue()), bits)


def pack_12_bits(values: np.ndarray) -> bytes:
    bits = values.reshape(-1, 1) >> np.arange(12) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


@pytest.mark.parametrize("is_little", [True, False])
def test_packed_12_bits_are_read(is_little: bool) -> None:
    frames = np.random.default_rng(4).integers(0, 4096, (2, 5, 3))  # an odd number of values
    dataset = pydicom.Dataset()
    for element in pydicom.dcmread(io.BytesIO(build_dicom(frames.astype(np.uint16)))):
        dataset.add_new(element.tag, element.VR, element.value)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 12, 12, 11
    packed = pack_12_bits(frames).ljust(46, b"\0")
    dataset.PixelData = np.frombuffer(packed, "<u2").astype("<u2" if is_little else ">u2").tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    )
    dataset.preamble = bytes(128)
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=is_little)
    for index in (0, 1):
        np.testing.assert_array_equal(read_stored(buffer.getvalue(), index), frames[index])


def test_an_impossible_number_of_bits_is_named() -> None:
    for allocated in (10, 24, 0xFFFF):
        data = build_dicom(ramp(np.uint16, 999), BitsAllocated=allocated, BitsStored=8, HighBit=7)
        with pytest.raises(ImageError, match=f"BitsAllocated is {allocated}|cut off"):
            decode(data)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 2}]
)
def test_a_jpeg_picture_cut_short_is_refused(options: dict[str, object]) -> None:
    small = np.random.default_rng(6).integers(0, 256, (12, 12), dtype=np.uint8)
    colour = np.kron(small, np.ones((5, 5), np.uint8))[:, :, None].repeat(3, axis=2)
    jpeg = encode(colour, "JPEG", quality=92, **options)
    assert decode(jpeg + b"behind the end").format == "JPEG"
    for end in range(jpeg.index(b"\xff\xda") + 14, len(jpeg) - 2, 7):
        for piece in (jpeg[:end], jpeg[:end] + b"\xff\xd9"):
            with pytest.raises(ImageError) as caught:
                decode(piece)
            assert caught.value.code == "image.truncated"


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_cut_between_scans_or_restart_intervals_is_refused(
    options: dict[str, object],
) -> None:
    colour = np.random.default_rng(6).integers(0, 256, (44, 52, 3), dtype=np.uint8)
    jpeg = encode(colour, "JPEG", **options)
    ends = [end for segment in list_segments(jpeg).found for end in segment.data_ends]
    assert len(ends) > 5
    assert decode(jpeg).format == "JPEG"
    for end in ends[:-1]:
        with pytest.raises(ImageError):
            decode(jpeg[:end] + b"\xff\xd9")


def test_a_frame_header_of_another_number_of_samples_is_refused() -> None:
    frame, _, syntax = build_frames()["jpeg"]
    native = build_dicom(np.zeros((40, 40, 3), np.uint8), PhotometricInterpretation="RGB")
    with pytest.raises(ImageError, match="1 samples per pixel, its header 3"):
        decode(build_compressed(native, [frame], syntax))
