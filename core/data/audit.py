"""Audit a data set before training: unreadable files, duplicates, leaks, imbalance.

Owns the checks: unreadable files, exact and near duplicates, across splits and across labels,
patients in two splits, class counts, image sizes. Changes nothing.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import fft, ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from core.data.datasets import Dataset, Record, load_ahead
from core.errors import ImageError

_MAX_HAMMING = 8  # of 64 bits; candidates for near duplicates
# Eyes and chests of different people share outlines and correlate up to 0.6; repeats more.
_MIN_CORRELATION = 0.65
_MIN_CORRELATION_TINY = 0.9  # for images smaller than the thumbnail
_SIDE = 64  # of the thumbnail used to compare fine detail
_SHIFT = 2  # thumbnail pixels, for repeats that were cropped slightly differently
_DARK = 12  # maximum grey level of the black border
_BLOCK = 1024  # rows or pairs compared at once, to bound memory


@dataclass(frozen=True)
class Duplicates:
    """A group of images that show the same content."""

    keys: tuple[str, ...]
    across_splits: bool
    across_labels: bool


@dataclass(frozen=True)
class AuditReport:
    """The results of an audit; ``core.data.readiness`` turns them into findings."""

    data_id: str
    n_images: int
    counts: dict[str, dict[str, int]]  # split -> class -> images
    readable: dict[str, dict[str, int]]  # the same, readable images only
    width_range: tuple[int, int, int]  # minimum, median, maximum
    height_range: tuple[int, int, int]
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]  # key, reason
    exact_duplicates: tuple[Duplicates, ...]
    near_duplicates: tuple[Duplicates, ...]
    groups_across_splits: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the audit stores for each image."""

    record: Record
    sha256: str
    phash: NDArray[np.bool_]
    detail: NDArray[np.int8]  # (64, 64); see _extract_detail
    size: tuple[int, int]
    format: str


def audit(dataset: Dataset, *, progress: Callable[[float, str], None] | None = None) -> AuditReport:
    """Read every image once and compare them all.

    Args:
        dataset: all splits are audited.
        progress: called with the fraction of images read.

    Returns:
        The report. Near duplicates have perceptual hashes that differ in at most 8 of 64 bits, and
        fine detail that correlates by 0.65 or more (0.9 for images under 64 px) at the best shift.

    Reference: Zauner 2010 (pHash).
    """
    seen, unreadable = _look(dataset.records, progress)
    return AuditReport(
        data_id=dataset.data_id,
        n_images=len(dataset.records),
        counts=count(dataset),
        readable=count(dataset, without=[key for key, _reason in unreadable]),
        width_range=_range([item.size[0] for item in seen]),
        height_range=_range([item.size[1] for item in seen]),
        formats=dict(Counter(item.format for item in seen)),
        unreadable=tuple(unreadable),
        exact_duplicates=_find_exact(seen),
        near_duplicates=_find_near(seen),
        groups_across_splits=_find_shared_groups(dataset.records),
    )


def restate(report: AuditReport, dataset: Dataset) -> AuditReport:
    """Rewrite the report for another split of the same images, without reading them again.

    Args:
        report: of the images under any split.
        dataset: the same images under the other split.
    """
    records = {record.key: record for record in dataset.records}
    exact, near = (
        tuple(_describe([records[key] for key in group.keys]) for group in groups)
        for groups in (report.exact_duplicates, report.near_duplicates)
    )
    return dataclasses.replace(
        report,
        data_id=dataset.data_id,
        counts=count(dataset),
        readable=count(dataset, without=[key for key, _reason in report.unreadable]),
        exact_duplicates=exact,
        near_duplicates=near,
        groups_across_splits=_find_shared_groups(dataset.records),
    )


