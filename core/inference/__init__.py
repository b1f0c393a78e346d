"""Images + model -> answers: one image with its evidence, or a whole split measured."""

from core.inference.answers import diagnose, reject
from core.inference.splits import (
    SplitReading,
    describe_reading,
    evaluate,
    find_copies,
    find_validated,
    read_split,
)

__all__ = [
    "SplitReading",
    "describe_reading",
    "diagnose",
    "evaluate",
    "find_copies",
    "find_validated",
    "read_split",
    "reject",
]
