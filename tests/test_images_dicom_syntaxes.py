"""Every transfer syntax x sign x depth, sound and damaged, against dcmtk."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pictures import build_dicom
from pydicom.encaps import encapsulate, get_frame

from core.errors import ImageError
from core.images.decode import decode
from core.images.dicom import _decode_stored, _read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("dcmcjpls") is None, reason="dcmtk is not installed"),
]

_NATIVE = {
    "implicit": ["dcmconv", "+ti"],
    "explicit": ["dcmconv", "+te"],
    "big-endian": ["dcmconv", "+tb"],
    "deflated": ["dcmconv", "+td"],
}
_LOSSLESS = {
    "rle": ["dcmcrle"],
    "jpeg-57": ["dcmcjpeg", "+el"],
    "jpeg-70": ["dcmcjpeg", "+e1"],
    "jpeg-ls-80": ["dcmcjpls", "+el"],
}
_LOSSY = {
    "jpeg-50": ["dcmcjpeg", "+eb"],
    "jpeg-51": ["dcmcjpeg", "+ee"],
    "jpeg-ls-81": ["dcmcjpls", "+en"],
}
_DECODER = {"dcmcrle": "dcmdrle", "dcmcjpeg": "dcmdjpeg", "dcmcjpls": "dcmdjpls"}
_DEPTHS = [(8, 8), (12, 16), (16, 16)]  # stored, allocated
_SIZE = 48


def build_values(bits: int, *, is_signed: bool) -> np.ndarray:
    """A smooth picture with noise that uses the whole range of ``bits``."""
    rng = np.random.default_rng(bits)
    y, x = np.mgrid[:_SIZE, :_SIZE] / _SIZE
    share = 0.5 + 0.45 * np.sin(6 * x) * np.cos(5 * y) + rng.normal(0, 0.01, x.shape)
    values = np.round(np.clip(share, 0, 1) * (2**bits - 1)).astype(np.int64)
    values[0, :2] = 0, 2**bits - 1
    return values - 2 ** (bits - 1) if is_signed else values


def write_native(
    path: Path, values: np.ndarray, *, bits: int, allocated: int, is_signed: bool, layout: str
) -> None:
    """Write the values as "low", "high bits set" (above them) or "shifted" (HighBit at the top)."""
    words = values & (2**bits - 1)
    n_above = allocated - bits
    if layout == "high bits set":
        noise = np.random.default_rng(3).integers(0, 2**n_above, words.shape)
        words = words | noise << bits
    elif layout == "shifted":
        words = words << n_above | np.random.default_rng(3).integers(0, 2**n_above, words.shape)
    elif is_signed:
        words = values & (2**allocated - 1)
    kind = "i" if is_signed else "u"
    stored = words.astype(f"u{allocated // 8}").view(f"{kind}{allocated // 8}")
    high = allocated - 1 if layout == "shifted" else bits - 1
    path.write_bytes(build_dicom(stored, BitsStored=bits, HighBit=high))


def convert(command: list[str], source: Path) -> Path | None:
    """Run a dcmtk converter; None if it refuses."""
    target = source.with_suffix(".out.dcm")
    target.unlink(missing_ok=True)
    done = subprocess.run([*command, source, target], capture_output=True, check=False)
    return target if done.returncode == 0 and target.exists() else None


def read_stored(data: bytes) -> np.ndarray:
    return _decode_stored(_read(data), 0).values


def _list_cases() -> list[tuple[str, int, int, bool, str]]:
    return [
        (name, bits, allocated, is_signed, layout)
        for name in (*_NATIVE, *_LOSSLESS)
        for bits, allocated in _DEPTHS
        for is_signed in (False, True)
        for layout in ("low", "high bits set", "shifted")
        if layout == "low" or bits < allocated
    ]


@pytest.mark.parametrize(("name", "bits", "allocated", "is_signed", "layout"), _list_cases())
def test_lossless_values_are_kept(
    name: str, bits: int, allocated: int, is_signed: bool, layout: str, tmp_path: Path
) -> None:
    values = build_values(bits, is_signed=is_signed)
    source = tmp_path / "a.dcm"
    write_native(source, values, bits=bits, allocated=allocated, is_signed=is_signed, layout=layout)
    target = convert({**_NATIVE, **_LOSSLESS}[name], source)
    assert target is not None
    np.testing.assert_array_equal(read_stored(target.read_bytes()), values)
    native = decode(source.read_bytes()).pixels
    np.testing.assert_array_equal(decode(target.read_bytes()).pixels, native)


@pytest.mark.parametrize("name", _LOSSY)
@pytest.mark.parametrize(("bits", "allocated"), _DEPTHS)
@pytest.mark.parametrize("is_signed", [False, True])
def test_lossy_values_are_dcmtks(
    name: str, bits: int, allocated: int, is_signed: bool, tmp_path: Path
) -> None:
    values = build_values(bits, is_signed=is_signed)
    source = tmp_path / "a.dcm"
    write_native(source, values, bits=bits, allocated=allocated, is_signed=is_signed, layout="low")
    command = _LOSSY[name]
    target = convert(command, source)
    if target is None:
        assert (name, is_signed) == ("jpeg-ls-81", True)  # dcmtk's encoder takes no signed values
        return
    ours = read_stored(target.read_bytes()).astype(int)
    back = convert([_DECODER[command[0]]], target)
    assert back is not None
    theirs = read_stored(back.read_bytes()).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def damage(frame: bytes) -> dict[str, list[bytes]]:
    """Cut the frame at several places, and flip single bytes of its coded data."""
    rng = np.random.default_rng(11)
    flipped = []
    for place in rng.integers(len(frame) // 2, len(frame) - 4, 12):
        broken = bytearray(frame)
        broken[place] ^= int(rng.integers(1, 256))
        flipped.append(bytes(broken))
    cuts = [frame[: len(frame) * percent // 100] for percent in (10, 30, 60, 90, 97)]
    return {
        "cut": cuts,
        "cut, ended": [cut + b"\xff\xd9" for cut in cuts],
        "flipped": flipped,
    }


@pytest.mark.parametrize("name", [*_LOSSLESS, *_LOSSY])
@pytest.mark.parametrize(("bits", "allocated"), [(8, 8), (12, 16)])
def test_what_dcmtk_refuses_is_refused(
    name: str, bits: int, allocated: int, tmp_path: Path
) -> None:
    source, broken = tmp_path / "a.dcm", tmp_path / "broken.dcm"
    values = build_values(bits, is_signed=False)
    write_native(source, values, bits=bits, allocated=allocated, is_signed=False, layout="low")
    command = {**_LOSSLESS, **_LOSSY}[name]
    sound = convert(command, source)
    assert sound is not None
    dataset = pydicom.dcmread(sound)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    frame = frame[: frame.rfind(b"\xff\xd9") + 2] if name != "rle" else frame
    n_refused = 0
    for kind, frames in damage(frame).items():
        for piece in frames:
            dataset.PixelData = encapsulate([piece])
            dataset.save_as(broken)
            is_refused = convert([_DECODER[command[0]]], broken) is None
            must = is_refused or kind == "cut" or (kind == "cut, ended" and name != "rle")
            try:
                decode(broken.read_bytes())
            except ImageError:
                n_refused += 1
            else:
                assert not must, (kind, len(piece), len(frame))
    assert n_refused >= 5


def test_the_display_is_dcmtks(tmp_path: Path) -> None:
    for is_signed in (False, True):
        values = build_values(12, is_signed=is_signed)
        source, shown = tmp_path / "a.dcm", tmp_path / "shown.pgm"
        write_native(
            source, values, bits=12, allocated=16, is_signed=is_signed, layout="high bits set"
        )
        target = convert(["dcmcjpeg", "+e1"], source)
        assert target is not None
        subprocess.run(["dcmj2pnm", "+op", "+Wm", target, shown], check=True)
        theirs = np.frombuffer(shown.read_bytes()[-_SIZE * _SIZE :], dtype=np.uint8)
        ours = decode(target.read_bytes()).pixels[:, :, 0]
        assert np.corrcoef(theirs, ours.reshape(-1))[0, 1] > 0.999


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    values = build_values(12, is_signed=False)
    source = tmp_path / "a.dcm"
    write_native(source, values, bits=12, allocated=16, is_signed=False, layout="low")
    for command in {**_NATIVE, **_LOSSLESS, **_LOSSY}.values():
        target = convert(command, source)
        assert target is not None
        data = target.read_bytes()
        for percent in (20, 40, 60, 80, 95):
            with pytest.raises(ImageError):
                decode(data[: len(data) * percent // 100])
