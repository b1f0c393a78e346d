"""File names as text that can be shown, stored and compared.

A file system stores bytes. Python carries those that are not UTF-8 as lone surrogates, which no
encoder accepts; here they become ``\\xfc`` escapes. Names from Windows or macOS differ from what a
table of the same data says (composed or decomposed letters, characters that were not allowed);
``clean`` makes both the same.
"""

import os
import re
import unicodedata
from pathlib import Path

_MAX_NAME_BYTES = 150


def show_name(name: str | os.PathLike[str]) -> str:
    """A name or path as valid Unicode; bytes that are not UTF-8 as ``\\xNN``."""
    text = os.fspath(name)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_path(path: Path) -> str:
    """A path as valid Unicode, absolute, for records and jobs; ``read_path`` finds it again."""
    return show_name(path.resolve())


def read_path(text: str) -> Path:
    """The path that ``write_path`` wrote; it need not exist."""
    return find_path(Path(), text)


def find_path(root: Path, key: str) -> Path:
    """The file that ``show_name`` showed as ``key`` below ``root``; it need not exist."""
    path = root / key
    if "\\x" not in key or path.exists():
        return path
    raw = re.sub(rb"(?i)\\x([89a-f][0-9a-f])", lambda m: bytes([int(m[1], 16)]), key.encode())
    other = root / os.fsdecode(raw)
    return other if other.exists() else path


def clean(part: str) -> str:
    """Clean one part of a path: NFC, printable, allowed everywhere, at most 150 bytes."""
    text = unicodedata.normalize("NFC", part)
    text = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in text)
    text = text.strip(" ").rstrip(".") or "_"
    stem, suffix = os.path.splitext(text)
    while len((stem + suffix).encode()) > _MAX_NAME_BYTES and stem:
        stem = stem[:-1]
    return stem + suffix[:20]


def fold(name: str) -> str:
    """A name for comparison: full-width letters, case and outer spaces make no difference."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def printable(text: str) -> str:
    """Text for a terminal or a log: no control character moves the cursor or hides what follows.

    Line breaks stay; other control, format (bidirectional) and undecodable characters become
    escapes.
    """
    shown = show_name(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() or c in "\n " else _escape(c) for c in shown)


def escape_markdown(text: str) -> str:
    """Text shown by Markdown as it is: on one line, never as markup, link, list, math or emoji."""
    line = " ".join(printable(text).split("\n"))
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|<>~$:&@-])", r"\\\1", line)
    return re.sub(r"(?i)(\bwww|^\s*\d+(?=\.(?:\s|$)))\.", r"\1\\.", escaped)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
