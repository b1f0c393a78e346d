"""Read a folder, table or npz file into a Dataset, split by patient.

Owns the assignment of images to splits and labels. Reads no pixels until ``load_record``. Layouts:
``{train,val,test}/{class}/...``, flat ``{class}/...``, a ``manifest.csv`` (which takes precedence),
or a MedMNIST ``.npz``.
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from core.data import manifest
from core.data.class_names import order_classes
from core.data.folders import read_folders
from core.errors import DataError, ImageError
from core.files import untrusted_npz
from core.images.decode import Image, decode, encode_png, load

SPLITS = ("train", "val", "test")
_MIN_PER_CLASS = 4
_SAMPLE = 4096  # bytes hashed at each of three positions of a file
_UNREAD = b"unread"  # hashed in place of an unreadable file's content
_N_AHEAD = 4  # images that load_ahead prefetches


@dataclass(frozen=True)
class Record:
    """One image of a data set, not yet read."""

    key: str  # POSIX path inside the root, or "train/0012" for npz
    path: Path | None
    label: int
    split: str
    group: str | None = None  # patient, within the original split
    mask: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, classes and splits."""

    root: Path
    class_names: tuple[str, ...]  # in label order, normal first
    disease_index: int
    records: tuple[Record, ...]
    data_id: str  # short hash of the data, see _compute_data_id

    def subset(self, split: str) -> tuple[Record, ...]:
        """The records of one split, in order of keys."""
        return tuple(record for record in self.records if record.split == split)


@dataclass(frozen=True)
class _Found:
    """An image as found by a reader; ``split`` is empty if the data does not give it."""

    key: str
    class_name: str
    split: str = ""
    group: str = ""
    path: Path | None = None
    mask: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)


def read_dataset(
    root: Path,
    *,
    disease_class: str | None = None,
    model_disease: str | None = None,
    val_fraction: float = 0.15,
    seed: int = 0,
) -> Dataset:
    """Read a data folder or npz file and draw a validation split if there is none.

    Args:
        root: the folder or file.
        disease_class: the positive class, if the names do not tell.
        model_disease: the positive class of the model the data is for, used if ``disease_class`` is
            not given and the data has that class.
        val_fraction: fraction of training images moved to validation: stratified, whole groups.
        seed: of the validation split; the order of the files does not matter.

    Raises:
        DataError: missing, empty, not exactly two classes, too few images, or a bad manifest.
    """
    splits = read_splits(
        root,
        seeds=[seed],
        disease_class=disease_class,
        model_disease=model_disease,
        val_fraction=val_fraction,
    )
    return splits[seed]


