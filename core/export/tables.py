"""A selection of gallery images as a CSV table or a list of names."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.files.names import show_name

_FORMULA_SIGNS = frozenset("=+-@\t\r＝＋－＠")


def export_csv(
    rows: NDArray[np.int64], keys: Sequence[str], columns: Mapping[str, NDArray[Any]]
) -> str:
    """Export the selected rows as CSV; cells that a spreadsheet would execute are defused."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(map(defuse, ["file", *columns]))
    for row in rows.tolist():
        cells = [_write_cell(values[row]) for values in columns.values()]
        writer.writerow([defuse(cell) for cell in (keys[row], *cells)])
    return out.getvalue()


def export_listing(rows: NDArray[np.int64], keys: Sequence[str], *, root: str) -> str:
    """List the selected files, one full path per line, e.g. for ``rsync --files-from``.

    A name with a line break would be two names in such a list, so it is left out.
    """
    base = root.rstrip("/")
    paths = [f"{base}/{keys[row]}" for row in rows.tolist()]
    return "".join(f"{path}\n" for path in paths if len(path.splitlines()) == 1)


def _write_cell(value: Any) -> str:
    if isinstance(value, np.floating | float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)


def defuse(cell: object) -> object:
    """Make a cell safe for a spreadsheet: no formula (CSV injection), no lone surrogate.

    A formula begins with one of a few signs, in full width too where the spreadsheet is Japanese,
    perhaps after blanks. Numbers are kept.
    """
    if not isinstance(cell, str):
        return cell
    text = show_name(cell)
    is_risky = text.lstrip(" \n\0")[:1] in _FORMULA_SIGNS and not _is_number(text)
    return f"'{text}" if is_risky else text


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
