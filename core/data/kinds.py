"""Tell what the folders inside class folders are: patients, kinds of the class, or neither.

A patient has few images and there are many of them; a kind ("bacteria", "virus") has many images
and there are few of them. A folder that every class has ("images", "2019") is neither. Which one it
is decides who may be in training and validation at once, never what an image's class is.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from core.data.decisions import Decision, join
from core.data.folder_words import is_container
from core.data.options import DataOptions

_PATIENT = re.compile(
    r"(?i)^(?:p|pat|patient|person|case|subj|subject|sub|pt|id|study|mrn|anon)[\s_.-]*\d+"
)
_MAX_KINDS = 6
_LARGE = 20  # images of one folder; few patients have so many
_MOST = 0.5  # of a class's images


@dataclass(frozen=True)
class Levels:
    """What the folders inside each class are."""

    passed: Mapping[str, frozenset[str]]  # class -> folders that are no patients
    decisions: tuple[Decision, ...]
    has_patients: bool

    def name_group(self, class_name: str, names: Sequence[str]) -> str:
        """The group of an image from the folders between its class and itself; empty: none."""
        if not self.has_patients:
            return ""
        passed = self.passed.get(class_name, frozenset())
        for depth, name in enumerate(names):
            if name not in passed:
                kept = [n for n in names[:depth] if not is_container(n)]
                return "/".join((class_name, *kept, name))
        return ""


def find_levels(
    classes: Collection[str], files: Sequence[tuple[str, tuple[str, ...]]], options: DataOptions
) -> Levels:
    """Find which folders inside the classes are patients.

    Args:
        classes: all names.
        files: class of each file, and the names of the folders between them.
        options: ``folders`` and ``patients``.
    """
    said: list[Decision] = []
    passed: dict[str, set[str]] = {name: set() for name in classes}
    while True:
        counts = _count_first(files, passed)
        levels = _find_shared(classes, counts, options)
        new = {c: levels & set(counts[c]) for c in counts}
        if levels:
            said.append(Decision("levels", {"names": join(levels)}))
        for class_name, found in counts.items():
            kinds = _find_kinds(found, levels, options, n_images=sum(found.values()))
            if kinds:
                new[class_name] |= kinds
                params: dict[str, str | int] = {"names": join(kinds), "class_name": class_name}
                said.append(Decision("kinds", params))
        if not any(new.values()):
            break
        for class_name, found_names in new.items():
            passed[class_name] |= found_names
    fixed = {c: frozenset(names) for c, names in passed.items()}
    has_patients = options.patients in ("auto", "folder")
    result = Levels(fixed, (), has_patients)
    groups = sorted({group for c, names in files if (group := result.name_group(c, names))})
    if groups:
        params = {"n": len(groups), "example": f"“{groups[0]}”"}
        said.append(Decision("patients.folders", params))
    return Levels(fixed, tuple(said), has_patients)


def _count_first(
    files: Sequence[tuple[str, tuple[str, ...]]], passed: Mapping[str, Collection[str]]
) -> dict[str, Counter[str]]:
    """Images under each first folder that was not passed, by class."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for class_name, names in files:
        first = next((name for name in names if name not in passed[class_name]), None)
        if first is not None:
            counts[class_name][first] += 1
    return counts


def _find_shared(
    classes: Collection[str], counts: Mapping[str, Counter[str]], options: DataOptions
) -> set[str]:
    """Folders that only hold images, or that every class has and no patient is called so."""
    everywhere = (
        set.intersection(*(set(found) for found in counts.values()))
        if len(counts) == len(classes) > 1
        else set()
    )
    is_few = len(everywhere) <= _MAX_KINDS
    shared = {
        name
        for found in counts.values()
        for name in found
        if is_container(name) or (name in everywhere and is_few and not _PATIENT.match(name))
    }
    return {name for name in shared if options.role_of(name, name) != "patient"}


def _find_kinds(
    found: Counter[str], levels: Collection[str], options: DataOptions, *, n_images: int
) -> set[str]:
    """Folders that are kinds of a class: said so, or few that hold most of it."""
    roles = {name: options.role_of(name, name) for name in found}
    kinds = {name for name, role in roles.items() if role == "kind"}
    free = {name for name in found if roles[name] is None and name not in levels}
    if options.patients == "folder" or not free or len(free) > _MAX_KINDS:
        return kinds
    is_patient = any(_PATIENT.match(name) for name in free)
    n_free = sum(found[name] for name in free)
    is_large = n_free >= _LARGE * len(free)
    is_wordy = not any(re.search(r"\d", name) for name in free) and len(free) > 1
    if not is_patient and n_free >= _MOST * n_images and (is_large or is_wordy):
        kinds |= free
    return kinds
