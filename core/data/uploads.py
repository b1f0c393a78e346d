"""Unpack an untrusted zip of training images safely.

Owns what an upload may contain: plain files with names inside their folder, no links, no passwords,
within the limits on number and size. Names are cleaned and wrapping folders are skipped. Whether
the files are images is decided by ``core.data.datasets`` and ``core.data.audit``.
"""

import hashlib
import lzma
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from core.config import Settings
from core.data.folder_words import find_split, is_system_file, is_system_folder
from core.errors import DataError
from core.files import abandoned
from core.files.names import clean
from core.files.zips import ZIP_ERRORS

_CHUNK = 1 << 20
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAG = 0x1
_MAX_DEPTH = 12


@dataclass(frozen=True)
class ZipLimits:
    """The limits on one upload."""

    n_files: int = 50_000
    total_bytes: int = 4 << 30  # unpacked
    file_bytes: int = 256 << 20  # unpacked, one file
    ratio: int = 500  # unpacked / packed size, for files over a megabyte


def uploads_dir(checkpoints_dir: Path) -> Path:
    """The folder of uploaded data, hidden beside the models that refer to it."""
    return checkpoints_dir / ".data"


def find_data(settings: Settings) -> dict[str, Path]:
    """List the data that the app can train on: name -> folder or npz file.

    Folders in ``settings.data_dir``, uploads, and the demo's images; nothing else on the
    server.
    """
    found: dict[str, Path] = {}
    demo = settings.checkpoints_dir / ".demo-data"
    if demo.is_dir():
        found["demo (SYNTHETIC)"] = demo
    uploads = uploads_dir(settings.checkpoints_dir)
    for folder in sorted(uploads.iterdir()) if uploads.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            found[folder.name] = find_root(folder)
    places = settings.data_dir.iterdir() if settings.data_dir.is_dir() else []
    for path in sorted(places):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".npz"):
            found[path.name] = path.resolve()
    return found


def find_upload(checkpoints_dir: Path, name: str) -> Path:
    """Find the folder of an upload by matching against the listing.

    Raises:
        DataError: there is no such upload.
    """
    uploads = uploads_dir(checkpoints_dir)
    known = [p for p in uploads.iterdir() if p.is_dir()] if uploads.is_dir() else []
    for folder in known:
        if folder.name == name and not name.startswith("."):
            return folder
    listed = ", ".join(sorted(p.name for p in known if not p.name.startswith("."))) or "none"
    raise DataError(
        f"there is no uploaded data {name!r}; there are: {listed}.",
        code="data.no_upload",
        params={"name": name},
    )


def clean_uploads(checkpoints_dir: Path) -> None:
    """Remove leftovers of interrupted unpacking or deletion; call it at start-up.

    Only folders that bear the writer's mark are removed, whatever their names.
    """
    for folder in uploads_dir(checkpoints_dir).glob(".*"):
        owner = re.fullmatch(r"\.(?:unpacking|deleted)-.*?(?:-(\d+))?", folder.name)
        if owner is None or not abandoned.is_ours(folder):
            continue
        if folder.name.startswith(".deleted-") or abandoned.is_left(folder, int(owner[1] or 0)):
            abandoned.remove(folder)


def store(
    source: BinaryIO, *, name: str, checkpoints_dir: Path, limits: ZipLimits | None = None
) -> Path:
    """Unpack an uploaded zip into its own folder; identical files are unpacked once.

    Args:
        source: the zip, seekable.
        name: of the file, as uploaded.
        checkpoints_dir: contains the uploads.
        limits: on the number and size of files.

    Returns:
        The folder that holds the classes, the splits, the manifest or the npz.

    Raises:
        DataError: the upload is refused; the code begins with ``zip.``.
    """
    hashed = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        hashed.update(chunk)
    digest = hashed.hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem).strip("-.")[:40] or "data"
    final = uploads_dir(checkpoints_dir) / f"{stem}-{digest[:10]}"
    if not final.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(
            tempfile.mkdtemp(
                prefix=f".unpacking-{final.name}-", suffix=f"-{os.getpid()}", dir=final.parent
            )
        )
        abandoned.mark(workshop)
        try:
            extract(source, workshop / "data", limits=limits or ZipLimits())
            (workshop / "data").rename(final)
        except OSError:
            if not final.is_dir():  # else a race: another session stored the same bytes
                raise
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return find_root(final)


