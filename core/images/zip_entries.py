"""List and read the images in an uploaded zip, one at a time, without unpacking to disk.

Owns the limits: encrypted entries, nested archives, entries that exceed the maximum file size when
unpacked or have a suspicious compression ratio. ``core.images.decode`` decides what an entry
contains.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from core.errors import ImageError
from core.files.zips import ZIP_ERRORS

_MAX_ENTRIES = 10_000  # maximum read; no real upload has millions of entries
_MAX_RATIO = 200  # unpacked / packed size; images never compress that much
_SMALL_BYTES = 2**20  # below this, any ratio is harmless
_IGNORED = {"thumbs.db", "desktop.ini", ".ds_store", "dicomdir"}


@dataclass(frozen=True)
class Entry:
    """One file of an archive."""

    name: str  # last part of its path, for display
    place: int  # index in the archive's directory, because names may be repeated
    n_bytes: int  # unpacked size according to the directory


def is_zip(data: bytes) -> bool:
    """Recognise an archive by its first bytes."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def list_entries(data: bytes) -> list[Entry]:
    """List the files of an archive in order, without folders and system files.

    Raises:
        ImageError: the archive is damaged, empty, or has more than 10,000 entries.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except ZIP_ERRORS as err:
        raise ImageError(
            "the ZIP archive is damaged; pack it again.",
            code="image.zip_damaged",
        ) from err
    if len(infos) > _MAX_ENTRIES:
        raise ImageError(
            f"the ZIP archive has {len(infos)} entries; at most {_MAX_ENTRIES} are looked at. "
            "Pack fewer files.",
            code="image.zip_entries",
            params={"n": len(infos), "limit": _MAX_ENTRIES},
        )
    entries = [
        Entry(PurePosixPath(info.filename).name, place, info.file_size)
        for place, info in enumerate(infos)
        if not info.filename.endswith("/") and _is_visible(info.filename)
    ]
    if not entries:
        raise ImageError(
            "the ZIP archive holds no file; pack the images themselves.", code="image.zip_empty"
        )
    return entries


def read_entry(data: bytes, place: int, *, max_bytes: int) -> bytes:
    """Unpack one file into memory.

    Args:
        data: the archive.
        place: index in its directory, as returned by ``list_entries``.
        max_bytes: maximum unpacked size, whatever the directory says.

    Raises:
        ImageError: the entry is encrypted, too large, too compressed, an archive, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = archive.infolist()[place]
            _check(info, max_bytes=max_bytes)
            with archive.open(info) as handle:
                unpacked = handle.read(max_bytes + 1)
    except ImageError:  # also a ValueError
        raise
    except ZIP_ERRORS as err:
        raise ImageError(
            "a file in the ZIP archive is damaged; pack it again.",
            code="image.zip_damaged",
        ) from err
    if len(unpacked) > max_bytes:
        raise _too_big(len(unpacked), max_bytes)
    if is_zip(unpacked):
        raise ImageError(
            "the ZIP archive holds another archive; pack the images themselves.",
            code="image.zip_nested",
        )
    return unpacked


def _check(info: zipfile.ZipInfo, *, max_bytes: int) -> None:
    if info.flag_bits & 0x1:
        raise ImageError(
            "the file in the ZIP archive is encrypted; pack it without a password.",
            code="image.zip_encrypted",
        )
    if info.file_size > max_bytes:
        raise _too_big(info.file_size, max_bytes)
    if info.file_size > max(_SMALL_BYTES, _MAX_RATIO * info.compress_size):
        raise ImageError(
            "the file in the ZIP archive unpacks to far more than a picture would; it was not "
            "opened.",
            code="image.zip_bomb",
        )


def _too_big(n_bytes: int, max_bytes: int) -> ImageError:
    size_mb, limit_mb = f"{n_bytes / 2**20:.0f}", max_bytes // 2**20
    return ImageError(
        f"the file has {size_mb} MB unpacked; the limit is {limit_mb} MB.",
        code="upload.too_big",
        params={"size_mb": size_mb, "limit_mb": limit_mb},
    )


def _is_visible(path: str) -> bool:
    parts = PurePosixPath(path).parts
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return bool(parts) and not is_hidden and parts[-1].lower() not in _IGNORED
