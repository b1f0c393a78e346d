"""Compare two models on the same images: flipped answers, paired tests, subgroups.

Owns the comparison's record and its folder (``checkpoints/.comparisons``), so that a later
activation can rely on it. "First" is the model in use, "second" the one that may replace it.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.assessment.predict_split import SplitReading, find_copies, find_validated, read_split
from core.config import build_record
from core.data.datasets import Dataset, load_record
from core.data.manifest import read_columns
from core.errors import CheckpointError, ConfigError, DataError, ImageError
from core.files.names import read_path, write_path
from core.files.whole import write_text
from core.images.decode import encode_jpeg, thumbnail
from core.models.ensemble import Model
from core.network.embedder import Progress
from core.stats.paired_tests import DeLong, McNemar, compare_aurocs, compare_calls

_MAX_VALUES = 12  # of a column used for subgroups
_MIN_IMAGES = 10  # for a subgroup to be called harmed
_MAX_PICTURES = 60
_FOLDER = ".comparisons"
_ASIDE = "aside"  # subfolder for comparisons that do not count as evidence


@dataclass(frozen=True)
class ImageRow:
    """One image under both models: calibrated probabilities of disease, and the change."""

    key: str
    is_disease: bool
    p_first: float
    p_second: float
    change: str  # "fixed", "broken", or "same"
    picture: str = ""  # file beside the record, for flipped images
    group: str = ""  # patient


@dataclass(frozen=True)
class Subgroup:
    """Images that share a value of a manifest column."""

    column: str
    value: str
    n: int
    accuracy_first: float
    accuracy_second: float
    p_value: float  # of the calls within the subgroup, by patient
    is_harmed: bool  # accuracy fell by more than the limit, on enough images


@dataclass(frozen=True)
class Comparison:
    """The whole comparison, as stored."""

    first: str
    second: str
    first_sha256: str
    second_sha256: str
    data: str
    split: str
    created: str
    n: int
    accuracy_first: float
    accuracy_second: float
    mcnemar: McNemar
    delong: DeLong
    rows: tuple[ImageRow, ...]
    subgroups: tuple[Subgroup, ...]
    n_unreadable: int
    data_root: str = ""  # folder of the images; empty in older records
    first_gallery: str = ""  # the galleries that voted, with the version of their corrections
    second_gallery: str = ""
    n_known: int | None = None  # images used to train or validate either model; None in
    # older records

    @property
    def is_evidence(self) -> bool:
        """Whether it was made on test images that neither model had seen."""
        return is_evidence(self.split, self.n_known)


def is_evidence(split: str, n_known: int | None) -> bool:
    """Whether the gate counts a comparison: only test images, none of which a model had seen.

    Args:
        split: of the images.
        n_known: how many were used to train or validate either model; None: not counted (older
            records).
    """
    return split == "test" and n_known == 0


def compare_models(
    first: Model,
    second: Model,
    dataset: Dataset,
    *,
    split: str,
    hashes: tuple[str, str],
    pictures: Path | None = None,
    limit: float = 0.02,
    progress: Progress | None = None,
) -> Comparison:
    """Diagnose every image of a split with both models and compare the answers.

    Args:
        first: the model in use.
        second: the one that may replace it; must have the same classes.
        dataset: its images should not have been used to train either model, or the comparison is
            biased.
        split: of the data.
        hashes: weights_sha256 of both, so that another model of the same name is not mistaken.
        pictures: a folder for thumbnails of flipped images.
        limit: a subgroup is harmed if its accuracy falls by more than this.
        progress: called with the fraction done.

    Raises:
        DataError: the classes differ, the split is empty, or it has only one class.
    """

    def half(start: float) -> Progress:
        def report(done: float, text: str) -> None:
            if progress:
                progress(start + done / 2, text)

        return report

    one = read_split(first, dataset, split=split, progress=half(0.0))
    two = read_split(second, dataset, split=split, progress=half(0.5))
    mine, theirs = _match(one, two)
    truth = one.truth[mine]
    p_first, p_second = one.p_disease[mine], two.p_disease[theirs]
    keys, groups = ([names[i] for i in mine] for names in (one.keys, one.groups))
    rows = _draw_rows(keys, groups, truth, p_first, p_second)
    if pictures is not None:
        rows = _add_pictures(rows, dataset, pictures)
    return Comparison(
        first=first.model_id,
        second=second.model_id,
        first_sha256=hashes[0],
        second_sha256=hashes[1],
        data=dataset.data_id,
        split=split,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        n=len(rows),
        accuracy_first=float(np.mean((p_first > 0.5) == truth)),
        accuracy_second=float(np.mean((p_second > 0.5) == truth)),
        mcnemar=compare_calls(truth, p_first, p_second, groups=groups),
        delong=compare_aurocs(truth, p_first, p_second, groups=groups),
        rows=rows,
        subgroups=compare_subgroups(rows, read_subgroups(dataset.root, keys), limit=limit),
        n_unreadable=len(set(one.unreadable) | set(two.unreadable)),
        data_root=write_path(dataset.root),
        first_gallery=first.data_id,
        second_gallery=second.data_id,
        n_known=len(_find_known(first, dataset, one) | _find_known(second, dataset, two)),
    )


def _find_known(model: Model, dataset: Dataset, reading: SplitReading) -> set[str]:
    """Keys of images in a member's gallery or validation set: copies, or the same name in the same
    data."""
    known = find_copies(model, reading) | find_validated(model, reading)
    for member in model.members:
        config, contents = member.bundle.config, member.bundle.contents
        if config.data_id == dataset.data_id or config.training_data.is_at(dataset.root):
            validated = contents.metrics.get("validation_answers", {}).get("keys", ())
            known |= {*contents.gallery.keys, *validated} & set(reading.keys)
    return known


def _match(one: SplitReading, two: SplitReading) -> tuple[list[int], list[int]]:
    """Positions of the images that both models could read."""
    place = {key: index for index, key in enumerate(two.keys)}
    pairs = [(i, place[key]) for i, key in enumerate(one.keys) if key in place]
    if not pairs:
        raise DataError("no image of the split could be read.", code="data.empty")
    mine, theirs = zip(*pairs, strict=True)
    return list(mine), list(theirs)


def _draw_rows(
    keys: Sequence[str],
    groups: Sequence[str],
    truth: NDArray[np.bool_],
    p_first: NDArray[np.float64],
    p_second: NDArray[np.float64],
) -> tuple[ImageRow, ...]:
    """One row per image; flipped ones first, broken before fixed."""
    rows = []
    for key, group, is_disease, a, b in zip(keys, groups, truth, p_first, p_second, strict=True):
        was_right, is_right = (a > 0.5) == is_disease, (b > 0.5) == is_disease
        change = "same" if was_right == is_right else "fixed" if is_right else "broken"
        rows.append(ImageRow(key, bool(is_disease), float(a), float(b), change, group=group))
    order = {"broken": 0, "fixed": 1, "same": 2}
    return tuple(sorted(rows, key=lambda r: (order[r.change], -abs(r.p_second - r.p_first))))


def _add_pictures(
    rows: tuple[ImageRow, ...], dataset: Dataset, folder: Path
) -> tuple[ImageRow, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    records = {record.key: record for record in dataset.records}
    shown = []
    for index, row in enumerate(rows):
        if row.change != "same" and index < _MAX_PICTURES:
            try:
                pixels = load_record(records[row.key]).pixels
            except ImageError:  # deleted since it was diagnosed
                shown.append(row)
                continue
            name = f"{index:04d}.jpg"
            (folder / name).write_bytes(encode_jpeg(thumbnail(pixels)))
            row = dataclasses.replace(row, picture=name)
        shown.append(row)
    return tuple(shown)


def read_subgroups(root: Path, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Manifest columns that divide the images into a few groups: column -> key -> value."""
    columns = read_columns(root, keys)
    return {
        name: dict(zip(keys, values, strict=True))
        for name, values in columns.items()
        if 2 <= len(set(values)) <= _MAX_VALUES
    }


