"""The synthetic eyes: seeded, marked, lesions where the mask is, data sets written atomically."""

import csv
from pathlib import Path

import numpy as np
import pytest

from core.errors import DataError
from core.images.decode import decode, encode_jpeg
from core.images.phantom import draw, find_mark, write_dataset


def test_same_seed_same_bytes_and_another_seed_another_eye() -> None:
    one, again, other = (draw(s, is_diseased=True, size=128) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.pixels, again.pixels)
    np.testing.assert_array_equal(one.mask, again.mask)
    assert np.abs(one.pixels.astype(int) - other.pixels).mean() > 5


def test_disease_changes_the_eye_only_near_its_mask() -> None:
    healthy, diseased = draw(3, is_diseased=False), draw(3, is_diseased=True)
    assert not healthy.mask.any()
    assert diseased.mask.any()
    change = np.abs(healthy.pixels.astype(int) - diseased.pixels).mean(axis=2)
    assert change[diseased.mask].mean() > 10 * change[~diseased.mask].mean()


def test_it_is_a_red_disc_on_black_with_a_bright_spot_and_a_mark() -> None:
    pixels = draw(1, is_diseased=False).pixels
    assert pixels[5, 5].max() < 30
    centre = pixels[150:230, 150:230].reshape(-1, 3).mean(0)
    assert centre[0] > centre[1] > centre[2]
    assert pixels.max() > 200
    corner = pixels[-16:, :80]
    assert (corner.max(axis=2) > 120).sum() > 40  # the word SYNTHETIC


def test_a_data_set_is_balanced_shared_by_nobody_and_written_once(tmp_path: Path) -> None:
    folder, told = tmp_path / "eyes", list[float]()
    write_dataset(folder, n_train=6, n_test=4, size=64, progress=lambda done, _: told.append(done))
    with (folder / "manifest.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len({row["group"] for row in rows}) == 10
    assert sum(row["label"] == "disease" for row in rows) == 5
    assert all((folder / row["file"]).is_file() for row in rows)
    assert all((folder / row["mask"]).is_file() for row in rows if row["label"] == "disease")
    assert told[-1] == 1.0
    stamp = (folder / "manifest.csv").stat().st_mtime_ns
    write_dataset(folder, n_train=6, n_test=4, size=64)
    assert (folder / "manifest.csv").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="holds something else"):
        write_dataset(folder, n_train=8, n_test=4, size=64)


def test_too_small_an_eye_is_refused() -> None:
    with pytest.raises(DataError, match="at least 64 px, got 32"):
        draw(0, is_diseased=False, size=32)


@pytest.mark.parametrize("size", [64, 384])
def test_the_mark_is_recognised_and_nothing_else(size: int, rng: np.random.Generator) -> None:
    eye = draw(11, is_diseased=False, size=size).pixels
    before = eye.copy()
    mark = find_mark(eye)
    assert mark is not None
    assert mark.left < 0.05
    assert mark.top > 0.85
    np.testing.assert_array_equal(eye, before)
    assert find_mark(decode(encode_jpeg(eye), name="eye.jpg").pixels) == mark
    assert find_mark(eye[:-1]) is None  # not square: another program's image
    assert find_mark(np.ascontiguousarray(eye[::-1])) is None
    assert find_mark(np.full_like(eye, 190)) is None
    assert find_mark(rng.integers(0, 255, eye.shape, dtype=np.uint8)) is None
