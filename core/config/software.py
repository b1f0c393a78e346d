"""The version of NeighborDx, with the commit if known."""

import functools
import os
import subprocess
from pathlib import Path

import core

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 5.0


@functools.cache
def describe_software() -> str:
    """``0.2.0``; in a checkout ``0.2.0 (commit 1a2b3c4)``, with ``-dirty`` if files are modified.

    An image built without the repository can set its commit in ``NEIGHBORDX_COMMIT``.
    """
    commit = os.environ.get("NEIGHBORDX_COMMIT", "").strip() or _read_commit()
    return f"{core.__version__} (commit {commit})" if commit else core.__version__


def _read_commit() -> str:
    if not (_ROOT / ".git").exists():  # otherwise git could report an enclosing repository
        return ""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
