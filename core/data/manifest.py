"""Read the table of a data folder: which file is in which split, class and patient.

Owns the form of the table: its delimiter, the names of its columns, its rows. What can be read in
one way only is read; everything else is refused with line and column. The files it names are
matched by the same cleaning that an unpacked upload's names went through.
"""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from core.data.folder_words import find_split
from core.errors import DataError
from core.files.names import clean, show_name

NAME = "manifest.csv"
_USED = ("file", "split", "label", "group", "mask")
_ALIASES = {
    "file": "filename file_name filepath file_path path image image_path image_name img",
    "split": "subset set partition fold dataset",
    "label": "class class_name diagnosis target category",
    "group": "patient patient_id patientid subject subject_id person",
    "mask": "mask_path mask_file segmentation",
}
_DELIMITERS = ",;\t|"
_MAX_ROWS = 5_000_000


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    line: int
    file: str
    split: str  # train, val, test or empty
    label: str
    group: str
    mask: str


@dataclass(frozen=True)
class Table:
    """A table with the names of its columns in this program's terms."""

    path: Path
    columns: Mapping[str, str]  # our name -> the table's
    extra: tuple[str, ...]  # the other columns
    rows: tuple[tuple[int, Mapping[str, str]], ...]  # line, values by the table's column names

    def read_row(self, line: int, values: Mapping[str, str]) -> Row:
        """Read one row's own columns.

        Raises:
            DataError: a split of no known name, an empty cell that must not be, or a path that
                leads out of the folder.
        """
        cells = {ours: values.get(theirs, "") for ours, theirs in self.columns.items()}
        file, mask = (cells.get(name, "").replace("\\", "/") for name in ("file", "mask"))
        for name, value in (("file", file), ("mask", mask)):
            parts = PurePosixPath(value).parts
            if ".." in parts or value.startswith("/") or re.match(r"[A-Za-z]:/", value):
                raise self._refuse_cell(line, name, "points out of its folder")
        if not file:
            raise self._refuse_cell(line, "file", "is empty")
        if not cells["label"]:
            raise self._refuse_cell(line, "label", "is empty")
        split = cells.get("split", "")
        known = find_split(split) if split else ""
        if known is None:
            said = f"is {split!r}; known are train, val, test"
            raise self._refuse_cell(line, "split", said)
        return Row(line, file, known, cells["label"], cells.get("group", ""), mask)

    def _refuse_cell(self, line: int, name: str, why: str) -> DataError:
        return refuse(f"in line {line}, column {self.columns[name]!r}: {why}", self.path.name)


