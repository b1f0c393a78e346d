"""Gallery corrections: relabelled and excluded images, notes, versions.

Owns the records and the replay of a history into a state. The history is append-only: undo and
roll-back add a version that restores an older state. The database is in ``corrections_db``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import CurationError, DataError
from core.gallery.search import Gallery

Field = Literal["label", "excluded", "note"]
Action = Literal["change", "undo", "rollback"]
FIELDS: tuple[Field, ...] = ("label", "excluded", "note")
_YES = "yes"
_MAX_TEXT = 2000
_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Change:
    """One requested change to an image. ``new``: a class name, "yes" or "", or the note's text."""

    key: str
    field: Field
    new: str


@dataclass(frozen=True)
class Edit:
    """One line of the audit trail."""

    key: str
    field: Field
    old: str
    new: str


@dataclass(frozen=True)
class Version:
    """One entry of a gallery's history."""

    number: int
    action: Action
    author: str
    created: str  # ISO 8601, UTC
    parent: int
    restores: int | None
    edits: tuple[Edit, ...]

    @property
    def state_of(self) -> int:
        """Number of the version whose state this one has; undo continues from there."""
        if self.action == "undo" and self.restores is not None:
            return self.restores
        return self.number

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class GalleryState:
    """All differences from the gallery as trained. Version 0 has none."""

    version: int = 0
    labels: Mapping[str, str] = field(default_factory=lambda: _EMPTY)  # key -> class name
    excluded: frozenset[str] = frozenset()
    notes: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    def apply(self, gallery: Gallery, class_names: Sequence[str]) -> Gallery:
        """Return the gallery with these corrections applied; the input is not changed.

        Raises:
            DataError: a corrected label is not one of the classes, or too few images would remain.
        """
        if not self.labels and not self.excluded:
            return gallery
        row_of = {key: row for row, key in enumerate(gallery.keys)}
        labels: NDArray[np.int64] = gallery.labels.copy()
        for key, name in self.labels.items():
            if name not in class_names:
                raise DataError(
                    f"image {key} was relabelled {name!r}, which is none of the classes "
                    f"{', '.join(class_names)}; roll the gallery back.",
                    code="curation.class",
                )
            if key in row_of:
                labels[row_of[key]] = class_names.index(name)
        may_vote = np.array([key not in self.excluded for key in gallery.keys], dtype=bool)
        if gallery.may_vote is not None:
            may_vote &= gallery.may_vote
        for label, name in enumerate(class_names):
            if not (may_vote & (labels == label)).any():
                raise DataError(
                    f"no image of class {name!r} would be left to vote; keep at least one.",
                    code="curation.too_few",
                    params={"class_name": name},
                )
        return replace(gallery, labels=labels, may_vote=may_vote)

    def change(self, edits: Sequence[Change | Edit]) -> "GalleryState":
        """The state after some edits, with the same version number."""
        labels, notes, excluded = dict(self.labels), dict(self.notes), set(self.excluded)
        for edit in edits:
            if edit.field == "label":
                labels[edit.key] = edit.new
            elif edit.field == "excluded":
                (excluded.add if edit.new else excluded.discard)(edit.key)
            elif edit.new:
                notes[edit.key] = edit.new
            else:
                notes.pop(edit.key, None)
        return replace(self, labels=labels, excluded=frozenset(excluded), notes=notes)

    def read(self, key: str, field_name: Field, *, given_label: str) -> str:
        """The value an image has in this state."""
        if field_name == "label":
            return self.labels.get(key, given_label)
        if field_name == "excluded":
            return _YES if key in self.excluded else ""
        return self.notes.get(key, "")


def replay(history: Sequence[Version], number: int) -> tuple[GalleryState, dict[str, str]]:
    """The state at a version, and the original label of every image ever relabelled."""
    given: dict[str, str] = {}
    for entry in history:
        for edit in entry.edits:
            if edit.field == "label":
                given.setdefault(edit.key, edit.old)
    state = GalleryState()
    for entry in history:
        if entry.number <= number:
            state = state.change(entry.edits)
    labels = {key: name for key, name in state.labels.items() if name != given.get(key)}
    return replace(state, version=number, labels=labels), given


def list_edits(
    state: GalleryState, changes: Sequence[Change], given_labels: Mapping[str, str]
) -> list[Edit]:
    """Return the effective edits with their old values; the last change to a field wins."""
    wanted = {(change.key, change.field): change.new for change in changes}
    edits = []
    for (key, name), new in wanted.items():
        if len(new) > _MAX_TEXT:
            raise CurationError(
                f"a note has {len(new)} characters; at most {_MAX_TEXT} are kept.",
                code="curation.too_long",
                params={"n": len(new), "limit": _MAX_TEXT},
            )
        old = state.read(key, name, given_label=given_labels.get(key, ""))
        if old != new:
            edits.append(Edit(key, name, old, new))
    return edits
