"""The building blocks of a report: sections of paragraphs, tables and pictures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class TableBlock:
    """A table; every cell is plain text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure or image with its caption, which also stands in for it where it cannot be seen."""

    png: bytes
    caption: str
    width_share: float = 0.48  # of the text's width


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, wrapped."""

    pictures: tuple[Picture, ...]


Block = Paragraph | TableBlock | Pictures


@dataclass(frozen=True)
class Section:
    """One heading of the report and the checklist items it answers."""

    title: str
    items: tuple[int, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """The whole report."""

    title: str
    subtitle: str
    is_synthetic: bool
    sections: tuple[Section, ...]
