"""Atomic file writes (temporary name, then rename) and file hashes.

A reader sees either the old file or the new one, never a partial file. A writer that fails removes
its temporary file; a killed one leaves it with its process id in the name (core.files.abandoned).
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
    """Write a text file atomically as UTF-8; see ``write_whole``."""
    with write_whole(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a binary file atomically; see ``write_whole``."""
    with write_whole(path, durable=durable) as temporary:
        temporary.write_bytes(data)
