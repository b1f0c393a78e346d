"""Read class folders: the split, class and patient of every image.

Owns the meaning of folder names and which links are followed. Reads no pixels;
``core.data.datasets`` decides whether the classes make a data set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError

_SPLIT_NAMES = {"train": "train", "val": "val", "test": "test"}
_MORE_NAMES = {"valid": "val", "validation": "val"}  # if there are other split folders
_IGNORED = {"thumbs.db", "desktop.ini", "manifest.csv", "phantom.json", "report.json", "source.txt"}
_IGNORED_FOLDERS = {"masks"}


@dataclass(frozen=True)
class FolderImage:
    """A file in a class folder."""

    key: str  # POSIX path inside the root
    path: Path
    class_name: str
    split: str  # empty if the folders do not tell
    group: str  # class and patient folder; empty for a file directly in its class folder


def read_folders(root: Path) -> list[FolderImage]:
    """List ``{split}/{class}/[patient/...]`` or ``{class}/[patient/...]``, following links.

    Args:
        root: its folders train, val (or valid, validation) and test, in any case, are splits.

    Raises:
        DataError: class folders beside the splits, or an unreadable folder or link.
    """
    folders = _list_folders(root)
    given = _find_splits(folders)
    found = []
    for base in given or {root: ""}:
        for folder in _list_folders(base):
            for path in _walk(folder, root, above=(root.resolve(), folder.resolve())):
                inside = path.relative_to(folder).parts
                group = f"{folder.name}/{inside[0]}" if len(inside) > 1 else ""
                key = path.relative_to(root).as_posix()
                found.append(FolderImage(key, path, folder.name, given.get(base, ""), group))
    if given:
        _refuse_others([f for f in folders if f not in given], {one.class_name for one in found})
    return found


def _list_folders(base: Path) -> list[Path]:
    """List folders that may be splits or classes."""
    inside = (path for path in base.iterdir() if _is_visible(path) and path.is_dir())
    return sorted(path for path in inside if path.name.lower() not in _IGNORED_FOLDERS)


def _find_splits(folders: Sequence[Path]) -> dict[Path, str]:
    names = {path.name.lower() for path in folders}
    known = _SPLIT_NAMES | _MORE_NAMES if names & set(_SPLIT_NAMES) else _SPLIT_NAMES
    return {path: known[path.name.lower()] for path in folders if path.name.lower() in known}


def _refuse_others(others: Sequence[Path], class_names: set[str]) -> None:
    """Refuse a folder of classes that is not a split: it would be ignored silently."""
    classes = {name.lower() for name in class_names}
    for folder in others:
        if any(inside.name.lower() in classes for inside in _list_folders(folder)):
            raise DataError(
                f"the folder {folder.name!r} holds class folders but is no split; name it train, "
                "val or test, or move it away.",
                code="data.beside",
                params={"name": folder.name},
            )


def _walk(folder: Path, root: Path, *, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder; ``above`` lists its resolved parents, to detect loops."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as err:
        raise _refuse(folder, root, "cannot be read") from err
    for path in inside:
        if not _is_visible(path):
            continue
        if path.is_dir():
            real = path.resolve()
            if real in above or above[-1].is_relative_to(real):
                raise _refuse(path, root, "is a link to a folder that it lies in")
            yield from _walk(path, root, above=(*above, real))
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise _refuse(path, root, "is a link that leads nowhere")


def _refuse(path: Path, root: Path, why: str) -> DataError:
    key = path.relative_to(root).as_posix()
    return DataError(f"{key} {why}; mend or remove it.", code="data.link", params={"key": key})


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in _IGNORED
