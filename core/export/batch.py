"""Answers to many files, one row each, with the pictures and exports that go with them.

Owns the listing of files, the names of what is written beside them, and the row of a file that
fails: one file never ends a batch. Rows are in the form of ``core.export.worklist.to_json``.
"""

import dataclasses
import errno
import json
import logging
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.answers.diagnose import diagnose, reject
from core.answers.diagnosis import Diagnosis
from core.answers.scrutiny import draw_maps, scrutinise
from core.data.folder_words import is_system_file, is_system_folder
from core.errors import ConfigError, CoreError, ImageError, locate
from core.explanations.grad_cam import overlay, resize_heatmap
from core.explanations.methods import SHOWN
from core.export.formats import Case, CaseFormat
from core.export.worklist import to_json, write_csv
from core.files.names import clean, show_name
from core.files.whole import write_bytes, write_whole
from core.images.decode import encode_png, load
from core.models.ensemble import Model

logger = logging.getLogger(__name__)

_STEM_BYTES = 100  # of the image's name in the names of its files, below any length limit


@dataclass(frozen=True)
class Extras:
    """What is written for each answered file beside its row."""

    heatmaps: Path | None = None  # folder
    method: str = SHOWN  # of the heatmaps
    formats: Sequence[CaseFormat] = field(default_factory=tuple)
    exports: Path = Path("exports")  # folder of the formats

    @property
    def draws(self) -> bool:
        """Whether heatmaps are needed."""
        return self.heatmaps is not None or bool(self.formats)


@dataclass(frozen=True)
class Listing:
    """The files under some paths."""

    files: tuple[Path, ...]
    n_system: int  # hidden and system files that are left out


def list_files(paths: Iterable[Path]) -> Listing:
    """List files, and everything in folders that is no folder: links and devices too.

    A folder that cannot be read is listed itself, so that its row says so. Links to folders inside
    a folder are not followed.
    """
    files: list[Path] = []
    n_system = 0
    for path in paths:
        if exists(path) and path.is_dir():
            inside = _list_folder(path)
            files += inside.files
            n_system += inside.n_system
        else:
            files.append(path)
    return Listing(tuple(files), n_system)


def _list_folder(path: Path) -> Listing:
    files: list[Path] = []
    n_system = 0

    def keep_unreadable(err: OSError) -> None:
        files.append(Path(err.filename))

    for folder, names, inside in os.walk(path, onerror=keep_unreadable):
        hidden = [name for name in names if is_system_folder(name)]
        n_system += sum(
            len(found) for name in hidden for *_, found in os.walk(os.path.join(folder, name))
        )
        names[:] = sorted((name for name in names if name not in hidden), key=os.fsencode)
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        kept = [name for name in (*inside, *links) if not is_system_file(name)]
        n_system += len(inside) + len(links) - len(kept)
        files += [Path(folder, name) for name in sorted(kept, key=os.fsencode)]
    return Listing(tuple(files), n_system)


