"""Read class folders: the split, class and patient of every image, and its mask.

Owns what each folder of the tree is: a split, a class, a kind of a class, a patient, a folder of
masks, or a level that says nothing. Each is told by words and by structure, and every reading is
said; what a person says (``DataOptions.folders``) always wins. Reads no pixels.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.data import folder_words
from core.data.decisions import Decision, join
from core.data.kinds import Levels, find_levels
from core.data.masks import find_mask_files, look_like_masks, match_masks
from core.data.options import DataOptions
from core.data.tree import Folder, Tree, list_tree
from core.errors import DataError
from core.files.names import fold, show_name

_SPLIT_ROLES = ("train", "val", "test")


@dataclass(frozen=True)
class FolderImage:
    """A file in a class folder."""

    key: str  # shown POSIX path inside the root
    path: Path
    class_name: str
    split: str  # empty if the folders do not tell
    group: str  # class and patient folder; empty if no folder is of a patient
    mask: Path | None = None


@dataclass(frozen=True)
class FolderReading:
    """The images of the class folders, and how they were told."""

    images: tuple[FolderImage, ...]
    decisions: tuple[Decision, ...]
    tree: Tree


@dataclass
class _Part:
    """One class folder of one split, without its folders of masks."""

    class_name: str
    split: str
    folder: Folder
    files: list[tuple[Path, tuple[str, ...]]] = field(default_factory=list)  # names below the class


def read_folders(root: Path, options: DataOptions) -> FolderReading:
    """Read ``[wrapper/]{split}/{class}/[patient/...]``, ``{class}/...`` or ``{class}/{split}/...``.

    Args:
        root: the data folder.
        options: ``folders`` says what folders are; a folder named there must exist.

    Raises:
        DataError: split folders without class folders, class folders beside the splits, an
            unreadable folder or link, or an option for a folder that is not there.
    """
    tree = list_tree(root, is_skipped=lambda name, key: _is_skipped(options, name, key))
    _check_options(tree, options)
    said: list[Decision] = []
    base = _descend(tree.root, options, said)
    mask_folders = [f for f in _list_mask_folders(tree.root, options) if f.count()]
    masks = [path for folder in mask_folders for path in folder.walk()]
    parts = _find_parts(base, options, said)
    for part in parts:
        _collect(part, part.folder, (), options)
    if masks:
        names = join({folder.name for folder in mask_folders})
        said.append(Decision("masks.folders", {"n": len(masks), "names": names}))
    taken, are_masks = _take_mask_files(parts, options, said)
    masks += taken if are_masks else []
    levels = find_levels(
        {part.class_name for part in parts},
        [(part.class_name, names) for part in parts for _path, names in part.files],
        options,
    )
    said += levels.decisions
    images = _build_images(root, parts, levels, masks)
    said += _say_left_out(tree, images, {*masks, *taken})
    return FolderReading(tuple(images), tuple(said), tree)


def _is_skipped(options: DataOptions, name: str, key: str) -> bool | None:
    role = options.role_of(name, key)
    return None if role is None else role == "skip"


def _check_options(tree: Tree, options: DataOptions) -> None:
    there = {name for f in tree.root.walk_folders() for name in (f.name, f.key)}
    there |= set(tree.skipped)
    skipped = {name.rsplit("/", 1)[-1] for name, role in options.folders if role == "skip"}
    for name, _role in options.folders:
        if name not in there and name.rsplit("/", 1)[-1] not in skipped & there:
            listed = ", ".join(sorted({f.name for f in tree.root.walk_folders()})[:8]) or "none"
            raise DataError(
                f"--folder {name!r}: there is no such folder in the data; there are: {listed}.",
                code="data.no_folder",
                params={"name": name, "found": listed},
            )


def _is_masks(folder: Folder, options: DataOptions) -> bool:
    role = options.role_of(folder.name, folder.key)
    return role == "masks" or (role is None and folder_words.is_mask_folder(folder.name))


def _list_mask_folders(base: Folder, options: DataOptions) -> list[Folder]:
    """The outermost folders of masks."""
    found = []
    for folder in base.folders:
        is_masks = _is_masks(folder, options)
        found += [folder] if is_masks else _list_mask_folders(folder, options)
    return found


def _list_classes(base: Folder, options: DataOptions) -> list[Folder]:
    """Folders that may be splits or classes."""
    return [f for f in base.folders if not _is_masks(f, options) and f.count()]


def _descend(base: Folder, options: DataOptions, said: list[Decision]) -> Folder:
    """Skip a folder that only wraps the data: "chest_xray/{train,test}", "images/{normal,...}"."""
    start = base
    while len(inside := _list_classes(base, options)) == 1:
        (only,) = inside
        role = options.role_of(only.name, only.key)
        below = _list_classes(only, options)
        holds_splits = sum(folder_words.find_split(f.name) is not None for f in below) > 1
        is_wrapper = folder_words.is_container(only.name) or holds_splits or len(below) == 1
        is_split = folder_words.find_split(only.name) is not None
        if role or only.files or not below or is_split or not is_wrapper:
            break
        base = only
    if base is not start:
        said.append(Decision("wrapper", {"name": f"“{base.key}”"}))
    return base


def _find_parts(base: Folder, options: DataOptions, said: list[Decision]) -> list[_Part]:
    """The class folders, each with its split."""
    folders = _list_classes(base, options)
    splits = _find_splits(folders, options, said)
    if not splits:
        return _find_splits_below(folders, options, said)
    parts = [
        _Part(one.name, split, one)
        for folder, split in splits
        for one in _list_classes(_descend(folder, options, []), options)
    ]
    chosen = [folder for folder, _split in splits]
    _refuse_others([f for f in folders if f not in chosen], {p.class_name for p in parts}, options)
    return parts


def _find_splits(
    folders: Sequence[Folder], options: DataOptions, said: list[Decision]
) -> list[tuple[Folder, str]]:
    """Split folders by what was said, by their words, and by what they hold."""
    roles = {f.key: options.role_of(f.name, f.key) for f in folders}
    given = [(f, str(roles[f.key])) for f in folders if roles[f.key] in _SPLIT_ROLES]
    free = [f for f in folders if roles[f.key] is None]
    worded = [(f, split) for f in free if (split := folder_words.find_split(f.name))]
    holders = [(f, split) for f, split in worded if _holds_classes(f, options)]
    empty = [f for f, _split in worded if (f, _split) not in holders]
    if not given and not _are_splits(holders, [f for f in free if f not in empty]):
        folds = _find_folds(free, options, said)
        if not folds:
            _refuse_split_words(worded)
        return folds
    found = [*given, *holders]
    names = [set(map(fold, (c.name for c in _list_classes(f, options)))) for f, _split in found]
    code = "splits.both" if len(found) > 1 and set.intersection(*names) else "splits"
    listed = ", ".join(f"“{f.name}” = {split}" for f, split in found)
    said.append(Decision(code, {"found": listed}))
    return found


def _holds_classes(folder: Folder, options: DataOptions) -> bool:
    return bool(_list_classes(folder, options)) and not folder.files


def _are_splits(holders: Sequence[tuple[Folder, str]], folders: Sequence[Folder]) -> bool:
    """Whether folders with the names of splits are splits: two alike, or one that stands alone."""
    kinds = {split for _folder, split in holders}
    if not kinds or kinds == {"val"}:  # "valid" alone may be a class
        return False
    rest = [f for f in folders if f not in [holder for holder, _split in holders]]
    is_exact = any(folder_words.is_exact_split(f.name) for f, _split in holders)
    if len(holders) > 1 or is_exact or not rest:
        return True
    raise _refuse_splits([f.name for f, _split in holders])


def _find_folds(
    folders: Sequence[Folder], options: DataOptions, said: list[Decision]
) -> list[tuple[Folder, str]]:
    """Folds of a cross-validation: the last is validation, the others training."""
    folds = sorted(
        (number, f.name, f)
        for f in folders
        if (number := folder_words.find_fold(f.name)) is not None and _holds_classes(f, options)
    )
    if len(folds) < 2:
        return []
    names = [set(map(fold, (c.name for c in _list_classes(f, options)))) for *_, f in folds]
    if not set.intersection(*names):
        return []
    last = folds[-1][2]
    said.append(
        Decision(
            "splits.folds",
            {"found": join(f.name for *_, f in folds), "name": f"“{last.name}”"},
        )
    )
    return [(f, "val" if f is last else "train") for *_, f in folds]


def _refuse_split_words(worded: Sequence[tuple[Folder, str]]) -> None:
    """Refuse to take folders called like splits for classes; a single "valid" may be one."""
    is_sure = any(split != "val" or folder_words.is_exact_split(f.name) for f, split in worded)
    if len(worded) > 1 or is_sure:
        raise _refuse_splits([f.name for f, _split in worded])


def _refuse_splits(names: Sequence[str]) -> DataError:
    listed = ", ".join(names)
    return DataError(
        f"the folders {listed} have the names of splits but do not hold the same class folders. "
        "Put one folder per class into each, or say what they are with --folder NAME=ROLE.",
        code="data.splits",
        params={"found": listed},
    )


def _find_splits_below(
    classes: Sequence[Folder], options: DataOptions, said: list[Decision]
) -> list[_Part]:
    """Classes whose folders are all splits, ``{class}/{split}/...``; otherwise classes as such."""
    plain = [_Part(folder.name, "", folder) for folder in classes]
    below = [(c, s) for c in classes for s in _list_classes(c, options)]
    splits = {
        folder_words.find_split(s.name) if options.role_of(s.name, s.key) is None else None
        for _class, s in below
    }
    has_all = all(_list_classes(c, options) and not c.files for c in classes)
    if not below or None in splits or not has_all or splits == {"val"}:
        return plain
    said.append(Decision("splits.below", {"found": join({s.name for _class, s in below})}))
    return [_Part(c.name, str(folder_words.find_split(s.name)), s) for c, s in below]


def _refuse_others(
    others: Sequence[Folder], class_names: Collection[str], options: DataOptions
) -> None:
    """Refuse a folder of classes that is not a split: it would be ignored silently."""
    classes = {fold(name) for name in class_names}
    for folder in others:
        if any(fold(inside.name) in classes for inside in _list_classes(folder, options)):
            raise DataError(
                f"the folder {folder.name!r} holds class folders but is no split; say what it is "
                f"with --folder {folder.name}=ROLE, or move it away.",
                code="data.beside",
                params={"name": folder.name},
            )


def _collect(part: _Part, folder: Folder, names: tuple[str, ...], options: DataOptions) -> None:
    """Collect the files below a class folder with the names of the folders on the way."""
    part.files += [(path, names) for path in folder.files]
    for inside in folder.folders:
        if not _is_masks(inside, options):
            _collect(part, inside, (*names, inside.name), options)


def _take_mask_files(
    parts: Sequence[_Part], options: DataOptions, said: list[Decision]
) -> tuple[list[Path], bool]:
    """Take files named like masks out of the images; return them, and whether they are masks."""
    if options.mask_files == "none":
        return [], False
    found = find_mask_files(path for part in parts for path, _names in part.files)
    if not found:
        return [], False
    for part in parts:
        part.files = [(path, names) for path, names in part.files if path not in found]
    is_mask = look_like_masks(list(found.items()))
    example = f"“{show_name(min(found).name)}”"
    code = "masks.files" if is_mask else "masks.copies"
    said.append(Decision(code, {"n": len(found), "example": example}))
    return list(found), is_mask


def _build_images(
    root: Path, parts: Sequence[_Part], levels: Levels, masks: Sequence[Path]
) -> list[FolderImage]:
    paths = [path for part in parts for path, _names in part.files]
    mask_of: Mapping[Path, Path] = match_masks(paths, masks) if masks else {}
    return [
        FolderImage(
            key=show_name(path.relative_to(root).as_posix()),
            path=path,
            class_name=part.class_name,
            split=part.split,
            group=levels.name_group(part.class_name, names),
            mask=mask_of.get(path),
        )
        for part in parts
        for path, names in part.files
    ]


def _say_left_out(
    tree: Tree, images: Sequence[FolderImage], taken: Collection[Path]
) -> list[Decision]:
    """What is left out of the data set; ``taken`` are masks and copies."""
    said = []
    for code, counts in (("left.system", tree.system), ("left.skipped", tree.skipped)):
        if sum(counts.values()):
            params: dict[str, str | int] = {"n": sum(counts.values()), "names": join(counts)}
            said.append(Decision(code, params))
    if tree.others:
        suffixes = Counter(path.suffix.lower() for path in tree.others)
        said.append(Decision("left.kinds", {"n": len(tree.others), "names": join(suffixes)}))
    used = {image.path for image in images} | set(taken)
    outside = [path for path in tree.root.walk() if path not in used]
    if outside:
        example = f"“{show_name(outside[0].name)}”"
        said.append(Decision("left.outside", {"n": len(outside), "example": example}))
    odd = [image.key for image in images if "\\x" in image.key]
    if odd:
        said.append(Decision("names.bytes", {"n": len(odd), "example": f"“{odd[0]}”"}))
    return said