def read_splits(
    root: Path,
    *,
    seeds: Sequence[int],
    disease_class: str | None = None,
    model_disease: str | None = None,
    val_fraction: float = 0.15,
) -> dict[int, Dataset]:
    """Read the images once and split off validation with several seeds.

    Args:
        root: this and the other arguments are as for ``read_dataset``.
        seeds: of the splits; if the data comes with a validation split, they make no difference.

    Raises:
        DataError: as ``read_dataset``.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"there is no data at {root}; check the path.", code="data.missing")
    found = sorted(_find_images(root), key=lambda item: item.key)
    if not found:
        raise DataError(
            f"no image was found in {root}; expected {{train,test}}/{{normal,disease}}/..., "
            "{normal,disease}/..., a manifest.csv or a MedMNIST .npz file.",
            code="data.empty",
        )
    names, disease_index = order_classes(
        {item.class_name for item in found}, disease_class, model_disease=model_disease
    )
    unsaid = "train" if any(item.split for item in found) else ""  # split of rows without one
    records = tuple(
        Record(
            key=item.key,
            path=item.path,
            label=names.index(item.class_name),
            split=item.split or "train",
            group=_name_group(item, unsaid),
            mask=item.mask,
            array=item.array,
        )
        for item in found
    )
    has_val = any(record.split == "val" for record in records)
    data_id = _compute_data_id(records, names)
    found_splits: dict[int, Dataset] = {}
    for seed in dict.fromkeys(seeds):
        if has_val and found_splits:
            found_splits[seed] = next(iter(found_splits.values()))
            continue
        mine = (
            records
            if has_val
            else _split_validation(records, fraction=val_fraction, seed=seed, names=names)
        )
        _check_counts(mine, names)
        found_splits[seed] = Dataset(root, names, disease_index, mine, data_id)
    return found_splits


def load_record(record: Record) -> Image:
    """Read and decode one image.

    Raises:
        ImageError: it cannot be read.
    """
    if record.path is not None:
        return replace(load(record.path), name=record.key)
    assert record.array is not None
    array = record.array if record.array.ndim == 3 else np.stack([record.array] * 3, axis=2)
    return decode(encode_png(array), name=record.key)


def load_ahead(records: Iterable[Record]) -> Iterator[tuple[Record, Image | ImageError]]:
    """Read images in order, prefetching in a thread while the caller computes.

    Yields:
        each record with its image, or the error if it cannot be read.
    """

    def read(record: Record) -> Image | ImageError:
        try:
            return load_record(record)
        except ImageError as err:
            return err

    left = iter(records)
    with ThreadPoolExecutor(1) as pool:  # core.images.decode decodes one at a time
        waiting = deque((r, pool.submit(read, r)) for r in itertools.islice(left, _N_AHEAD))
        while waiting:
            record, reading = waiting.popleft()
            waiting.extend((r, pool.submit(read, r)) for r in itertools.islice(left, 1))
            yield record, reading.result()


def _find_images(root: Path) -> list[_Found]:
    if root.is_file():
        return _read_npz(root)
    if (root / manifest.NAME).is_file():
        return _read_manifest(root)
    archives = sorted(root.glob("*.npz"))
    if len(archives) == 1:
        return _read_npz(archives[0])
    return [
        _Found(one.key, one.class_name, one.split, one.group, one.path)
        for one in read_folders(root)
    ]


def _read_manifest(root: Path) -> list[_Found]:
    columns, rows = manifest.read_rows(root)
    missing = sorted({"file", "split", "label"} - set(columns))
    if missing:
        raise manifest.refuse(f"has no column {', '.join(missing)}")
    found, absent = [], []
    for number, row in enumerate(rows, start=2):
        item = _read_row(root, row, number)
        if item.path is None or not _is_there(item.path):
            absent.append(item.key)
        found.append(item)
    if absent:
        few = ", ".join(absent[:3])
        raise manifest.refuse(f"names {len(absent)} files that are not there, first {few}")
    twice = [key for key, n in Counter(item.key for item in found).items() if n > 1]
    if twice:
        raise manifest.refuse(f"names {len(twice)} files twice, first {twice[0]}")
    return found


def _is_there(path: Path) -> bool:
    """Whether a path is a file; one that cannot be looked up (name too long) is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read_row(root: Path, row: Mapping[str, str], number: int) -> _Found:
    split = row["split"].lower()
    if split not in ("", *SPLITS):
        raise manifest.refuse(
            f"has split {row['split']!r} in line {number}; known are train, val, test"
        )
    if not row["label"]:
        raise manifest.refuse(f"has no label in line {number}")
    for name in (row["file"], row.get("mask", "")):
        parts = PurePosixPath(name).parts
        if ".." in parts or PurePosixPath(name).is_absolute() or ":" in name[:3]:
            raise manifest.refuse(f"points out of its folder in line {number}")
    mask = row.get("mask", "")
    return _Found(
        key=manifest.name_key(row["file"]),
        class_name=row["label"],
        split=split,
        group=row.get("group", ""),
        path=root / row["file"] if row["file"] else None,
        mask=root / mask if mask else None,
    )


