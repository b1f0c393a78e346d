"""Silence the image libraries' warnings while they decode.

They warn about unusual tags and quote the values, which could put a patient's name into the log.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warning filters are process-wide, and several sessions decode at once.
_LOCK = threading.RLock()


@contextmanager
def hush() -> Iterator[None]:
    """Run one thread at a time without warnings; can also be used as a decorator."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