def exists(path: Path) -> bool:
    """Whether a path exists, readable or not; an impossible name does not."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as err:
        return err.errno != errno.ENAMETOOLONG
    return True


def skip_done(files: Sequence[Path], rows: Iterable[dict[str, Any]]) -> list[Path]:
    """The files that have no row yet; a file given twice has two rows."""
    done = Counter(str(row["file"]) for row in rows)
    left = []
    for path in files:
        name = show_name(path)
        if done[name] > 0:
            done[name] -= 1
        else:
            left.append(path)
    return left


def answer_files(
    model: Model,
    files: Iterable[Path],
    extras: Extras,
    *,
    first: int = 0,
    warn: Callable[[str], None] = lambda _text: None,
) -> Iterator[dict[str, Any]]:
    """Diagnose files one by one.

    Args:
        model: loaded.
        files: paths; whatever is wrong with one becomes its row.
        extras: what to write beside the rows.
        first: number of the first file, for the names of what is written.
        warn: told of exports that could not be made.

    Yields:
        The JSON row of each file, in order.

    Raises:
        ConfigError: something cannot be written; the rows before were yielded.
    """
    for index, path in enumerate(files, start=first):
        done = _diagnose_file(model, path, extras)
        pictures = {}
        if extras.heatmaps is not None:
            pictures = _save_heatmaps(done, extras.heatmaps, index=index)
        if done.pixels is not None:
            _export(model, done, path, extras, index=index, warn=warn)
        yield to_json(done, heatmap_files=pictures)


def _diagnose_file(model: Model, path: Path, extras: Extras) -> Diagnosis:
    name = show_name(path)
    try:
        image = dataclasses.replace(load(path), name=name)
        done = diagnose(model, [image], explain=extras.draws)[0]
        if extras.draws and (leading := done.predicted_class):
            maps = draw_maps(model, done, class_name=leading, method=extras.method)
            done = dataclasses.replace(done, maps=maps)
    except CoreError as err:
        return reject(name, err, model=model)
    except Exception as err:  # noqa: BLE001 - one file must not end a batch of thousands
        logger.error("a file of a batch failed unexpectedly: %s", locate(err))
        reason = ImageError(
            f"the image could not be read because of an internal error ({type(err).__name__}); "
            "please report it with the file.",
            code="image.internal",
        )
        return reject(name, reason, model=model)
    return done


def write_results(
    rows: Callable[[], Iterable[dict[str, Any]]],
    *,
    json_file: Path | None,
    csv_file: Path | None,
    class_names: Sequence[str],
) -> None:
    """Write the rows of a finished batch as files, each of them whole or not at all.

    Args:
        rows: reads them from the beginning.
        json_file: for the list of all rows.
        csv_file: for the table.
        class_names: of the model, for the columns of the table.

    Raises:
        OSError: a file cannot be written.
    """
    if json_file is not None:
        with write_whole(json_file) as temporary, temporary.open("w", encoding="utf-8") as handle:
            handle.writelines(format_list(rows()))
    if csv_file is not None:
        with write_whole(csv_file) as temporary:
            temporary.write_text(write_csv(rows(), class_names), encoding="utf-8", newline="")


def format_list(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Rows as pieces of the text of a JSON list, so that no list need be in memory."""
    opening = "["
    for row in rows:
        text = json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False)
        yield f"{opening}\n{textwrap.indent(text, '  ')}"
        opening = ","
    yield "[]\n" if opening == "[" else "\n]\n"


def name_case(file: str, index: int) -> str:
    """A unique start of the names of a case's files, allowed on any file system."""
    stem = clean(Path(file).stem).encode()[:_STEM_BYTES].decode(errors="ignore")
    return f"{index:04d}-{stem}"


def _save_heatmaps(diagnosis: Diagnosis, folder: Path, *, index: int) -> dict[str, str]:
    if diagnosis.pixels is None:
        return {}
    files = {}
    for backbone, heatmap in diagnosis.heatmaps.items():
        path = folder / f"{name_case(diagnosis.file, index)}-{backbone}.png"
        height, width = diagnosis.pixels.shape[:2]
        fine = resize_heatmap(heatmap, height=height, width=width)
        _write(path, encode_png(overlay(diagnosis.pixels, fine, opacity=0.6)))
        files[backbone] = str(path)
    return files


def _export(
    model: Model,
    diagnosis: Diagnosis,
    path: Path,
    extras: Extras,
    *,
    index: int,
    warn: Callable[[str], None],
) -> None:
    """Write one case in each format; its heatmaps are tested first, as on the page."""
    if not extras.formats:
        return
    scrutiny = None
    if diagnosis.abstain_reason != "novel" and diagnosis.predicted_class:
        scrutiny = scrutinise(model, diagnosis, diagnosis.maps)
    case = Case(model, diagnosis, scrutiny, path.read_bytes)
    for export in extras.formats:
        try:
            data = export.build(case)
        except CoreError as err:
            warn(f"{show_name(path.name)}: {export.name} could not be made. {err}")
            continue
        name = f"{name_case(diagnosis.file, index)}{export.suffix}"
        _write(extras.exports / name, data)


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data, durable=False)
    except OSError as err:
        raise ConfigError(
            f"cannot write into {show_name(path.parent)} ({err.strerror or err}).",
            code="output.unwritable",
        ) from err
