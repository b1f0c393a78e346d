"""Outlines, filters and exports: by hand, against slow references, and edge cases."""

import csv
import io

import cv2
import numpy as np
import pytest

from core.errors import ConfigError, ShapeError
from core.export.tables import export_csv, export_listing
from core.gallery.selection import Filter, apply_filter, count_values, find_in_box, find_in_polygon


def test_a_concave_outline_takes_what_is_inside() -> None:
    u_shape = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
    xy = np.array([[0.5, 2], [1.5, 2], [2.5, 2], [1.5, 0.5], [4, 1]], dtype=np.float32)
    assert find_in_polygon(xy, u_shape).tolist() == [0, 2, 3]


def test_an_outline_agrees_with_opencv(rng: np.random.Generator) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    radii = rng.uniform(0.3, 1.0, 40)
    star = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    xy = rng.uniform(-1, 1, size=(2000, 2)).astype(np.float32)
    contour = star.astype(np.float32).reshape(-1, 1, 2)
    slow = [
        i
        for i, (x, y) in enumerate(xy.tolist())
        if cv2.pointPolygonTest(contour, (x, y), False) > 0
    ]
    assert find_in_polygon(xy, star.tolist()).tolist() == slow


def test_an_outline_needs_three_corners() -> None:
    with pytest.raises(ShapeError, match="at least 3 corners, got 2"):
        find_in_polygon(np.zeros((1, 2)), [(0, 0), (1, 1)])
    with pytest.raises(ShapeError, match="xy"):
        find_in_polygon(np.zeros((1, 3)), [(0, 0), (1, 1), (1, 0)])


def test_a_box_may_be_drawn_from_any_corner() -> None:
    xy = np.array([[0, 0], [1, 1], [2, 2], [1, 3]])
    for corner, opposite in (((0, 0), (1, 2)), ((1, 2), (0, 0)), ((0, 2), (1, 0))):
        assert find_in_box(xy, corner=corner, opposite=opposite).tolist() == [0, 1]


KEYS = ("train/a/One.png", "train/b/two.png", "train/b/three.png")
COLUMNS = {
    "label": np.array(["normal", "disease", "disease"]),
    "purity": np.array([0.2, 0.9, np.nan]),
}


@pytest.mark.parametrize(
    ("wanted", "passing"),
    [
        (Filter(), [0, 1, 2]),
        (Filter(name_part="ONE"), [0]),
        (Filter(allowed={"label": ("disease",)}), [1, 2]),
        (Filter(allowed={"label": ()}), [0, 1, 2]),
        (Filter(ranges={"purity": (0.5, 1.0)}), [1]),
        (Filter(ranges={"purity": (-1e9, 1e9)}), [0, 1]),  # a missing number is in no range
        (Filter(allowed={"not there": ("x",)}, ranges={"nor this": (0, 1)}), [0, 1, 2]),
        (Filter(name_part="train/b", ranges={"purity": (0.0, 0.5)}), []),
    ],
)
def test_filters(wanted: Filter, passing: list[int]) -> None:
    assert np.flatnonzero(apply_filter(wanted, KEYS, COLUMNS)).tolist() == passing
    assert Filter.from_json(wanted.to_json()) == wanted


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name_part":"","allowed":[1],"ranges":{}}'])
def test_a_damaged_saved_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="saved filter cannot be read"):
        Filter.from_json(text)


def test_counts_come_most_frequent_first() -> None:
    assert list(count_values(COLUMNS["label"]).items()) == [("disease", 2), ("normal", 1)]
    assert count_values(np.array([])) == {}


def test_exports_hold_the_selection_and_no_formula() -> None:
    keys = ("=cmd()", *KEYS[1:])
    text = export_csv(np.array([0, 2]), keys, {**COLUMNS, "z": np.array([-1.5, 0.0, 2.0])})
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [
        ["file", "label", "purity", "z"],
        ["'=cmd()", "normal", "0.2", "-1.5"],
        ["train/b/three.png", "disease", "", "2"],
    ]
    listing = export_listing(np.array([1]), KEYS, root="/data/")
    assert listing == "/data/train/b/two.png\n"
