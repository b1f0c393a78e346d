"""What is wrong with a data set, before anyone trains on it.

Owns the checks: unreadable files, exact and near duplicates, across splits and across labels,
patients in two splits, class counts, sizes. Changes nothing.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from core.datasets import Dataset, Record, load_record
from core.errors import ImageError

_MAX_HAMMING = 6  # of 64 bits: candidates
_MAX_DIFFERENCE = 6.0  # grey levels of 255, mean over a 32 x 32 thumbnail: confirmed
_SIDE = 32


@dataclass(frozen=True)
class Duplicates:
    """Images that show the same."""

    keys: tuple[str, ...]
    across_splits: bool
    across_labels: bool


@dataclass(frozen=True)
class AuditReport:
    """The findings; ``problems`` says them in sentences, most serious first."""

    data_id: str
    n_images: int
    counts: dict[str, dict[str, int]]  # split -> class -> images
    width_range: tuple[int, int, int]  # least, median, most
    height_range: tuple[int, int, int]
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]  # key, reason
    exact_duplicates: tuple[Duplicates, ...]
    near_duplicates: tuple[Duplicates, ...]
    groups_across_splits: tuple[str, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept of an image after looking at it."""

    record: Record
    sha256: str
    phash: NDArray[np.bool_]
    small: NDArray[np.float32]
    size: tuple[int, int]
    format: str


def audit(dataset: Dataset, *, progress: Callable[[float, str], None] | None = None) -> AuditReport:
    """Read every image once and compare all of them.

    Args:
        dataset: all splits are looked at.
        progress: told the share read.

    Returns:
        The report. Near duplicates have perceptual hashes within 6 of 64 bits and thumbnails
        that differ by at most 6 of 255 grey levels on average.

    Reference: Zauner 2010 (pHash).
    """
    seen, unreadable = _look(dataset.records, progress)
    exact = _find_exact(seen)
    near = _find_near(seen)
    counts = {
        split: {
            name: sum(r.label == label for r in dataset.subset(split))
            for label, name in enumerate(dataset.class_names)
        }
        for split in sorted({record.split for record in dataset.records})
    }
    shared = _find_shared_groups(dataset.records)
    return AuditReport(
        data_id=dataset.data_id,
        n_images=len(dataset.records),
        counts=counts,
        width_range=_range([item.size[0] for item in seen]),
        height_range=_range([item.size[1] for item in seen]),
        formats=dict(Counter(item.format for item in seen)),
        unreadable=tuple(unreadable),
        exact_duplicates=exact,
        near_duplicates=near,
        groups_across_splits=shared,
        problems=tuple(_say_problems(counts, unreadable, exact, near, shared)),
    )


def _look(
    records: Sequence[Record], progress: Callable[[float, str], None] | None
) -> tuple[list[_Seen], list[tuple[str, str]]]:
    seen, unreadable = [], []
    for index, record in enumerate(records):
        try:
            image = load_record(record)
        except ImageError as err:
            unreadable.append((record.key, str(err)))
        else:
            grey = PILImage.fromarray(image.pixels).convert("L")
            small = grey.resize((_SIDE, _SIDE), PILImage.Resampling.BOX)
            seen.append(
                _Seen(
                    record=record,
                    sha256=image.sha256,
                    phash=np.asarray(imagehash.phash(grey).hash).reshape(-1),
                    small=np.asarray(small, dtype=np.float32).reshape(-1),
                    size=grey.size,
                    format=image.format,
                )
            )
        if progress:
            progress((index + 1) / len(records), f"{index + 1} of {len(records)} images read")
    return seen, unreadable


def _find_exact(seen: Sequence[_Seen]) -> tuple[Duplicates, ...]:
    by_hash: dict[str, list[Record]] = {}
    for item in seen:
        by_hash.setdefault(item.sha256, []).append(item.record)
    return tuple(_describe(group) for group in by_hash.values() if len(group) > 1)


def _find_near(seen: Sequence[_Seen]) -> tuple[Duplicates, ...]:
    """Connected components of confirmed pairs, but not those that are exact copies only."""
    if len(seen) < 2:
        return ()
    bits = np.stack([item.phash for item in seen]).astype(np.float32) * 2 - 1
    small = np.stack([item.small for item in seen])
    parent = list(range(len(seen)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(len(seen) - 1):
        hamming = (bits.shape[1] - bits[i + 1 :] @ bits[i]) / 2
        for j in np.flatnonzero(hamming <= _MAX_HAMMING) + i + 1:
            if float(np.abs(small[i] - small[j]).mean()) <= _MAX_DIFFERENCE:
                parent[find(int(j))] = find(i)
    members: dict[int, list[_Seen]] = {}
    for i, item in enumerate(seen):
        members.setdefault(find(i), []).append(item)
    return tuple(
        _describe([item.record for item in group])
        for group in members.values()
        if len({item.sha256 for item in group}) > 1
    )


def _describe(records: Sequence[Record]) -> Duplicates:
    return Duplicates(
        keys=tuple(record.key for record in records),
        across_splits=len({record.split for record in records}) > 1,
        across_labels=len({record.label for record in records}) > 1,
    )


def _find_shared_groups(records: Iterable[Record]) -> tuple[str, ...]:
    """Patient names that occur in two splits that came with the data (they may merely restart)."""
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.group:
            given, _, name = record.group.partition(":")
            splits.setdefault(name, set()).add(given)
    return tuple(sorted(name for name, given in splits.items() if len(given) > 1))


def _range(values: Sequence[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)


def _say_problems(
    counts: dict[str, dict[str, int]],
    unreadable: Sequence[tuple[str, str]],
    exact: Sequence[Duplicates],
    near: Sequence[Duplicates],
    shared: Sequence[str],
) -> Iterable[str]:
    for word, groups in (("exact", exact), ("near", near)):
        labels = [g for g in groups if g.across_labels]
        if labels:
            yield (
                f"{len(labels)} groups of {word} duplicates carry different labels, first "
                f"{labels[0].keys[0]} and {labels[0].keys[1]}: one label is wrong."
            )
        splits = [g for g in groups if g.across_splits]
        if splits:
            yield (
                f"{len(splits)} groups of {word} duplicates lie in more than one split, first "
                f"{splits[0].keys[0]} and {splits[0].keys[1]}: test figures will be too good."
            )
    if unreadable:
        key, reason = unreadable[0]
        yield f"{len(unreadable)} files cannot be read, first {key}: {reason}"
    if shared:
        yield (
            f"{len(shared)} patient names occur in more than one split, first {shared[0]}: if they "
            "are the same patients, test figures will be too good."
        )
    for word, groups in (("exact", exact), ("near", near)):
        n = sum(len(group.keys) for group in groups)
        if n:
            yield f"{n} images are {word} duplicates in {len(groups)} groups."
    for split, by_class in counts.items():
        least, most = min(by_class.values()), max(by_class.values())
        if most > 5 * max(1, least):
            yield (
                f"the classes of {split} are unbalanced, {least} against {most}: read the "
                "balanced accuracy."
            )
        if least < 30:
            yield (
                f"the smaller class of {split} has only {least} images: figures will be uncertain."
            )