def _read_npz(path: Path) -> list[_Found]:
    found = []
    try:
        untrusted_npz.check_claims(
            path, [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
        )
        with np.load(path, allow_pickle=False) as arrays:
            for split in SPLITS:
                if f"{split}_images" not in arrays:
                    continue
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
                is_grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
                if images.dtype != np.uint8 or not is_grey_or_rgb or len(images) != len(labels):
                    raise ValueError(f"{split}_images has shape {images.shape} {images.dtype}")
                found += [
                    _Found(f"{split}/{i:05d}", str(int(label)), split, array=image)
                    for i, (image, label) in enumerate(zip(images, labels, strict=True))
                ]
    except untrusted_npz.ERRORS as err:
        reason = str(err) or type(err).__name__
        raise DataError(
            f"{path.name} cannot be used ({reason}); expected a MedMNIST 2-D file: uint8 "
            "{train,val,test}_images (N, H, W[, 3]) and {train,val,test}_labels (N, 1).",
            code="data.npz",
        ) from err
    words = {"0": "normal", "1": "disease"}
    if {item.class_name for item in found} == set(words):
        found = [replace(item, class_name=words[item.class_name]) for item in found]
    return found


def _name_group(item: _Found, unsaid: str) -> str | None:
    """Name a group per original split, because numbering may restart in each."""
    return f"{item.split or unsaid}:{item.group}" if item.group else None


def _split_validation(
    records: Sequence[Record], *, fraction: float, seed: int, names: Sequence[str]
) -> tuple[Record, ...]:
    """Move whole groups of training images to validation, stratified by class."""
    rows = [i for i, record in enumerate(records) if record.split == "train"]
    labels = np.array([records[i].label for i in rows])
    groups = np.array([records[i].group or f"\0{records[i].key}" for i in rows])
    per_class = [len(set(groups[labels == label])) for label in range(len(names))]
    if min(per_class, default=0) < 2:
        raise DataError(
            f"class {names[int(np.argmin(per_class))]!r} has too few patients in train "
            f"({min(per_class, default=0)}) to set some apart for validation; at least 2 are "
            "needed.",
            code="data.too_few",
        )
    n_folds, n_held = _choose_folds(fraction, most=min(per_class))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    held_out = itertools.islice(folds.split(np.zeros(len(rows)), labels, groups), n_held)
    moved = {rows[i] for _, places in held_out for i in places}
    return tuple(
        replace(record, split="val") if i in moved else record for i, record in enumerate(records)
    )


def _choose_folds(fraction: float, *, most: int) -> tuple[int, int]:
    """Number of folds, and how many to hold out: the fewest within 5 %, or the closest."""
    pairs = [
        (n, min(max(1, round(fraction * n)), n - 1))
        for n in range(2, max(2, min(most, round(3.0 / fraction))) + 1)
    ]

    def miss(pair: tuple[int, int]) -> float:
        return abs(pair[1] / pair[0] - fraction)

    return next((pair for pair in pairs if miss(pair) <= 0.05 * fraction), min(pairs, key=miss))


def _check_counts(records: Sequence[Record], names: Sequence[str]) -> None:
    counts = Counter(record.label for record in records if record.split == "train")
    for label, name in enumerate(names):
        if counts[label] < _MIN_PER_CLASS:
            raise DataError(
                f"class {name!r} has {counts[label]} training images; at least {_MIN_PER_CLASS} "
                "are needed, and some hundreds for a useful model.",
                code="data.too_few",
                params={"class_name": name, "n": counts[label]},
            )


def _compute_data_id(records: Sequence[Record], names: Sequence[str]) -> str:
    """Hash keys, labels, patients, original splits and samples of the files' content.

    A validation split drawn by seed is not included, so that gallery corrections apply to any seed.
    """
    digest = hashlib.sha256("\n".join(names).encode())
    for record in records:
        about = f"\n{record.key}\t{record.label}\t{record.split}\t{record.group or ''}\t"
        digest.update(about.encode())
        if record.array is not None:
            digest.update(np.ascontiguousarray(record.array).tobytes())
        elif record.path is not None:
            digest.update(_sample(record.path))
    return digest.hexdigest()[:12]


def _sample(path: Path) -> bytes:
    """The size of a file and its beginning, middle and end: names such as IM0001 are not unique.

    An unreadable file gets a fixed marker; reading its pixels raises the error.
    """
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as handle:
            pieces = []
            for start in sorted({0, max(0, (size - _SAMPLE) // 2), max(0, size - _SAMPLE)}):
                handle.seek(start)
                pieces.append(handle.read(_SAMPLE))
    except OSError:
        return _UNREAD
    return b"".join([str(size).encode(), *pieces])
