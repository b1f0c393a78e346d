"""The image of the Secondary Capture: overlays side by side below the answer.

Lines are wrapped, never truncated; the research notice comes first, on its own line. Class names
that Pillow's font cannot display are replaced by their number.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from core.answers.diagnosis import RESEARCH_USE, Diagnosis, write_percent

_MIN_SHEET_PX = 900  # wide enough for the text
_LINE = 1.4  # relative to the font size
_WHITE, _ORANGE = (255, 255, 255), (255, 200, 120)
_NO_LETTER = "\U0010ffff"  # drawn with the font's glyph for missing characters


def say_answer(diagnosis: Diagnosis) -> str:
    """The answer in a few English words."""
    if diagnosis.abstain_reason == "novel":
        return "No answer: not the kind of image the model knows"
    if diagnosis.abstain_reason == "uncertain":
        return "No answer: too close to call"
    return f"Answer: {diagnosis.predicted_class}"


def lay_out(diagnosis: Diagnosis, pictures: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Lay out a Secondary Capture: overlays side by side, the answer and its limits above.

    Args:
        diagnosis: with pixels.
        pictures: caption -> (H, W, 3) overlay, all of one size. Empty: only the image is shown, as
            for a novel image, which has no answer to explain.

    Returns:
        (H', W', 3) uint8; overlays are not resampled.
    """
    assert diagnosis.pixels is not None
    is_novel = diagnosis.abstain_reason == "novel"
    shown = {"": diagnosis.pixels} if is_novel or not pictures else dict(pictures)
    height, width = diagnosis.pixels.shape[:2]
    side = max(width, _MIN_SHEET_PX // len(shown))
    font = _load_font(max(12, side * len(shown) // 48))
    head = _wrap_all(_write_head(diagnosis, font), font, width=side * len(shown))
    captions = [_wrap_all([_spell(text, diagnosis, font)], font, width=side) for text in shown]
    n_lines = len(head) + max(map(len, captions))
    top = round((n_lines + 0.4) * _LINE * font.size)
    sheet = PILImage.new("RGB", (side * len(shown), height + top))
    pen = ImageDraw.Draw(sheet)
    _draw(pen, head, font, at=(0, 0), fill=_WHITE)
    for index, (lines, picture) in enumerate(zip(captions, shown.values(), strict=True)):
        _draw(pen, lines, font, at=(index * side, len(head)), fill=_ORANGE)
        sheet.paste(PILImage.fromarray(picture), (index * side, top))
    return np.asarray(sheet, dtype=np.uint8)


def _write_head(diagnosis: Diagnosis, font: ImageFont.FreeTypeFont) -> list[str]:
    return [
        RESEARCH_USE,
        _spell(f"{say_answer(diagnosis)}{_format_probabilities(diagnosis)}", diagnosis, font),
        f"Model {diagnosis.model_id}, data {diagnosis.data_id}",
    ]


def _format_probabilities(diagnosis: Diagnosis) -> str:
    if diagnosis.abstain_reason == "novel":
        return ""
    parts = [f"{name} {write_percent(p)}" for name, p in diagnosis.probabilities.items()]
    return f" ({', '.join(parts)})"


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow includes one
    return font


def _draw(
    pen: ImageDraw.ImageDraw,
    lines: list[str],
    font: ImageFont.FreeTypeFont,
    *,
    at: tuple[int, int],
    fill: tuple[int, int, int],
) -> None:
    """Write lines at a position: pixels from the left, lines from the top."""
    left, first = at
    for index, line in enumerate(lines, start=first):
        place = (left + font.size / 2, (index + 0.15) * _LINE * font.size)
        pen.text(place, line, fill=fill, font=font)


def _wrap_all(texts: list[str], font: ImageFont.FreeTypeFont, *, width: int) -> list[str]:
    """Wrap lines to a width in pixels, including margins of half the font size."""
    return [line for text in texts if text for line in _wrap(text, font, width=width - font.size)]


def _wrap(text: str, font: ImageFont.FreeTypeFont, *, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word wider than a line continues on the next
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _spell(text: str, diagnosis: Diagnosis, font: ImageFont.FreeTypeFont) -> str:
    """Make text displayable: class names the font lacks by number, other characters as "?"."""
    numbers = {name: n for n, name in enumerate(diagnosis.probabilities, start=1)}
    for name in sorted(numbers, key=len, reverse=True):  # one name may contain another
        if not all(_has(font, letter) for letter in name):
            kind = "disease" if name == diagnosis.disease_class else "not disease"
            text = text.replace(name, f"class {numbers[name]} ({kind})")
    return "".join(letter if _has(font, letter) else "?" for letter in text)


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    return letter.isascii() or bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
