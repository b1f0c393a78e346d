"""Silence the image libraries' warnings while they decode.

They warn of every odd tag, and quote its value: a patient's name would be in the server's log.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warning filters are process-wide, and several sessions decode at once.
_LOCK = threading.RLock()


@contextmanager
def hush() -> Iterator[None]:
    """Let one thread at a time work without warnings; also a decorator."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
