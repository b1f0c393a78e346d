"""Synthetic colour fundus images with lesion masks, for the demo and for tests."""

from core.phantom.drawing import Phantom, draw
from core.phantom.mark import find_mark
from core.phantom.writing import write_dataset

__all__ = ["Phantom", "draw", "find_mark", "write_dataset"]