class FileFinder:
    """Finds the files that a table names, also where their names were written otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, file: str) -> Path | None:
        """The file of that name below the root, or the only one whose cleaned name is the same."""
        path = self.root / file
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # too long, or a null character
            pass
        found = self._by_clean_name.get(_clean_key(file), [])
        return found[0] if len(found) == 1 else None

    @cached_property
    def _by_clean_name(self) -> Mapping[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.root.rglob("*"):
            if path.is_file():
                key = _clean_key(show_name(path.relative_to(self.root).as_posix()))
                found.setdefault(key, []).append(path)
        return found


def _clean_key(file: str) -> str:
    parts = PurePosixPath(unicodedata.normalize("NFC", file)).parts
    return "/".join(clean(part) for part in parts).casefold()


def read_table(path: Path) -> Table:
    """Read a table of images.

    Args:
        path: a UTF-8 file with commas, semicolons, tabs or bars between cells, and a first line of
            column names: file and label, and if known split, group and mask, or other usual names
            of these.

    Raises:
        DataError: it is no such table; the message names the line and column.
    """
    text = _read_text(path)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip(f"{_DELIMITERS} ")), "")
    delimiter = max(_DELIMITERS, key=lambda sign: len(_match_columns(_cells(first, sign))))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        numbered = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as err:
        raise refuse(f"is not a UTF-8 CSV table ({err})", path.name) from err
    if len(numbered) > _MAX_ROWS:
        raise refuse(f"has more than {_MAX_ROWS} rows", path.name)
    if not numbered:
        raise refuse("is empty", path.name)
    header = [cell.strip() for cell in numbered[0][1]]
    columns = _match_columns(header)
    _check_header(header, columns, path.name)
    kept = []
    for number, row in numbered[1:]:
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            raise refuse(
                f"in line {number}: has {len(row)} cells, the first line {len(header)}; quote "
                "cells that hold the delimiter",
                path.name,
            )
        values = [cell.strip() for cell in row]
        kept.append((number, dict(zip(header, values, strict=False))))
    extra = tuple(name for name in header if name and name not in columns.values())
    return Table(path, columns, extra, tuple(kept))


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as err:
        raise refuse(f"cannot be read ({err.strerror or err})", path.name) from err
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as err:
        line = data[: err.start].count(b"\n") + 1
        raise refuse(f"is not a UTF-8 CSV table (line {line})", path.name) from err
    if "\0" in text:
        raise refuse("is not a UTF-8 CSV table (it holds null characters)", path.name)
    return text


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(delimiter)]


def _match_columns(header: Sequence[str]) -> dict[str, str]:
    """Our column names -> the table's; exact names first, then a usual one if there is only one."""
    by_name: dict[str, list[str]] = {}
    for cell in header:
        by_name.setdefault(re.sub(r"[\s-]+", "_", cell.strip().casefold()), []).append(cell)
    columns = {}
    for name in _USED:
        exact = by_name.get(name, [])
        others = [cell for alias in _ALIASES[name].split() for cell in by_name.get(alias, [])]
        candidates = exact or others
        if len(candidates) == 1:
            columns[name] = candidates[0]
    return columns


def _check_header(header: Sequence[str], columns: Mapping[str, str], name: str) -> None:
    missing = sorted({"file", "label"} - set(columns))
    if missing:
        seen = ", ".join(map(repr, header[:8]))
        raise refuse(f"has no column {', '.join(missing)}, or several; it has {seen}", name)
    twice = [cell for cell, n in Counter(header).items() if n > 1 and cell]
    if twice:
        raise refuse(f"has the column {twice[0]!r} twice", name)


def refuse(reason: str, name: str = NAME) -> DataError:
    """Build the error for an unusable table."""
    return DataError(
        f"{name} {reason}. Expected the columns file and label and, if known, split (train, val, "
        "test), group and mask, with paths relative to the folder.",
        code="data.manifest",
        params={"reason": reason},
    )


def name_key(file: str) -> str:
    """Convert a cell to an image key: ``./a.png`` and ``.\\a.png`` are the image ``a.png``."""
    return PurePosixPath(file.replace("\\", "/")).as_posix()


def read_columns(
    root: Path, keys: Sequence[str], *, with_patients: bool = False
) -> dict[str, tuple[str, ...]]:
    """Read the extra columns.

    Args:
        root: the data folder.
        keys: of the images, as returned by ``name_key``.
        with_patients: include the column ``group``.

    Returns:
        column -> values in the order of the keys, empty string if missing. Columns that are empty
        for all keys are left out; without a table there are none.

    Raises:
        DataError: the table cannot be read.
    """
    if not (root / NAME).is_file():
        return {}
    table = read_table(root / NAME)
    names = list(table.extra)
    file = table.columns["file"]
    finder = FileFinder(root)
    rows: dict[str, Mapping[str, str]] = {}
    for _line, values in table.rows:
        rows[find_key(finder, values.get(file, ""))] = values
    columns = {name: tuple(rows.get(key, {}).get(name, "") for key in keys) for name in names}
    if with_patients and "group" in table.columns:
        theirs = table.columns["group"]
        columns["group"] = tuple(rows.get(key, {}).get(theirs, "") for key in keys)
    return {name: values for name, values in columns.items() if any(values)}


def find_key(finder: FileFinder, file: str) -> str:
    """The key of the file that a cell names; the cell's own name if there is no such file."""
    key = name_key(file)
    path = finder.find(key)
    return key if path is None else show_name(path.relative_to(finder.root).as_posix())