def extract(source: BinaryIO, into: Path, *, limits: ZipLimits) -> None:
    """Unpack into a new folder, counting the bytes actually written.

    Raises:
        DataError: as ``store``; the folder may then contain some of the files.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            entries = _check(archive, limits)
            needed = sum(info.file_size for info, _ in entries)
            into.mkdir(parents=True)
            if needed > shutil.disk_usage(into).free:
                _refuse("disk", f"needs {needed / 1e6:.0f} MB, more than the disk has free")
            n_left = limits.total_bytes
            taken: set[str] = set()
            for info, parts in entries:
                path = into.joinpath(*_make_unique(parts, taken))
                path.parent.mkdir(parents=True, exist_ok=True)
                n_left -= _copy(archive, info, path, limit=min(n_left, limits.file_bytes))
    except DataError:  # also a ValueError
        raise
    except (FileExistsError, NotADirectoryError) as err:
        _refuse("names", "holds a file and a folder of one name", err)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError) as err:
        _refuse("damaged", f"is no zip file or is damaged ({err})", err)
    except OSError as err:
        if err.errno is not None:  # a disk error; bz2's errors for damaged data have no number
            raise
        _refuse("damaged", f"is no zip file or is damaged ({err})", err)
    except ZIP_ERRORS as err:
        _refuse("unsupported", f"is packed in a way that cannot be read ({err})", err)


def _check(
    archive: zipfile.ZipFile, limits: ZipLimits
) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """Check the zip's directory against the limits; return files with cleaned names."""
    infos = archive.infolist()
    if len(infos) > limits.n_files:
        _refuse("too_many", f"holds {len(infos)} entries; at most {limits.n_files} are taken")
    entries = []
    for info in infos:
        parts = _check_name(info)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            _refuse("link", "holds a symbolic link; only plain files are taken")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            _refuse("special", "holds a device or pipe; only plain files are taken")
        if info.flag_bits & _ENCRYPTED_FLAG:
            _refuse("encrypted", "is protected by a password; pack it again without one")
        if info.file_size > limits.file_bytes:
            _refuse(
                "too_big", f"holds a file of {info.file_size / 1e6:.0f} MB when unpacked; at most "
                f"{limits.file_bytes / 1e6:.0f} MB are taken",
            )  # fmt: skip
        if info.file_size > _CHUNK and info.file_size > limits.ratio * max(1, info.compress_size):
            _refuse("bomb", "holds a file that unpacks to many hundred times its size")
        if parts and not info.is_dir():
            entries.append((info, parts))
    total = sum(info.file_size for info, _ in entries)
    if total > limits.total_bytes:
        _refuse(
            "too_big", f"unpacks to {total / 1e6:.0f} MB; at most "
            f"{limits.total_bytes / 1e6:.0f} MB are taken",
        )  # fmt: skip
    if not entries:
        _refuse("empty", "holds no file")
    return entries


def _check_name(info: zipfile.ZipInfo) -> tuple[str, ...]:
    """The cleaned parts of a name; empty if the file is to be ignored.

    Raises:
        DataError: the name points outside the folder.
    """
    name = _decode_name(info).replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        _refuse("path", "holds a name that points out of its folder")
    if len(parts) > _MAX_DEPTH:
        _refuse("path", f"holds folders nested more than {_MAX_DEPTH} deep")
    if any(map(is_system_folder, parts)) or (parts and is_system_file(parts[-1])):
        return ()
    return tuple(clean(part) for part in parts)


def _decode_name(info: zipfile.ZipInfo) -> str:
    """Decode a name; without the UTF-8 flag it is often UTF-8 or (Chinese Windows) GB 18030."""
    if info.flag_bits & _UTF8_FLAG:
        return info.filename
    raw = info.filename.encode("cp437", errors="replace")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.filename


def _make_unique(parts: tuple[str, ...], taken: set[str]) -> tuple[str, ...]:
    """Number names that a file system might treat as the same."""
    stem, suffix = os.path.splitext(parts[-1])
    found, number = parts, 1
    while "/".join(found).casefold() in taken:
        number += 1
        found = (*parts[:-1], f"{stem}-{number}{suffix}")
    taken.add("/".join(found).casefold())
    return found


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, *, limit: int) -> int:
    """Unpack one file without trusting the size in its header; return the bytes written."""
    n_written = 0
    with archive.open(info) as packed, path.open("xb") as handle:
        while chunk := packed.read(_CHUNK):
            n_written += len(chunk)
            if n_written > limit:
                _refuse("too_big", "unpacks to more than it says and than is taken")
            handle.write(chunk)
    return n_written


def find_root(folder: Path) -> Path:
    """Descend through folders that only contain another folder."""
    while True:
        inside = [p for p in folder.iterdir() if not p.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir() or find_split(inside[0].name):
            return folder
        folder = inside[0]


def _refuse(kind: str, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise DataError(
        f"the zip {reason}. Pack a folder with one subfolder per class, or with train, val and "
        "test, as a plain zip.",
        code=f"zip.{kind}",
        params={"reason": reason},
    ) from cause
