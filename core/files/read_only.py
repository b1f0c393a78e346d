"""Whether a folder can be written, so that whatever only reads goes on without.

Owns the question, which leaves no trace in the folder.
"""

import os
from pathlib import Path


def is_read_only(folder: Path) -> bool:
    """Whether nothing can be written into a folder: by its file system or its permissions.

    Args:
        folder: one that is not there yet is judged by the folder in which it would be made.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    return there is None or not os.access(there, os.W_OK | os.X_OK)
