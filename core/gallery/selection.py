"""Select images by an outline on the map, by filters or by name.

Owns masks over the rows of a table. Knows nothing of models or maps: coordinates and columns are
passed in as arrays. A filter is a record that converts to JSON, so that it can be saved.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, ShapeError, check_shape

Range = tuple[float, float]


def find_in_polygon(
    xy: NDArray[np.floating], polygon: Sequence[tuple[float, float]]
) -> NDArray[np.int64]:
    """Find the points inside a closed outline, by the even-odd rule.

    Args:
        xy: (N, 2) points.
        polygon: three or more corners in order; the last is joined to the first.

    Returns:
        Ascending rows.

    Raises:
        ShapeError: wrong width, or fewer than three corners.

    Reference: Shimrat 1962, CACM 5(8), 434 (crossing number).
    """
    check_shape("xy", xy, (None, 2))
    if len(polygon) < 3:
        raise ShapeError(f"polygon: expected at least 3 corners, got {len(polygon)}.")
    corners = np.asarray(polygon, dtype=np.float64)
    low, high = corners.min(0), corners.max(0)
    candidates = np.flatnonzero(((xy >= low) & (xy <= high)).all(axis=1))
    x, y = xy[candidates].astype(np.float64).T
    inside = np.zeros(len(candidates), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        if y1 != y0:
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return candidates[inside]


def find_in_box(
    xy: NDArray[np.floating], *, corner: tuple[float, float], opposite: tuple[float, float]
) -> NDArray[np.int64]:
    """Find the (N, 2) points within a box, edges included."""
    check_shape("xy", xy, (None, 2))
    low, high = np.minimum(corner, opposite), np.maximum(corner, opposite)
    return np.flatnonzero(((xy >= low) & (xy <= high)).all(axis=1))


@dataclass(frozen=True)
class Filter:
    """Conditions for an image to be shown; an empty condition matches everything."""

    name_part: str = ""  # part of the file name, case-insensitive
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> values
    ranges: Mapping[str, Range] = field(default_factory=dict)  # column -> minimum and maximum

    def to_json(self) -> str:
        """Convert to one line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Filter":
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: the text is not a saved filter.
        """
        try:
            raw = json.loads(text)
            return Filter(
                name_part=str(raw["name_part"]),
                allowed={str(k): tuple(map(str, v)) for k, v in raw["allowed"].items()},
                ranges={str(k): (float(v[0]), float(v[1])) for k, v in raw["ranges"].items()},
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as err:
            raise ConfigError(
                f"a saved filter cannot be read ({err}); delete it and save it again.",
                code="config.filter",
            ) from err


def apply_filter(
    wanted: Filter, keys: Sequence[str], columns: Mapping[str, NDArray[Any]]
) -> NDArray[np.bool_]:
    """Find which rows match the filter.

    Args:
        wanted: conditions; those on a missing column match everything.
        keys: (N,) file names.
        columns: name -> (N,) values; text for ``allowed``, numbers for ``ranges``. A missing number
            (nan) is in no range, however wide.

    Returns:
        (N,) bool.
    """
    passes = np.ones(len(keys), dtype=bool)
    if wanted.name_part:
        part = wanted.name_part.lower()
        passes &= np.fromiter((part in key.lower() for key in keys), dtype=bool, count=len(keys))
    for name, values in wanted.allowed.items():
        if name in columns and values:
            passes &= np.isin(columns[name].astype(str), values)
    for name, (least, most) in wanted.ranges.items():
        if name in columns:
            passes &= (columns[name] >= least) & (columns[name] <= most)
    return passes


def count_values(values: NDArray[Any]) -> dict[str, int]:
    """Count each value, most frequent first, then by name."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    pairs = zip(names.tolist(), counts.tolist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
