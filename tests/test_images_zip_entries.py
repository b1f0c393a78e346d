"""Zips: what is listed, what is read, what is refused and for which reason."""

import io
import os
import zipfile

import pytest

from core.errors import ImageError
from core.images.zip_entries import is_zip, list_entries, read_entry

LIMIT = 2**20


def pack(files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_files_are_listed_in_order_without_what_is_hidden() -> None:
    data = pack(
        {
            "b/2.png": b"two",
            "a.dcm": b"one",
            "__MACOSX/._a.dcm": b"x",
            ".hidden": b"x",
            "b/Thumbs.db": b"x",
            "empty/": b"",
        }
    )
    assert is_zip(data)
    assert [(e.name, e.place, e.n_bytes) for e in list_entries(data)] == [
        ("2.png", 0, 3),
        ("a.dcm", 1, 3),
    ]
    assert read_entry(data, 0, max_bytes=LIMIT) == b"two"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_stay_two() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for data in (b"one", b"other"):
            archive.writestr("a.png", data)
    found = list_entries(buffer.getvalue())
    assert [(e.name, e.n_bytes) for e in found] == [("a.png", 3), ("a.png", 5)]
    read = [read_entry(buffer.getvalue(), e.place, max_bytes=LIMIT) for e in found]
    assert read == [b"one", b"other"]


def refusal(data: bytes, place: int = 0, *, max_bytes: int = LIMIT) -> str:
    with pytest.raises(ImageError) as caught:
        read_entry(data, place, max_bytes=max_bytes)
    return caught.value.code


def test_every_refusal_has_its_code() -> None:
    assert refusal(pack({"a": b"x" * 100}), max_bytes=50) == "upload.too_big"
    assert refusal(pack({"a": b"\0" * 2**22}), max_bytes=2**23) == "image.zip_bomb"
    assert refusal(pack({"a": pack({"b": b"x"})})) == "image.zip_nested"
    encrypted = bytearray(pack({"a": b"secret"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    assert refusal(bytes(encrypted)) == "image.zip_encrypted"
    damaged = bytearray(pack({"a": b"abcdef" * 50}, method=zipfile.ZIP_STORED))
    damaged[60] ^= 0xFF
    assert refusal(bytes(damaged)) == "image.zip_damaged"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        damaged = bytearray(pack({"a": os.urandom(500)}, method=method))
        damaged[40:200] = bytes(160)
        assert refusal(bytes(damaged)) == "image.zip_damaged"
    assert refusal(pack({"a": b"x"}), 9) == "image.zip_damaged"


def test_a_size_that_lies_is_found_while_reading() -> None:
    data = bytearray(pack({"a": b"y" * 5000}, method=zipfile.ZIP_STORED))
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (10).to_bytes(4, "little")
    with pytest.raises(ImageError):
        read_entry(bytes(data), 0, max_bytes=100)


def test_archives_that_cannot_be_listed() -> None:
    for data, code in (
        (b"PK\x03\x04 not really", "image.zip_damaged"),
        (pack({}), "image.zip_empty"),
        (pack({f"{i}": b"" for i in range(10_001)}), "image.zip_entries"),
    ):
        with pytest.raises(ImageError) as caught:
            list_entries(data)
        assert caught.value.code == code


def test_every_damaged_directory_is_refused_or_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", b"1234")
    sound = buffer.getvalue()
    directory = sound.index(b"PK\x01\x02")
    n_refused = 0
    for place in range(directory, len(sound)):
        for value in (0, 0x7F, 0xFF):
            broken = bytearray(sound)
            broken[place] = value
            try:
                for entry in list_entries(bytes(broken)):
                    read_entry(bytes(broken), entry.place, max_bytes=1000)
            except ImageError:
                n_refused += 1
    offset = bytearray(sound)  # a directory said to begin later: the entry begins before the file
    end = sound.index(b"PK\x05\x06")
    offset[end + 16 : end + 20] = (directory + 4).to_bytes(4, "little")
    (entry,) = list_entries(bytes(offset))
    with pytest.raises(ImageError) as caught:
        read_entry(bytes(offset), entry.place, max_bytes=1000)
    assert caught.value.code == "image.zip_damaged"
    assert n_refused > 20
