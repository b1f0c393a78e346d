"""The command that diagnoses images: predict."""

import dataclasses
import errno
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from core.answers.diagnosis import RESEARCH_USE, Diagnosis
from core.cli.terminal import (
    CONSOLE,
    Checkpoints,
    JsonFile,
    Model,
    read_settings,
    show_progress,
    write_json,
    write_text,
)
from core.errors import ConfigError, CoreError
from core.export.worklist import to_csv, to_json
from core.files.whole import write_bytes

if TYPE_CHECKING:
    from core.export.formats import CaseFormat
    from core.models.ensemble import Model as LoadedModel

_STEM_BYTES = 100  # of the image's name in a heatmap's file name, to stay below any length limit


def predict(
    model: Model,
    paths: Annotated[list[Path], typer.Argument(help="Images, DICOM files or folders.")],
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a table here.")] = None,
    explain: Annotated[
        Path | None, typer.Option("--explain", help="Write heatmap pictures into this folder.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--heatmap-method", help="Of the heatmaps; a wrong one lists the right ones."),
    ] = None,
    exports: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Also write each answered case as a file; a wrong format lists the right ones.",
        ),
    ] = None,
    export_to: Annotated[Path, typer.Option("--to", help="Folder of --export.")] = Path("exports"),
    checkpoints: Checkpoints = None,
) -> None:
    """Diagnose images, each with its evidence; an unreadable file is reported and skipped.

    A path that does not exist is skipped too, unless none of them exists.
    """
    from core.answers.diagnose import diagnose, reject
    from core.answers.scrutiny import draw_maps
    from core.explanations.methods import SHOWN, find_method
    from core.images.decode import load
    from core.models.registry import load_bundle

    settings = read_settings(checkpoints)
    bundle = load_bundle(settings.checkpoints_dir, model, settings=settings)
    files = list(_find_files(paths))
    if not any(_exists(path) for path in paths):
        named = ", ".join(str(path) for path in paths[:3])
        raise ConfigError(f"there is nothing at {named}; check the paths.")
    if not files:
        raise ConfigError("no file was found under the given paths; name images or folders.")
    chosen = _choose_formats(exports or ())
    method = method or SHOWN
    find_method(method)
    if explain is not None:
        _check_writable(explain, "heatmaps")
    if chosen:
        _check_writable(export_to, "exports")
    draws = explain is not None or bool(chosen)
    diagnoses: list[Diagnosis] = []
    written: list[dict[str, str]] = []
    with show_progress("predict") as report:
        for index, path in enumerate(files):
            try:
                image = dataclasses.replace(load(path), name=str(path))
                done = diagnose(bundle, [image], explain=draws)[0]
                if draws and (leading := done.predicted_class):
                    maps = draw_maps(bundle, done, class_name=leading, method=method)
                    done = dataclasses.replace(done, maps=maps)
            except CoreError as err:
                done = reject(str(path), err, model=bundle)
            written.append(_save_heatmaps(done, explain, index=index) if explain else {})
            if chosen and done.pixels is not None:
                _export(chosen, bundle, done, path, folder=export_to, index=index)
            diagnoses.append(dataclasses.replace(done, maps=(), pixels=None, overlay=None))
            report((index + 1) / len(files), f"{index + 1} of {len(files)} files")
    rows = [to_json(d, heatmap_files=f) for d, f in zip(diagnoses, written, strict=True)]
    write_json(json_file, rows)
    if csv_file is not None:
        write_text(csv_file, to_csv(diagnoses))
    if json_file is None and csv_file is None:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    _print_worklist(diagnoses)


def _choose_formats(keys: Sequence[str]) -> "list[CaseFormat]":
    """Find the requested formats.

    Raises:
        ConfigError: a format does not exist.
    """
    from core.export.formats import CASE_FORMATS

    unknown = [key for key in keys if key not in CASE_FORMATS]
    if unknown:
        raise ConfigError(f"unknown format {unknown[0]!r}; choose among {', '.join(CASE_FORMATS)}.")
    return [CASE_FORMATS[key] for key in dict.fromkeys(keys)]


def _find_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if _exists(path) and path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
        else:
            yield path


def _exists(path: Path) -> bool:
    """Whether the path exists, readable or not; an impossible name does not."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as err:
        return err.errno != errno.ENAMETOOLONG
    return True


def _check_writable(folder: Path, what: str) -> None:
    """Check that the folder is writable, before hours of work.

    Raises:
        ConfigError: it is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise _refuse_folder(folder, what, err) from err


def _refuse_folder(folder: Path, what: str, err: OSError) -> ConfigError:
    return ConfigError(f"cannot write {what} into {folder} ({err.strerror or err}).")


def _name_case(diagnosis: Diagnosis, index: int) -> str:
    """A unique file-name prefix for a case, short enough for any file system."""
    stem = Path(diagnosis.file).stem.encode(errors="ignore")[:_STEM_BYTES].decode(errors="ignore")
    return f"{index:04d}-{stem}"


def _export(
    formats: "Sequence[CaseFormat]",
    model: "LoadedModel",
    diagnosis: Diagnosis,
    path: Path,
    *,
    folder: Path,
    index: int,
) -> None:
    """Write one case in each format; its heatmaps are tested first, as on the page."""
    from core.answers.scrutiny import scrutinise
    from core.export.formats import Case

    scrutiny = None
    if diagnosis.abstain_reason != "novel" and diagnosis.predicted_class:
        scrutiny = scrutinise(model, diagnosis, diagnosis.maps)
    case = Case(model, diagnosis, scrutiny, path.read_bytes)
    for export in formats:
        try:
            data = export.build(case)
            write_bytes(folder / f"{_name_case(diagnosis, index)}{export.suffix}", data)
        except OSError as err:
            raise _refuse_folder(folder, "exports", err) from err
        except CoreError as err:
            CONSOLE.print(f"{path.name}: {export.name} could not be made. {err}", markup=False)


def _save_heatmaps(diagnosis: Diagnosis, folder: Path, *, index: int) -> dict[str, str]:
    from core.explanations.grad_cam import overlay, resize_heatmap
    from core.images.decode import encode_png

    if diagnosis.pixels is None:
        return {}
    files = {}
    for backbone, heatmap in diagnosis.heatmaps.items():
        path = folder / f"{_name_case(diagnosis, index)}-{backbone}.png"
        height, width = diagnosis.pixels.shape[:2]
        fine = resize_heatmap(heatmap, height=height, width=width)
        try:
            path.write_bytes(encode_png(overlay(diagnosis.pixels, fine, opacity=0.6)))
        except OSError as err:
            raise _refuse_folder(folder, "heatmaps", err) from err
        files[backbone] = str(path)
    return files


def _print_worklist(diagnoses: Sequence[Diagnosis]) -> None:
    table = Table("file", "status", "class", "probability", "reason")
    for d in diagnoses:
        probability = d.probabilities.get(d.answer or "")
        table.add_row(
            Path(d.file).name,
            d.status,
            d.answer or "",
            f"{probability:.3f}" if probability is not None else "",
            d.error or d.abstain_reason or "",
        )
    CONSOLE.print(table)
    for d in diagnoses:
        for notice in d.notices:
            CONSOLE.print(f"{Path(d.file).name}: {notice.text}", markup=False)
    CONSOLE.print(RESEARCH_USE)
