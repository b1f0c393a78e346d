"""What a data folder's manifest.csv says of its images beside what makes them a data set.

Owns the further columns (age, device, ...). Split, label, patient and mask are core.datasets's.
"""

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from core.errors import DataError

NAME = "manifest.csv"
_USED = {"file", "split", "label", "group", "mask"}


def read_columns(
    root: Path, keys: Sequence[str], *, with_patients: bool = False
) -> dict[str, tuple[str, ...]]:
    """Read the further columns.

    Args:
        root: the data folder.
        keys: of the images, as core.datasets makes them: ``./a.png`` is the image ``a.png``.
        with_patients: the column ``group`` as well.

    Returns:
        column -> values in the order of the keys, empty text where nothing is said. Columns that
        are empty for all of them are left out; without a manifest there is none.

    Raises:
        DataError: the manifest is no UTF-8 CSV table.
    """
    path = root / NAME
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            names = [name for name in reader.fieldnames or () if name and name not in _USED]
            rows = {
                PurePosixPath((row.get("file") or "").strip()).as_posix(): row for row in reader
            }
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(
            f"{NAME} is not a UTF-8 CSV table ({err}); save it as one.",
            code="data.manifest",
            params={"reason": str(err)},
        ) from err
    if with_patients:
        names.append("group")
    columns = {
        name: tuple((rows.get(key, {}).get(name) or "").strip() for key in keys) for name in names
    }
    return {name: values for name, values in columns.items() if any(values)}
