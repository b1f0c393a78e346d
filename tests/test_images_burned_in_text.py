"""Burned-in text: found where it was drawn, not in eyes, noise or single markers."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from core.errors import ShapeError
from core.images import phantom
from core.images.burned_in_text import find_text


def write(pixels: np.ndarray, text: str, *, size: int, at: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(pixels.copy())
    pen = ImageDraw.Draw(picture)
    pen.text(at, text, font=ImageFont.load_default(size), fill=(255, 255, 255))
    return np.asarray(picture)


@pytest.mark.parametrize("size", [18, 28, 44])
def test_a_name_is_found_where_it_stands(size: int) -> None:
    drawn = phantom.draw(1, is_diseased=True, size=768).pixels
    mark = phantom.find_mark(drawn)
    assert mark is not None
    assert find_text(drawn)  # its own mark, SYNTHETIC
    assert all(region.lies_in(mark) for region in find_text(drawn))
    eye = drawn[:-40]
    assert find_text(eye) == ()
    regions = find_text(write(eye, "DOE^JANE 4711", size=size, at=(20, 670)))
    assert regions
    assert regions[0].n_letters >= 4
    assert regions[0].top > 0.85
    assert regions[0].left < 0.1
    beside = write(drawn, "DOE^JANE", size=size, at=(20, 670))  # above the mark
    assert any(not region.lies_in(mark) for region in find_text(beside))


def test_dark_letters_on_light_are_found() -> None:
    page = np.full((400, 400, 3), 220, np.uint8)
    dark = 255 - write(255 - page, "19570312", size=24, at=(100, 40))
    assert find_text(dark)


def test_single_markers_and_noise_are_no_text(rng: np.random.Generator) -> None:
    grey = np.full((512, 512, 3), 90, np.uint8)
    assert find_text(write(grey, "R", size=40, at=(30, 30))) == ()
    noise = rng.normal(120, 25, (512, 512, 1)).repeat(3, axis=2)
    assert find_text(np.clip(noise, 0, 255).astype(np.uint8)) == ()


def test_the_picture_is_left_alone_and_shapes_are_checked() -> None:
    eye = phantom.draw(2, is_diseased=False, size=256).pixels
    before = eye.copy()
    find_text(eye)
    np.testing.assert_array_equal(eye, before)
    with pytest.raises(ShapeError, match="pixels"):
        find_text(np.zeros((4, 4), np.uint8))
