"""Untrusted zips: what is accepted, what is refused, and that a refusal leaves nothing behind."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from core.data import uploads
from core.data.plan import make_plan
from core.data.uploads import ZipLimits, extract, store, uploads_dir
from core.errors import DataError

LIMITS = ZipLimits(n_files=20, total_bytes=3_000_000, file_bytes=2_000_000, ratio=200)


def pack(files: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


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


def spoil(method: int) -> io.BytesIO:
    """A zip of random bytes with some of them changed."""
    data = bytearray(pack({"n/a.png": os.urandom(4000)}, compression=method).getvalue())
    data[37:1000] = b"\x07" * 963  # 37: where the compressed bytes begin
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_said_whatever_the_method(method: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged") as caught:
        extract(spoil(method), tmp_path / "out", limits=LIMITS)
    assert caught.value.code == "zip.damaged"


@pytest.mark.parametrize("names", [("n", "n/a.png"), ("n/a.png", "n"), ("n", "n/m/a.png")])
def test_a_file_and_a_folder_of_one_name_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="of one name") as caught:
        store(pack({name: b"x" for name in names}), name="a.zip", checkpoints_dir=tmp_path)
    assert caught.value.code == "zip.names"
    assert list(uploads_dir(tmp_path).iterdir()) == []


def test_two_sessions_may_upload_the_same_zip_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{name}/{i}.png": b"x" for name in ("normal", "disease") for i in range(3)}
    roots: list[Path] = []

    def extract_late(source: io.BytesIO, into: Path, *, limits: ZipLimits) -> None:
        extract(source, into, limits=limits)
        if not roots:  # the other session runs here
            roots.append(tmp_path)
            roots.append(store(pack(files), name="a.zip", checkpoints_dir=tmp_path))

    monkeypatch.setattr(uploads, "extract", extract_late)
    root = store(pack(files), name="a.zip", checkpoints_dir=tmp_path)
    assert root == roots[1]
    assert {p.relative_to(root).as_posix() for p in root.rglob("*.png")} == set(files)
    assert list(uploads_dir(tmp_path).iterdir()) == [root]


def test_a_table_in_a_zip_names_its_files_as_the_zip_did(tmp_path: Path) -> None:
    names = ["cafe\u0301.png", "scan:1.png", "dots.", "y" * 180 + ".png", "a b\u200b.png"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        rows = ["file,label"]
        for number in range(8):
            archive.writestr(f"data/n{number}.png", b"x")
            rows.append(f"n{number}.png,normal")
        for name in names:
            archive.writestr(f"data/{name}", b"x")
            rows.append(f"{name},flu")
        archive.writestr("data/sub\\deep.png", b"x")
        rows.append("sub\\deep.png,flu")
        archive.writestr("data/manifest.csv", "\n".join(rows))
    folder = store(buffer, name="d.zip", checkpoints_dir=tmp_path)
    plan = make_plan(folder)
    assert plan.count() == {"": {"normal": 8, "flu": 6}}
    assert all(one.path and one.path.is_file() for one in plan.found)
