"""Zips from strangers: what is taken, what is refused, and that refusal leaves nothing behind."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.data_zip import ZipLimits, extract, store, uploads_dir
from core.errors import DataError

LIMITS = ZipLimits(n_files=20, total_bytes=3_000_000, file_bytes=2_000_000, ratio=200)


def pack(files: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


def with_mode(name: str, mode: int, data: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, data)
    buffer.seek(0)
    return buffer


def encrypted() -> io.BytesIO:
    data = bytearray(pack({"normal/a.png": b"x"}).getvalue())
    data[6] |= 1  # the flag of the local header and of the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return io.BytesIO(bytes(data))


def ten_gigabytes() -> io.BytesIO:
    """A small file whose directory says that it unpacks to 10 GB (zip64)."""
    data = pack({"normal/a.png": b"x" * 100}).getvalue()
    at = data.index(b"PK\x01\x02")
    head = bytearray(data[at : at + 46])
    name = data[at + 46 : at + 46 + len("normal/a.png")]
    head[24:28] = b"\xff" * 4
    extra = struct.pack("<HHQ", 1, 8, 10 * 10**9)
    head[30:32] = struct.pack("<H", len(extra))
    directory = bytes(head) + name + extra
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), at, 0)
    return io.BytesIO(data[:at] + directory + end)


def lying_header() -> io.BytesIO:
    """Says 10 bytes, holds two megabytes of zeros."""
    data = bytearray(
        pack({"normal/a.png": bytes(2_000_000)}, compression=zipfile.ZIP_DEFLATED).getvalue()
    )
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<L", 10)
    return io.BytesIO(bytes(data))


MALICIOUS: dict[str, tuple[Callable[[], io.BytesIO], str]] = {
    "path traversal": (lambda: pack({"../evil.png": b"x"}), "zip.path"),
    "traversal inside": (lambda: pack({"normal/../../evil.png": b"x"}), "zip.path"),
    "traversal with backslashes": (lambda: pack({"..\\evil.png": b"x"}), "zip.path"),
    "absolute path": (lambda: pack({"/etc/evil.png": b"x"}), "zip.path"),
    "drive letter": (lambda: pack({"C:/evil.png": b"x"}), "zip.path"),
    "nested very deep": (lambda: pack({"a/" * 40 + "x.png": b"x"}), "zip.path"),
    "symbolic link": (lambda: with_mode("a", stat.S_IFLNK | 0o777, b"/etc/passwd"), "zip.link"),
    "device": (lambda: with_mode("a", stat.S_IFCHR | 0o666, b""), "zip.special"),
    "pipe": (lambda: with_mode("a", stat.S_IFIFO | 0o666, b""), "zip.special"),
    "password": (encrypted, "zip.encrypted"),
    "10 GB bomb": (ten_gigabytes, "zip.too_big"),
    "many zeros": (
        lambda: pack({"n/a.png": bytes(1_900_000)}, compression=zipfile.ZIP_DEFLATED),
        "zip.bomb",
    ),
    "lying header": (lying_header, "zip.damaged"),
    "too much in all": (
        lambda: pack({f"n/{i}": bytes(1_900_000) for i in range(2)}),
        "zip.too_big",
    ),
    "too many files": (lambda: pack({f"n/{i}.png": b"x" for i in range(21)}), "zip.too_many"),
    "no zip": (lambda: io.BytesIO(b"not a zip at all"), "zip.damaged"),
    "cut off": (lambda: io.BytesIO(pack({"n/a": bytes(999)}).getvalue()[:600]), "zip.damaged"),
    "empty": (lambda: pack({}), "zip.empty"),
    "only junk": (lambda: pack({"__MACOSX/a": b"x", ".DS_Store": b"x"}), "zip.empty"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_zips_are_refused_and_leave_nothing(name: str, tmp_path: Path) -> None:
    make, code = MALICIOUS[name]
    inside = tmp_path / "checkpoints"
    with pytest.raises(DataError) as caught:
        store(make(), name="x.zip", checkpoints_dir=inside, limits=LIMITS)
    assert caught.value.code == code
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert list(uploads_dir(inside).iterdir()) == []


def test_wrapping_folders_are_looked_through_and_junk_left_out(tmp_path: Path) -> None:
    source = pack(
        {
            "my data/eyes/normal/a.png": b"1",
            "my data/eyes/disease/b.png": b"2",
            "__MACOSX/my data/._a": b"x",
            "my data/.DS_Store": b"x",
        }
    )
    root = store(source, name="my data (1).zip", checkpoints_dir=tmp_path)
    assert sorted(p.name for p in root.iterdir()) == ["disease", "normal"]
    assert root.parts[-3].startswith("my-data-1-")
    source.seek(0)
    assert store(source, name="other.zip", checkpoints_dir=tmp_path).parts[-3] != root.parts[-3]
    only_train = pack({"train/normal/a.png": b"1", "train/disease/b.png": b"2"})
    assert store(only_train, name="t.zip", checkpoints_dir=tmp_path).name.startswith("t-")


def test_odd_names_become_harmless_and_stay_apart(tmp_path: Path) -> None:
    long = "n/" + "é" * 300 + ".png"
    names = ["n/a.png", "n/A.png", "n/e\u0301.png", "n/tab\there.png", "n/what?.png", long, "n/x. "]
    extract(pack({name: b"x" for name in names}), tmp_path / "out", limits=LIMITS)
    found = sorted(p.name for p in (tmp_path / "out" / "n").iterdir())
    assert len(found) == len(names)
    assert {"a.png", "A-2.png", "é.png", "tab_here.png", "what_.png"} <= set(found)
    assert all(len(name.encode()) <= 175 for name in found)


def test_names_from_chinese_windows_are_read(tmp_path: Path) -> None:
    placeholder = "AAAA/a.png"
    data = pack({placeholder: b"x"}).getvalue()
    data = data.replace(b"AAAA", "正常".encode("gb18030"))
    extract(io.BytesIO(data), tmp_path / "out", limits=LIMITS)
    assert (tmp_path / "out" / "正常" / "a.png").is_file()
