"""Decide what a data folder is, before any image is read at length.

The one place that decides: layout, splits, classes, patients, masks, which class is the disease.
Each decision is said with its reason and the option that changes it; what only a person can know is
a question, and nothing is trained or measured while one is open.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.data import manifest
from core.data.class_names import decide_disease
from core.data.decisions import Decision, join
from core.data.folders import read_folders
from core.data.medmnist import has_arrays, read_arrays
from core.data.options import DataOptions, TrainingData, choose_options
from core.data.patients import find_patients
from core.data.tree import list_tree
from core.errors import DataError
from core.files.names import fold, show_name

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Found:
    """An image as found; ``split`` is empty if the data do not give it."""

    key: str
    class_name: str
    split: str = ""
    group: str = ""
    path: Path | None = None
    mask: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a data folder is taken for."""

    root: Path
    options: DataOptions
    found: tuple[Found, ...]  # by key
    class_names: tuple[str, ...]  # in label order, normal first, once the disease is known
    disease_class: str | None
    decisions: tuple[Decision, ...]
    source_classes: tuple[str, ...] = ()  # as found, before other names were given

    @property
    def questions(self) -> tuple[Decision, ...]:
        """What must be answered before the data can be used."""
        return tuple(one for one in self.decisions if one.kind == "question")

    @property
    def disease_reason(self) -> str:
        """How it was decided which class is the disease, and what speaks against it; else empty."""
        found = [d for d in self.decisions if d.code.startswith("disease.")]
        return " ".join(d.sentence for d in found if d.kind != "question")

    def count(self) -> dict[str, dict[str, int]]:
        """Images by split and class; the split is "" where the data do not give it."""
        counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(self.class_names, 0))
        for one in self.found:
            counts[one.split][one.class_name] += 1
        return dict(counts)

    def require_answers(self) -> None:
        """Refuse to go on while a question is open.

        Raises:
            DataError: the first question, with the classes found as its parameter ``classes``.
        """
        for question in self.questions:
            raise DataError(
                f"{question.sentence} Say it with {question.option}.",
                code="data.classes" if question.code == "classes.number" else "data.disease_class",
                params={**question.params, "found": ", ".join(self.class_names)},
            )


