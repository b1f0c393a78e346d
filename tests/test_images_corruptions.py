"""Corruption is graded: higher levels differ more from the image; seeds are deterministic."""

import numpy as np
import pytest

from core.errors import ShapeError
from core.images.corruptions import N_LEVELS, STRENGTHS, corrupt
from core.images.phantom import draw


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return draw(900_010, is_diseased=True, size=200).pixels


@pytest.mark.parametrize("kind", STRENGTHS)
def test_each_level_lies_farther_from_the_image(kind: str, pixels: np.ndarray) -> None:
    before = pixels.copy()
    gaps = [
        np.abs(corrupt(pixels, kind, level=level).astype(float) - pixels).mean()
        for level in range(N_LEVELS + 1)
    ]
    assert gaps[0] == 0
    assert gaps == sorted(gaps)
    assert gaps[1] > 0.2
    np.testing.assert_array_equal(pixels, before)
    again = corrupt(pixels, kind, level=2, seed=3)
    np.testing.assert_array_equal(again, corrupt(pixels, kind, level=2, seed=3))
    assert again.shape == pixels.shape
    assert again.dtype == np.uint8


def test_strengths_by_hand() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    noisy = corrupt(grey, "noise", level=2).astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert (noisy[:, :, 0] == noisy[:, :, 2]).all()  # noise is the same in all channels
    assert corrupt(grey, "brightness", level=3)[0, 0, 0] == round(255 * (128 / 255) ** 2)
    dot = np.zeros((65, 65, 3), dtype=np.uint8)
    dot[32, 62] = 255
    turned = corrupt(dot, "rotation", level=3).max(axis=2)
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    assert (row, column) == (32 - 15, 32 + 26)  # 30 degrees on a radius of 30


def test_unknown_damage_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected one of blur"):
        corrupt(pixels, "rain", level=1)
    with pytest.raises(ShapeError, match=r"level 0\.\.3"):
        corrupt(pixels, "blur", level=4)
