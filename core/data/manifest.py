"""Read a data folder's manifest.csv, including its extra columns.

Owns parsing and the extra columns (age, device, ...). The meaning of split, label, patient and mask
is in core.data.datasets.
"""

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from core.errors import DataError

NAME = "manifest.csv"
_USED = {"file", "split", "label", "group", "mask"}


def read_rows(root: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Read the whole table.

    Returns:
        The column names, and one dictionary per row with stripped values.

    Raises:
        DataError: the manifest is not a UTF-8 CSV table.
    """
    try:
        with (root / NAME).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            names = tuple(name for name in reader.fieldnames or () if name)
            rows = [{name: (row.get(name) or "").strip() for name in names} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise refuse(f"is not a UTF-8 CSV table ({err})") from err
    return names, rows


def refuse(reason: str) -> DataError:
    """Build the error for an unusable manifest."""
    return DataError(
        f"{NAME} {reason}. Expected columns file,split,label and, if known, group and mask, "
        "with paths relative to the folder.",
        code="data.manifest",
        params={"reason": reason},
    )


def name_key(file: str) -> str:
    """Convert a cell to an image key: ``./a.png`` is the image ``a.png``."""
    return PurePosixPath(file).as_posix()


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
        for all keys are left out; without a manifest there are none.

    Raises:
        DataError: the manifest is not a UTF-8 CSV table.
    """
    if not (root / NAME).is_file():
        return {}
    listed, table = read_rows(root)
    names = [name for name in listed if name not in _USED]
    rows = {name_key(row.get("file", "")): row for row in table}
    if with_patients:
        names.append("group")
    columns = {name: tuple(rows.get(key, {}).get(name, "") for key in keys) for name in names}
    return {name: values for name, values in columns.items() if any(values)}
