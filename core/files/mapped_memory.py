"""Release the memory of memory-mapped files that are rarely read again.

Only Linux lists a process's mappings; elsewhere the system reclaims the pages when memory is short.
"""

import contextlib
import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # MADV_DONTNEED: the next access reads the page from the file again


def release_pages(path: Path) -> None:
    """Release a mapped file's pages; a later read loads them again.

    Args:
        path: of the file. Anything this process wrote to a private mapping of it is lost.
    """
    name = str(path.resolve())
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        advise = ctypes.CDLL(None).madvise
        for fields in (line.split(maxsplit=5) for line in lines):
            if fields[5:] == [name]:
                start, end = (int(text, 16) for text in fields[0].split("-"))
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
