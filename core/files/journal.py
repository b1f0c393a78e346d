"""Rows of results, written as they come, so that a killed run loses none and can go on.

The journal lies beside the result file as ``<result>.part``: a first line about the run,
then one JSON value per line. When the run is complete its results are written and it is removed.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from core.errors import ConfigError
from core.files.names import show_name

_SYNC_EVERY_S = 1.0


def find_journal(result: Path) -> Path:
    """Where the journal of a result file lies, if there is one."""
    return result.with_name(f"{result.name}.part")


def drop_nan(value: object) -> object:
    """Replace undefined numbers with null, because JSON has neither NaN nor Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: drop_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [drop_nan(item) for item in value]
    return value


class Journal:
    """The rows of one run, a context manager. The file is kept unless ``remove`` is called."""

    def __init__(self, result: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        """Open or begin a journal.

        Args:
            result: the file that the run is to write.
            about: what the rows depend on; only a run of the same can go on.
            resume: go on with rows that are there.

        Raises:
            ConfigError: rows are there and ``resume`` is not set, they are of another run, or
                another process is writing them.
        """
        self.path = find_journal(result)
        self._about = json.loads(json.dumps(dict(about)))
        self._resume = resume
        self._lock = FileLock(f"{self.path}.lock")
        self._handle: IO[bytes] | None = None
        self._synced = time.monotonic()
        self.n_rows = 0

    def __enter__(self) -> "Journal":
        try:
            self._lock.acquire(timeout=0)
        except Timeout as err:
            raise ConfigError(
                f"another process is writing {show_name(self.path)} now; wait for it or stop it.",
                code="output.busy",
            ) from err
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.close()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _open(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == 0:
            self._handle = self.path.open("wb")
            self._write({"about": self._about})
            return
        self._handle = self.path.open("r+b")
        self._cut_torn_line()
        about = self._read_about()
        if not self._resume:
            raise ConfigError(
                f"a run that was interrupted left {self.n_rows} results in {show_name(self.path)}; "
                "go on with --resume, or delete that file to start anew.",
                code="output.unfinished",
                params={"n": self.n_rows},
            )
        if about != self._about:
            changed = [k for k in self._about if about.get(k) != self._about[k]]
            raise ConfigError(
                f"the results in {show_name(self.path)} were made differently "
                f"({', '.join(changed)}); run it as before, or delete that file to start anew.",
                code="output.other_run",
            )

    def _cut_torn_line(self) -> None:
        """Drop a last line that the killed process did not finish, and count the others."""
        assert self._handle is not None
        end = n_lines = 0
        for line in self._handle:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            n_lines += 1
        self._handle.truncate(end)
        self._handle.seek(end)
        self.n_rows = max(0, n_lines - 1)
        if n_lines == 0:
            self._write({"about": self._about})

    def _read_about(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as handle:
                about: dict[str, Any] = json.loads(handle.readline())["about"]
                return dict(about)
        except (ValueError, KeyError, TypeError) as err:
            raise ConfigError(
                f"{show_name(self.path)} is no journal of results; move it away.",
                code="output.other_run",
            ) from err

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it survives the death of this process, and a power cut after a second.

        Raises:
            OSError: the disk is full or gone; the rows before are kept.
        """
        self._write(row)
        self.n_rows += 1

    def _write(self, value: Mapping[str, Any]) -> None:
        assert self._handle is not None
        line = json.dumps(drop_nan(value), ensure_ascii=False, allow_nan=False) + "\n"
        self._handle.write(line.encode("utf-8", "backslashreplace"))
        self._handle.flush()
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            os.fsync(self._handle.fileno())
            self._synced = time.monotonic()

    def read_rows(self) -> Iterator[dict[str, Any]]:
        """The rows written so far, in order."""
        with self.path.open("rb") as handle:
            handle.readline()
            for line in handle:
                yield json.loads(line)

    def remove(self) -> None:
        """Remove the file once its results are written elsewhere."""
        self.path.unlink(missing_ok=True)
