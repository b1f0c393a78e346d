"""Check an untrusted npz file's headers before reading its arrays.

Owns the limits on size and compression ratio. The caller interprets the arrays.
"""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from core.files.zips import ZIP_ERRORS

ERRORS = ZIP_ERRORS  # that reading such a file may raise
_MAX_BYTES = 4 << 30  # of all arrays together
_MAX_RATIO = 200  # unpacked / packed size; images never compress that much
_SMALL_BYTES = 1 << 20  # below this, any ratio is harmless


def check_claims(path: Path, names: Iterable[str]) -> None:
    """Refuse arrays that would fill the memory, without reading them.

    Args:
        path: of the file.
        names: of the arrays that will be read; missing ones are ignored.

    Raises:
        ValueError: the claimed size is too large, does not match the file, or is out of proportion.
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
    """Number of bytes of an array's values, according to its header."""
    version = np.lib.format.read_magic(handle)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for non-ASCII field names, unused here
        raise ValueError(f"an array is in format {version}")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _is_fortran, dtype = read(handle)
    return math.prod(shape) * dtype.itemsize
