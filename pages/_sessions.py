"""Free the memory of sessions whose tab was closed.

Streamlit keeps a closed page's session for a while, so that a lost connection finds its results
again, but drops it only when another session opens or closes: the uploads and results of the last
visitor would stay. What Python then frees lies in the C library's heaps until they are trimmed.
"""

import asyncio
import ctypes
import gc

import streamlit as st
from streamlit.runtime import get_instance

_MIN_INTERVAL_S = 1.0
_MAX_INTERVAL_S = 30.0
_N_TRIMS = 3  # after a session has gone: its last threads and buffers end a little later


async def sweep_closed_sessions() -> None:
    """Drop closed sessions in time and trim the heap after each; runs as long as the server."""
    keep_s = float(st.get_option("server.disconnectedSessionTTL"))
    interval_s = min(max(keep_s / 4, _MIN_INTERVAL_S), _MAX_INTERVAL_S)
    known: set[str] = set()
    n_due = 0
    while True:
        await asyncio.sleep(interval_s)
        kept = list_sessions()
        if known - kept:
            n_due = _N_TRIMS
        if n_due:
            gc.collect()
            trim_heap()
            n_due -= 1
        known = kept


def list_sessions() -> set[str]:
    """Ids of open sessions, and of closed ones that are kept; the call drops those kept enough."""
    # No public call lists the kept ones; the length query in list() is what drops the expired.
    return {info.session.id for info in get_instance()._session_mgr.list_sessions()}


def trim_heap() -> bool:
    """Give free memory back to the machine, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
