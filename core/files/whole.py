"""Atomic file writes (temporary name, then rename) and file hashes.

A reader sees either the old file or the new one, never a partial file. A writer that fails removes
its temporary file; a killed one leaves it with its process id in the name (core.files.abandoned).
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ConfigError
from core.files.names import show_name


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_writable(path: Path) -> None:
    """Check that a file can be written, before the work whose result it is to hold.

    Args:
        path: of the file; folders on the way are made, an existing file is left as it is.

    Raises:
        ConfigError: it is a folder, or nothing can be written beside it.
    """
    try:
        if path.is_dir():
            raise ConfigError(
                f"cannot write {show_name(path)}: it is a folder; name a file in it.",
                code="output.folder",
            )
        check_writable_folder(path.parent)
    except ConfigError:
        raise
    except (OSError, ValueError) as err:
        raise refuse_write(path, err) from err


def check_writable_folder(folder: Path) -> None:
    """Check that files can be written into a folder, which is made if it is not there.

    Raises:
        ConfigError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"0")
            handle.flush()
    except (OSError, ValueError) as err:
        raise refuse_write(folder, err) from err


def refuse_write(path: Path, err: OSError | ValueError) -> ConfigError:
    """Build the error for a file or folder that cannot be written."""
    reason = err.strerror if isinstance(err, OSError) and err.strerror else err
    return ConfigError(
        f"cannot write {show_name(path)} ({reason}).",
        code="output.unwritable",
    )


@contextmanager
def write_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; rename it when the block ends.

    Args:
        path: the file to create or replace; its folder must exist.
        durable: flush to the disk before the rename, so that the file survives a power cut.

    Raises:
        OSError: from the block, the flush or the rename; the temporary file has been removed.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file atomically as UTF-8, lone surrogates escaped; see ``write_whole``."""
    with write_whole(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a binary file atomically; see ``write_whole``."""
    with write_whole(path, durable=durable) as temporary:
        temporary.write_bytes(data)