def count(dataset: Dataset, *, without: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """Count images by split and class, except those with keys in ``without``."""
    left_out = set(without)
    return {
        split: {
            name: sum(r.label == label and r.key not in left_out for r in dataset.subset(split))
            for label, name in enumerate(dataset.class_names)
        }
        for split in sorted({record.split for record in dataset.records})
    }


def _look(
    records: Sequence[Record], progress: Callable[[float, str], None] | None
) -> tuple[list[_Seen], list[tuple[str, str]]]:
    seen, unreadable = [], []
    for index, (record, image) in enumerate(load_ahead(records)):
        if isinstance(image, ImageError):
            unreadable.append((record.key, str(image)))
        else:
            grey = PILImage.fromarray(image.pixels).convert("L")
            seen.append(
                _Seen(
                    record=record,
                    sha256=image.sha256,
                    phash=np.asarray(imagehash.phash(grey).hash).reshape(-1),
                    detail=_extract_detail(grey),
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


def _extract_detail(grey: PILImage.Image) -> NDArray[np.int8]:
    """Local contrast at 64 x 64, without brightness, vignetting or the edge of the black border.

    The remaining detail (vessels, ribs, speckle) identifies a patient; the outline only the camera.
    """
    small = np.asarray(grey.resize((_SIDE, _SIDE), PILImage.Resampling.BOX), dtype=np.float32)
    high = np.clip(small - ndimage.gaussian_filter(small, 2), -25, 25)
    contrast = np.sqrt(ndimage.gaussian_filter(high**2, 3)) + 2
    inside = ndimage.minimum_filter(ndimage.gaussian_filter(small, 1), 9) > _DARK
    if inside.mean() < 0.15:  # a dark image, not one with a dark border
        inside = np.ones_like(inside)
    detail = high / contrast
    detail = np.where(inside, detail - detail[inside].mean(), 0)
    return np.clip(np.round(32 * detail), -127, 127).astype(np.int8)


def _find_near(seen: Sequence[_Seen]) -> tuple[Duplicates, ...]:
    """Connected components of confirmed pairs, except those of exact copies only."""
    if len(seen) < 2:
        return ()
    pairs = _find_candidates(np.stack([item.phash for item in seen]))
    detail = np.stack([item.detail for item in seen])
    is_tiny = np.array([min(item.size) < _SIDE for item in seen])
    members: dict[int, list[_Seen]] = {}
    for component, item in zip(_join_pairs(pairs, detail, is_tiny).tolist(), seen, strict=True):
        members.setdefault(component, []).append(item)
    return tuple(
        _describe([item.record for item in group])
        for group in members.values()
        if len({item.sha256 for item in group}) > 1
    )


def find_repeats(pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.int64]]:
    """Find groups of near duplicates with the same test as ``audit``.

    Args:
        pictures: each (H, W, 3) uint8 RGB; thumbnails of 64 px or more suffice.

    Returns:
        Ascending rows of each group of two or more, ordered by first row.
    """
    if len(pictures) < 2:
        return []
    greys = [PILImage.fromarray(picture).convert("L") for picture in pictures]
    pairs = _find_candidates(
        np.stack([np.asarray(imagehash.phash(grey).hash).reshape(-1) for grey in greys])
    )
    detail = np.stack([_extract_detail(grey) for grey in greys])
    is_tiny = np.array([min(grey.size) < _SIDE for grey in greys])
    component = _join_pairs(pairs, detail, is_tiny)
    members = [np.flatnonzero(component == c) for c in np.unique(component)]
    groups = [rows for rows in members if len(rows) > 1]
    return sorted(groups, key=lambda rows: int(rows[0]))


def _join_pairs(
    pairs: NDArray[np.int64], detail: NDArray[np.int8], is_tiny: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Confirm candidate pairs; return the connected component of every image."""
    needed = np.where(is_tiny[pairs].any(axis=1), _MIN_CORRELATION_TINY, _MIN_CORRELATION)
    same = pairs[_correlate(detail, pairs) >= needed]
    n = len(detail)
    links = coo_array((np.ones(len(same)), (same[:, 0], same[:, 1])), shape=(n, n))
    component: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return component


def _find_candidates(phash: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index pairs (P, 2) of hashes (N, 64) within the Hamming distance."""
    packed = np.packbits(phash, axis=1).view(np.uint64)[:, 0]
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(packed), _BLOCK):
        rows = packed[start : start + _BLOCK]
        near = np.bitwise_count(rows[:, None] ^ packed[None, start:]) <= _MAX_HAMMING
        i, j = np.nonzero(np.triu(near, k=1))
        found.append(np.stack([i + start, j + start], axis=1))
    return np.concatenate(found)


def _correlate(detail: NDArray[np.int8], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation of each pair (P,), maximum over shifts of up to 2 px each way."""
    best = np.empty(len(pairs))
    shifts = np.arange(-_SHIFT, _SHIFT + 1)
    for start in range(0, len(pairs), _BLOCK):
        one, two = (detail[rows].astype(np.float32) for rows in pairs[start : start + _BLOCK].T)
        product = fft.rfft2(one) * np.conj(fft.rfft2(two))
        table = fft.irfft2(product, s=(_SIDE, _SIDE))[:, shifts][:, :, shifts]
        norm = np.sqrt((one**2).sum((1, 2)) * (two**2).sum((1, 2))) + 1e-6
        best[start : start + _BLOCK] = table.max((1, 2)) / norm
    return best


def _describe(records: Sequence[Record]) -> Duplicates:
    return Duplicates(
        keys=tuple(record.key for record in records),
        across_splits=len({record.split for record in records}) > 1,
        across_labels=len({record.label for record in records}) > 1,
    )


def _find_shared_groups(records: Iterable[Record]) -> tuple[str, ...]:
    """Find patient names that occur in two splits.

    If the data came with splits, or names patients by subfolders of the classes, equal names are
    treated as different patients, because the numbering may simply restart.
    """
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.group:
            name = record.group.partition(":")[2]
            if f"/{name}/" in f"/{record.key}":  # class/patient
                name = name.rpartition("/")[2]
            splits.setdefault(name, set()).add(record.split)
    return tuple(sorted(name for name, found in splits.items() if len(found) > 1))


def _range(values: Sequence[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)
