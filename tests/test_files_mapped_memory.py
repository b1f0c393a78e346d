"""Mapped files: their pages are released, and reload with the same bytes."""

import mmap
import sys
from pathlib import Path

import pytest

from core.files.mapped_memory import release_pages

SIZE = 1 << 22

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")


def count_resident(path: Path) -> int:
    """Bytes of the file resident in this process."""
    kilobytes, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            is_ours = fields[5:] == [str(path)]
        elif fields[0] == "Rss:" and is_ours:
            kilobytes += int(fields[1])
    return kilobytes * 1024


def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a file of weights.bin"
    path.write_bytes(b"\x07" * SIZE)
    other = tmp_path / "other.bin"
    other.write_bytes(b"\x01" * SIZE)
    with path.open("rb") as a, other.open("rb") as b:
        ours = mmap.mmap(a.fileno(), 0, access=mmap.ACCESS_READ)
        theirs = mmap.mmap(b.fileno(), 0, access=mmap.ACCESS_READ)
        assert ours[:] == b"\x07" * SIZE
        assert theirs[:] == b"\x01" * SIZE
        assert count_resident(path) == count_resident(other) == SIZE
        release_pages(path)
        assert count_resident(path) == 0
        assert count_resident(other) == SIZE
        assert ours[:] == b"\x07" * SIZE
        ours.close()
        theirs.close()


def test_a_file_that_is_not_mapped_is_no_matter(tmp_path: Path) -> None:
    release_pages(tmp_path / "absent")