def compare_subgroups(
    rows: Sequence[ImageRow], columns: Mapping[str, Mapping[str, str]], *, limit: float
) -> tuple[Subgroup, ...]:
    """Compute both models' accuracy in each subgroup, most harmed first."""
    found = []
    for column, values in columns.items():
        for value in sorted({values[r.key] for r in rows if r.key in values}):
            mine = [r for r in rows if values.get(r.key) == value]
            truth = np.array([r.is_disease for r in mine], dtype=bool)
            probs = [np.array([getattr(r, p) for r in mine]) for p in ("p_first", "p_second")]
            one, two = (float(np.mean((p > 0.5) == truth)) for p in probs)
            test = compare_calls(truth, *probs, groups=[r.group for r in mine])
            is_harmed = one - two > limit and len(mine) >= _MIN_IMAGES
            found.append(Subgroup(column, value, len(mine), one, two, test.p_value, is_harmed))
    return tuple(sorted(found, key=lambda s: s.accuracy_second - s.accuracy_first))


def save_comparison(directory: Path, comparison: Comparison) -> Path:
    """Save a comparison with the models; a later one of the same pair replaces it.

    One that is not valid evidence is stored separately, so it never replaces one that is.
    """
    path = _find_path(directory, comparison.first, comparison.second, comparison.is_evidence)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(dataclasses.asdict(comparison)))
    return path


def _find_path(directory: Path, first: str, second: str, is_evidence: bool) -> Path:
    folder = directory / _FOLDER
    return (folder if is_evidence else folder / _ASIDE) / f"{first}--{second}.json"


def find_comparison(
    directory: Path, first: tuple[str, str], second: tuple[str, str]
) -> Comparison | None:
    """Find the saved comparison of two models, each given by name and weights_sha256.

    One that is valid evidence is preferred. None if there is none, or if it is of other models of
    the same names.
    """
    for is_evidence in (True, False):
        found = _read(_find_path(directory, first[0], second[0], is_evidence))
        if found and (found.first_sha256, found.second_sha256) == (first[1], second[1]):
            return found
    return None


def _read(path: Path) -> Comparison | None:
    if not path.is_file():
        return None
    try:
        found = build_record(Comparison, json.loads(path.read_text(encoding="utf-8")), path.name)
    except (ValueError, ConfigError) as err:
        raise CheckpointError(f"{path} cannot be read ({err}); compare the models again.") from err
    return found


def delete_comparisons(
    directory: Path, data_root: Path, *, pairs: Collection[tuple[str, str]] = ()
) -> None:
    """Delete saved comparisons on the images in a folder (resolved).

    Args:
        directory: the checkpoints folder.
        data_root: the folder.
        pairs: first and second model of comparisons on these images, for records without a folder.
    """
    for path in (directory / _FOLDER).rglob("*.json"):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            place, pair = raw.get("data_root"), (raw["first"], raw["second"])
        except (OSError, ValueError, KeyError, AttributeError):  # its folder is unknown
            continue
        if read_path(place).is_relative_to(data_root) if place else pair in pairs:
            path.unlink(missing_ok=True)
