"""The sheet of a Secondary Capture: overlays side by side, the answer and its limits above."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from core.diagnosis import RESEARCH_USE, Diagnosis

_MIN_SHEET_PX = 900  # wide enough for the lines above


def say_answer(diagnosis: Diagnosis) -> str:
    """The answer in a few English words."""
    if diagnosis.abstain_reason == "novel":
        return "No answer: not the kind of image the model knows"
    if diagnosis.abstain_reason == "uncertain":
        return "No answer: too close to call"
    return f"Answer: {diagnosis.predicted_class}"


def lay_out(diagnosis: Diagnosis, pictures: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The sheet of a Secondary Capture: overlays side by side, the answer and its limits above.

    Args:
        diagnosis: with pixels.
        pictures: caption -> (H, W, 3) overlay of one size; empty: the image alone, as for a novel
            image: there is no answer to speak for.

    Returns:
        (H', W', 3) uint8; overlays keep their pixels.
    """
    assert diagnosis.pixels is not None
    is_novel = diagnosis.abstain_reason == "novel"
    shown = {"": diagnosis.pixels} if is_novel or not pictures else dict(pictures)
    height, width = diagnosis.pixels.shape[:2]
    side = max(width, _MIN_SHEET_PX // len(shown))
    size = max(12, side * len(shown) // 48)
    sheet = PILImage.new("RGB", (side * len(shown), height + 5 * size))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    lines = [f"{say_answer(diagnosis)}{_say_probabilities(diagnosis)}"]
    lines.append(f"Model {diagnosis.model_id}, data {diagnosis.data_id}. {RESEARCH_USE}")
    for index, line in enumerate(lines):
        pen.text((size // 2, size * (0.2 + 1.4 * index)), line, fill=(255, 255, 255), font=font)
    for index, (caption, picture) in enumerate(shown.items()):
        pen.text((index * side + size // 2, 3.2 * size), caption, fill=(255, 200, 120), font=font)
        sheet.paste(PILImage.fromarray(picture), (index * side, 5 * size))
    return np.asarray(sheet, dtype=np.uint8)


def _say_probabilities(diagnosis: Diagnosis) -> str:
    if diagnosis.abstain_reason == "novel":
        return ""
    return " (" + ", ".join(f"{c} {p:.1%}" for c, p in diagnosis.probabilities.items()) + ")"
