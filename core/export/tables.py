"""A selection of gallery images as a CSV table or a list of names."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def export_csv(
    rows: NDArray[np.int64], keys: Sequence[str], columns: Mapping[str, NDArray[Any]]
) -> str:
    """Export the selected rows as CSV; cells that a spreadsheet would execute are defused."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["file", *columns])
    for row in rows.tolist():
        cells = [_write_cell(values[row]) for values in columns.values()]
        writer.writerow([defuse(cell) for cell in (keys[row], *cells)])
    return out.getvalue()


def export_listing(rows: NDArray[np.int64], keys: Sequence[str], *, root: str) -> str:
    """List the selected files, one full path per line, e.g. for ``rsync --files-from``."""
    base = root.rstrip("/")
    return "".join(f"{base}/{keys[row]}\n" for row in rows.tolist())


def _write_cell(value: Any) -> str:
    if isinstance(value, np.floating | float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)


def defuse(cell: object) -> object:
    """Prefix text that a spreadsheet would take for a formula (CSV injection); keep numbers."""
    is_risky = isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") and not _is_number(cell)
    return f"'{cell}" if is_risky else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
