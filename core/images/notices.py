"""Notices: what the reader of an answer should know about how its file was read.

A notice is no error: the image was read, but not quite as it is stored, or not all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Notice:
    """One thing to know about the reading of a file."""

    code: str  # stable identifier, by which the pages translate
    text: str  # an English sentence, without any patient tag
    params: Mapping[str, object] = field(default_factory=dict)  # what the sentence was filled with

    def __str__(self) -> str:
        return self.text