def make_plan(
    root: Path, options: DataOptions | None = None, *, model: TrainingData | None = None
) -> Plan:
    """Decide what a data folder, table or npz file is.

    Args:
        root: the folder or file.
        options: what a person says; None: nothing.
        model: the training data of the model that the data is for: its options are used for its own
            folder, and its disease for classes of that name.

    Raises:
        DataError: the data are missing, empty, contradict themselves, or do not fit the options.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(
            f"there is no data at {show_name(root)}; check the path.", code="data.missing"
        )
    options = choose_options(options, root, model)
    found, said = _find_images(root, options)
    if not found:
        raise DataError(
            f"no image was found in {show_name(root)}; expected "
            "{train,test}/{normal,disease}/..., "
            "{normal,disease}/..., a manifest.csv or a MedMNIST .npz file.",
            code="data.empty",
        )
    sources = tuple(sorted({one.class_name for one in found}))
    found, merged = _name_classes(found, options)
    said += merged
    names = tuple(sorted({one.class_name for one in found}))
    disease, decided = _choose_disease(names, options, model, root)
    if disease is not None:
        names = (*(name for name in names if name != disease), disease)
    found, patients = _group(found, options)
    said = [*decided, *said, *patients]
    if not any(one.split == "val" for one in found):
        said.append(Decision("splits.drawn"))
    in_order = tuple(sorted(found, key=lambda one: one.key))
    plan = Plan(root, options, in_order, names, disease, tuple(said), sources)
    _check_splits(plan)
    return plan


def list_folders(root: Path, *, most: int = 200) -> tuple[str, ...]:
    """Names of the folders of the data, of which options may say what they are; at most ``most``.

    Raises:
        DataError: an unreadable folder or link.
    """
    if not root.is_dir():
        return ()
    tree = list_tree(root, is_skipped=lambda _name, _key: None)
    names = dict.fromkeys(folder.name for folder in tree.root.walk_folders() if folder.count())
    return tuple(names)[:most]


def _choose_disease(
    names: Sequence[str], options: DataOptions, model: TrainingData | None, root: Path
) -> tuple[str | None, list[Decision]]:
    said = options.disease_class
    if said is not None and said not in names:
        listed = ", ".join(names)
        raise DataError(
            f"--disease-class {said!r} is not one of the classes: {listed}.",
            code="data.disease_class",
            params={"found": listed},
        )
    if len(names) != 2:
        return None, [Decision("classes.number", {"n": len(names), "found": join(names, most=12)})]
    return decide_disease(names, said=said, model=model, root=root)


def _find_images(root: Path, options: DataOptions) -> tuple[list[Found], list[Decision]]:
    if root.is_file():
        if root.suffix.lower() in (".csv", ".tsv", ".txt"):
            return _read_table(root)
        return _read_npz(root)
    table = root / manifest.NAME
    arrays = [p for p in sorted(root.glob("*.npz")) if p.is_file() and has_arrays(p)]
    if options.layout == "table" or (options.layout == "auto" and table.is_file()):
        return _read_table(table if table.is_file() else _find_table(root))
    if options.layout == "folders" or (options.layout == "auto" and not arrays):
        return _read_folders(root, options)
    if options.layout == "auto":
        in_folders, _said = _read_folders(root, options)
        if in_folders:
            raise DataError(
                f"{show_name(root)} holds both class folders and {arrays[0].name} with images; say "
                "which to use with --layout folders or --layout npz.",
                code="data.layout",
                params={"name": arrays[0].name},
            )
    if len(arrays) != 1:
        listed = _list_names(arrays)
        raise DataError(
            f"expected one npz file with the arrays of MedMNIST in {show_name(root)}; found: "
            f"{listed}. Name the file itself.",
            code="data.layout",
            params={"name": listed},
        )
    return _read_npz(arrays[0])


def _read_folders(root: Path, options: DataOptions) -> tuple[list[Found], list[Decision]]:
    reading = read_folders(root, options)
    found = [
        Found(one.key, one.class_name, one.split, one.group, one.path, one.mask)
        for one in reading.images
    ]
    return found, [Decision("layout.folders"), *reading.decisions]


def _find_table(root: Path) -> Path:
    """The only table of a folder that has the columns."""
    usable = []
    for path in sorted(root.glob("*.csv")):
        try:
            manifest.read_table(path)
        except DataError:
            continue
        usable.append(path)
    if len(usable) != 1:
        listed = _list_names(usable)
        raise DataError(
            f"expected one table with the columns file and label in {show_name(root)}; found: "
            f"{listed}. Name the table itself.",
            code="data.layout",
            params={"name": listed},
        )
    return usable[0]


def _list_names(paths: Sequence[Path]) -> str:
    return ", ".join(show_name(path.name) for path in paths) or "none"


def _read_table(path: Path) -> tuple[list[Found], list[Decision]]:
    table = manifest.read_table(path)
    root = path.parent
    finder = manifest.FileFinder(root)
    found, absent = [], []
    for line, values in table.rows:
        row = table.read_row(line, values)
        place = finder.find(row.file)
        key = manifest.find_key(finder, row.file)
        if place is None:
            absent.append((line, key))
        mask = finder.find(row.mask) if row.mask else None
        found.append(Found(key, row.label, row.split, row.group, place, mask))
    if absent:
        few = ", ".join(f"{key} (line {line})" for line, key in absent[:3])
        raise manifest.refuse(
            f"names {len(absent)} files that are not there, first {few}", path.name
        )
    twice = [key for key, n in Counter(one.key for one in found).items() if n > 1]
    if twice:
        raise manifest.refuse(f"names {len(twice)} files twice, first {twice[0]}", path.name)
    columns = ", ".join(
        ours if theirs == ours else f"{theirs} = {ours}" for ours, theirs in table.columns.items()
    )
    said = [Decision("layout.table", {"name": path.name, "columns": columns})]
    groups = {one.group for one in found if one.group}
    if groups:
        params: dict[str, str | int] = {"n": len(groups), "name": table.columns["group"]}
        said.append(Decision("patients.table", params))
    return found, said


def _read_npz(path: Path) -> tuple[list[Found], list[Decision]]:
    found = [
        Found(key, label, split, array=array) for key, label, split, array in read_arrays(path)
    ]
    return found, [Decision("layout.npz", {"name": path.name})]


def _name_classes(
    found: Sequence[Found], options: DataOptions
) -> tuple[list[Found], list[Decision]]:
    """Apply the class names that were given, and make spellings of one name one class."""
    given = dict(options.classes)
    there = sorted({one.class_name for one in found})
    unknown = [name for name in given if name not in there]
    if unknown:
        listed = ", ".join(there)
        raise DataError(
            f"--class {unknown[0]!r} is not one of the classes found: {listed}.",
            code="data.disease_class",
            params={"found": listed},
        )
    named = {name: given.get(name, name) for name in there}
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(named.values())):
        spellings[fold(name)].append(name)
    chosen = {name: min(names) for names in spellings.values() for name in names}
    final = {name: chosen[new] for name, new in named.items()}
    sources: dict[str, list[str]] = defaultdict(list)
    for name, new in final.items():
        sources[new].append(name)
    said = [
        Decision("classes.merged", {"found": join(names), "name": new})
        for new, names in sources.items()
        if names != [new]
    ]
    if all(name == new for name, new in final.items()):
        return list(found), said
    return [replace(one, class_name=final[one.class_name]) for one in found], said


def _group(found: Sequence[Found], options: DataOptions) -> tuple[list[Found], list[Decision]]:
    """Find patients where neither the table nor the folders named any."""
    files = [one for one in found if one.path is not None]
    if options.patients == "none":
        return [replace(one, group="") for one in found], [Decision("patients.none")]
    has_groups = any(one.group for one in found)
    if not files or (has_groups and options.patients in ("auto", "folder")):
        return list(found), [] if has_groups else [Decision("patients.none")]
    images = [(one.path, one.class_name) for one in files if one.path is not None]
    groups, said = find_patients(images, options)
    if not any(groups):
        return list(found), said if not has_groups else []
    by_key = {one.key: group for one, group in zip(files, groups, strict=True)}
    return [replace(one, group=by_key.get(one.key, "")) for one in found], said


def _check_splits(plan: Plan) -> None:
    """Refuse a given split without one of the classes, before any image is read."""
    if len(plan.class_names) != 2:
        return
    counts: Mapping[str, Mapping[str, int]] = plan.count()
    for split in SPLITS:
        missing = [name for name, n in counts.get(split, {}).items() if n == 0]
        if missing:
            raise DataError(
                f"the split {split} has no image of the class {missing[0]!r}; every split needs "
                "both classes. Add some, or leave the split out with --folder NAME=skip.",
                code="data.one_class",
                params={"split": split, "class_name": missing[0]},
            )
