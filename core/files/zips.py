"""What the standard library raises when it reads a damaged or hostile zip."""

import lzma
import struct
import zipfile
import zlib

ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, MemoryError),
    *(KeyError, IndexError),
)
