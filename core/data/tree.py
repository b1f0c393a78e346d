"""List a data folder once: folders and files by name, links followed, system folders left out.

Nothing is opened. The meaning of the names is in ``core.data.folders``.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.data import folder_words
from core.errors import DataError
from core.files.names import show_name

_MAX_DEPTH = 32
_OWN_FILES = frozenset({"manifest.csv", "phantom.json", "report.json", "source.txt"})


@dataclass(frozen=True)
class Folder:
    """A folder with the files and folders in it, sorted by name."""

    path: Path
    key: str  # shown POSIX path inside the root; "" for the root
    name: str  # shown
    files: tuple[Path, ...] = ()
    folders: tuple["Folder", ...] = ()

    def walk(self) -> Iterator[Path]:
        """Every file below."""
        yield from self.files
        for folder in self.folders:
            yield from folder.walk()

    def walk_folders(self) -> Iterator["Folder"]:
        """Every folder below, this one not included."""
        for folder in self.folders:
            yield folder
            yield from folder.walk_folders()

    def count(self) -> int:
        """Number of files below."""
        return len(self.files) + sum(folder.count() for folder in self.folders)


@dataclass(frozen=True)
class Tree:
    """A listed data folder, and what was left out of it."""

    root: Folder
    others: tuple[Path, ...]  # files whose suffix is not of an image
    system: Counter[str] = field(default_factory=Counter)  # folder name -> files in it
    skipped: Counter[str] = field(default_factory=Counter)  # the same for folders to skip


def list_tree(root: Path, *, is_skipped: Callable[[str, str], bool | None]) -> Tree:
    """List a folder.

    Args:
        root: the folder.
        is_skipped: gets a folder's shown name and key: True skips it; False keeps it although its
            name is that of a system folder; None lets the name decide.

    Raises:
        DataError: an unreadable folder, a link that leads nowhere or into a folder that it lies in,
            or folders nested too deep.
    """
    lister = _Lister(root, is_skipped)
    listed = lister.list_folder(root, above=(root.resolve(),))
    return Tree(listed, tuple(lister.others), lister.system, lister.skipped)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into itself
        return False


class _Lister:
    """Lists folders and counts what it leaves out."""

    def __init__(self, root: Path, is_skipped: Callable[[str, str], bool | None]) -> None:
        self.root = root
        self.is_skipped = is_skipped
        self.others: list[Path] = []
        self.system: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def list_folder(self, path: Path, *, above: tuple[Path, ...]) -> Folder:
        """List one folder; ``above`` has its resolved parents and itself, to detect loops."""
        if len(above) > _MAX_DEPTH:
            raise self._refuse(path, f"is nested more than {_MAX_DEPTH} folders deep")
        try:
            with os.scandir(path) as entries:  # knows the kind of most entries without a look
                inside = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as err:
            raise self._refuse(path, "cannot be read") from err
        files: list[Path] = []
        folders: list[Folder] = []
        for entry in inside:
            one = path / entry.name
            if _is_dir(entry):
                if not self._leave_out(one):
                    folders.append(self._follow(one, above))
            elif entry.is_symlink() and not one.exists():
                if not entry.name.startswith("."):
                    raise self._refuse(one, "is a link that leads nowhere")
            elif entry.is_file() and not folder_words.is_system_file(entry.name):
                self._sort_file(one, files)
        return Folder(path, self._key(path), show_name(path.name), tuple(files), tuple(folders))

    def _follow(self, path: Path, above: tuple[Path, ...]) -> Folder:
        real = path.resolve()
        if real in above or above[-1].is_relative_to(real):
            raise self._refuse(path, "is a link to a folder that it lies in")
        return self.list_folder(path, above=(*above, real))

    def _leave_out(self, path: Path) -> bool:
        """Whether to leave a folder out; counts its files."""
        name = show_name(path.name)
        said = self.is_skipped(name, self._key(path))
        is_system = said is None and folder_words.is_system_folder(path.name)
        if not (said or is_system):
            return False
        n_files = sum(len(files) for _folder, _names, files in os.walk(path))
        (self.skipped if said else self.system)[name] += n_files
        return True

    def _sort_file(self, path: Path, files: list[Path]) -> None:
        if path.name.casefold() in _OWN_FILES:
            return
        is_other = folder_words.is_other_file(path.suffix)
        (self.others if is_other else files).append(path)

    def _key(self, path: Path) -> str:
        key = path.relative_to(self.root).as_posix()
        return "" if key == "." else show_name(key)

    def _refuse(self, path: Path, why: str) -> DataError:
        key = self._key(path) or str(show_name(path))
        return DataError(f"{key} {why}; mend or remove it.", code="data.link", params={"key": key})
