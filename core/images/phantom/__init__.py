"""Synthetic colour fundus images with lesion masks, for the demo and for tests."""

from core.images.phantom.drawing import Phantom, draw
from core.images.phantom.mark import find_mark
from core.images.phantom.writing import write_dataset

__all__ = ["Phantom", "draw", "find_mark", "write_dataset"]
