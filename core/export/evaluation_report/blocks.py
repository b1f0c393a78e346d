"""The building blocks of a report: sections of paragraphs, tables and images."""

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
    """A figure or image with its caption, which is also its alternative text."""

    png: bytes
    caption: str
    width_share: float = 0.48  # fraction of the text width


@dataclass(frozen=True)
class Pictures:
    """Images side by side, wrapped."""

    pictures: tuple[Picture, ...]


Block = Paragraph | TableBlock | Pictures


@dataclass(frozen=True)
class Section:
    """One heading of the report and the checklist items it covers."""

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
