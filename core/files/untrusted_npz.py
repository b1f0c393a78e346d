"""Check an untrusted npz file's headers before reading its arrays.

Owns the limits on size and proportion. What the arrays mean is for their reader to say.
"""

import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

ERRORS = (  # what reading such a file may raise
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
_MAX_BYTES = 4 << 30  # of all arrays together
_MAX_RATIO = 200  # unpacked to packed: pictures never shrink that far
_SMALL_BYTES = 1 << 20  # below, any ratio is harmless


def check_claims(path: Path, names: Iterable[str]) -> None:
    """Refuse arrays that would fill the memory, without reading them.

    Args:
        path: of the file.
        names: of the arrays that will be read; those that are not there do not matter.

    Raises:
        ValueError: they claim too much, or more than is there, or unpack out of proportion.
        ERRORS: the file, or a header in it, cannot be read.
    """
    n_left = _MAX_BYTES
    with zipfile.ZipFile(path) as archive:
        listed = set(archive.namelist())
        for name in (f"{name}.npy" for name in names):
            if name not in listed:
                continue
            info = archive.getinfo(name)
            with archive.open(info) as handle:
                n_bytes = _read_size(handle)
            n_left -= n_bytes
            if n_bytes > info.file_size:
                raise ValueError(f"{name} claims {n_bytes} bytes and has {info.file_size}")
            if n_bytes > max(_SMALL_BYTES, _MAX_RATIO * info.compress_size):
                raise ValueError(f"{name} unpacks to many hundred times its size")
            if n_left < 0:
                raise ValueError(f"its arrays have more than {_MAX_BYTES >> 30} GB")


def _read_size(handle: IO[bytes]) -> int:
    """Bytes of the values of an array, as its header claims."""
    version = np.lib.format.read_magic(handle)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for field names that pictures do not have
        raise ValueError(f"an array is in format {version}")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _is_fortran, dtype = read(handle)
    return math.prod(shape) * dtype.itemsize
