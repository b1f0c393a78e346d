"""Turn the plan of a data folder into a Dataset, split by patient.

Owns the validation split and the reading of images. What the folder holds is decided in
``core.data.plan``.
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from core.data.options import DataOptions, TrainingData
from core.data.plan import Found, Plan, make_plan
from core.errors import DataError, ImageError
from core.images.decode import Image, decode, encode_png, load

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
    plan: Plan | None = None  # how the data was read; None for a data set built in memory

    def subset(self, split: str) -> tuple[Record, ...]:
        """The records of one split, in order of keys."""
        return tuple(record for record in self.records if record.split == split)


def read_dataset(
    root: Path,
    options: DataOptions | None = None,
    *,
    model: TrainingData | None = None,
    val_fraction: float = 0.15,
    seed: int = 0,
) -> Dataset:
    """Read a data folder, table or npz file and draw a validation split if there is none.

    Args:
        root: the folder or file.
        options: what a person says about it.
        model: the training data of the model that the data is for; see ``make_plan``.
        val_fraction: fraction of training images moved to validation: stratified, whole groups.
        seed: of the validation split; the order of the files does not matter.

    Raises:
        DataError: as ``make_plan`` and ``split_plan``.
    """
    plan = make_plan(root, options, model=model)
    return split_plan(plan, seeds=[seed], val_fraction=val_fraction)[seed]


def split_plan(
    plan: Plan, *, seeds: Sequence[int], val_fraction: float = 0.15
) -> dict[int, Dataset]:
    """Make data sets of a plan, with validation split off by several seeds.

    Args:
        plan: of the data.
        seeds: of the splits; if the data come with a validation split, they make no difference.
        val_fraction: as for ``read_dataset``.

    Raises:
        DataError: a question of the plan is open, or a class has too few images.
    """
    plan.require_answers()
    names = plan.class_names
    unsaid = "train" if any(item.split for item in plan.found) else ""  # of rows without one
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
        for item in plan.found
    )
    has_val = any(record.split == "val" for record in records)
    data_id = _compute_data_id(records, names)
    found: dict[int, Dataset] = {}
    for seed in dict.fromkeys(seeds):
        if has_val and found:
            found[seed] = next(iter(found.values()))
            continue
        mine = (
            records
            if has_val
            else _split_validation(records, fraction=val_fraction, seed=seed, names=names)
        )
        _check_counts(mine, names)
        found[seed] = Dataset(plan.root, names, len(names) - 1, mine, data_id, plan)
    return found


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


def _name_group(item: Found, unsaid: str) -> str | None:
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
