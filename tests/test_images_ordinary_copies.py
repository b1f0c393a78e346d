"""Ordinary copies: the same image, a little worse, smaller or trimmed."""

import numpy as np

from core.images import phantom
from core.images.ordinary_copies import KINDS, recompress, resize, trim


def test_copies_have_the_stated_size_and_content() -> None:
    pixels = phantom.draw(3, is_diseased=True, size=120).pixels
    again = recompress(pixels, quality=75).astype(int)
    assert again.shape == pixels.shape
    assert 0 < np.abs(again - pixels).mean() < 8
    assert (
        np.abs(recompress(pixels, quality=20).astype(int) - pixels).mean()
        > np.abs(again - pixels).mean()
    )
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :, 0] = 200
    assert recompress(red)[4, 4, 0] > 150 > recompress(red)[4, 4, 2]  # channels stay in order
    assert resize(pixels).shape == (60, 60, 3)
    np.testing.assert_array_equal(trim(pixels), pixels[6:114, 6:114])


def test_every_kind_works_on_the_smallest_image() -> None:
    one = np.full((1, 1, 3), 7, np.uint8)
    for make in KINDS.values():
        assert make(one).shape == (1, 1, 3)
