"""2-D maps stored with a model, fitted in a background process.

Owns the folder ``maps`` inside a bundle: derived files, each written atomically, that can be
deleted at any time. The bundle's own files are never touched. Each fit is one process holding a
lock that is released when it dies, so a killed fit is never mistaken for a running one.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from core.errors import JobError
from core.files.whole import write_text, write_whole
from core.gallery.leave_one_out import NeighbourTable, find_neighbours
from core.gallery.projection import MapSettings, compute_cache_key, fit_map
from core.gallery.projection_quality import MapQuality, measure_map
from core.models.bundle import ModelBundle

FOLDER = "maps"
N_SPARE = 30  # neighbours stored beyond K, so that images can be excluded without a new search
_TABLE_RULE = 2  # version of the neighbour rules; tables of another version are rebuilt
_QUALITY_SHARE = 0.9
Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A fitted map with its settings and its quality."""

    settings: MapSettings
    coordinates: NDArray[np.float32]  # (N, 2) or (N, 3), row i belongs to gallery row i
    quality: MapQuality


@dataclass(frozen=True)
class FitState:
    """The progress of a fit."""

    status: Literal["none", "running", "done", "failed"]
    share: float = 0.0
    message: str = ""


def load_map(checkpoints: Path, bundle: ModelBundle, settings: MapSettings) -> FittedMap | None:
    """Load a stored map, or one that is fast to obtain (PCA, the bundle's own); else None."""
    embeddings = bundle.contents.gallery.embeddings
    path = _map_path(checkpoints, bundle, settings)
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        with np.load(path, allow_pickle=False) as arrays:
            coordinates = arrays["coordinates"]
            quality = MapQuality(**json.loads(str(arrays["quality"])))
        if coordinates.shape == (len(embeddings), settings.n_dimensions):
            return FittedMap(settings, coordinates, quality)
    own = settings == MapSettings(seed=bundle.config.run.train.seed)
    if own or settings.method == "pca":
        coordinates = bundle.contents.gallery_xy if own else fit_map(embeddings, settings)
        fitted = FittedMap(settings, coordinates, measure_map(embeddings, coordinates))
        with suppress(OSError):  # the quality takes seconds on a large gallery, so save
            path.parent.mkdir(exist_ok=True)  # it if the folder is writable
            _save_map(path, fitted)
        return fitted
    return None


def fit_and_save(
    checkpoints: Path,
    bundle: ModelBundle,
    settings: MapSettings,
    *,
    progress: Progress | None = None,
) -> FittedMap:
    """Fit a map now and save it with the bundle.

    Raises:
        JobError: another process is fitting the same map.
    """
    path = _map_path(checkpoints, bundle, settings)
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise JobError("another process is fitting this map now; wait.", code="job.busy") from err
    try:
        return _fit(path, bundle, settings, progress)
    finally:
        lock.release()


def _fit(
    path: Path, bundle: ModelBundle, settings: MapSettings, progress: Progress | None
) -> FittedMap:
    state = path.with_suffix(".json")

    def report(share: float, message: str) -> None:
        write_text(state, json.dumps({"status": "running", "share": share, "message": message}))
        if progress:
            progress(share, message)

    report(0.0, "starting")
    embeddings = bundle.contents.gallery.embeddings
    coordinates = fit_map(
        embeddings, settings, progress=lambda done, text: report(_QUALITY_SHARE * done, text)
    )
    report(_QUALITY_SHARE, "measuring the map")
    fitted = FittedMap(settings, coordinates, measure_map(embeddings, coordinates))
    _save_map(path, fitted)
    report(1.0, "done")
    state.unlink(missing_ok=True)
    return fitted


def start_fit(checkpoints: Path, model_id: str, settings: MapSettings) -> None:
    """Fit a map of a model in a background process; poll ``read_state``."""
    options = [
        *("--method", settings.method),
        *("--dimensions", str(settings.n_dimensions)),
        *("--neighbours", str(settings.n_neighbors)),
        *("--min-dist", str(settings.min_dist)),
        *("--seed", str(settings.seed)),
    ]
    run_command(["fit-map", "--model", model_id, *options, "--checkpoints", str(checkpoints)])


def run_command(arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start ``python -m core ...`` in the background; it outlives the page."""
    process = subprocess.Popen(
        [sys.executable, "-m", "core", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # Reap it when it ends, so that it does not become a zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def read_state(checkpoints: Path, bundle: ModelBundle, settings: MapSettings) -> FitState:
    """Read the progress of a fit; if its process died, it has failed."""
    path = _map_path(checkpoints, bundle, settings)
    if path.is_file():
        return FitState("done", 1.0)
    try:
        raw = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        share, message = float(raw["share"]), str(raw["message"])
    except (OSError, ValueError, KeyError):
        return FitState("none")
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return FitState("running", share, message)
    lock.release()
    return FitState("failed", share, message)


def load_neighbours(
    checkpoints: Path, bundle: ModelBundle, *, progress: Progress | None = None
) -> NeighbourTable:
    """Load the neighbour table of a bundle's gallery, or compute it and save it if the folder is
    writable."""
    gallery = bundle.contents.gallery
    path = neighbours_path(checkpoints, bundle)
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        with np.load(path, allow_pickle=False) as arrays:
            table = NeighbourTable(arrays["rows"].astype(np.int64), arrays["distances"])
        if table.rows.shape[:2] == (gallery.n_parts, len(gallery)):
            return table
    table = find_neighbours(gallery, bundle.n_shown + N_SPARE, progress=progress)
    with suppress(OSError):  # read-only folder: search again next time
        path.parent.mkdir(exist_ok=True)
        _save_arrays(path, rows=table.rows.astype(np.int32), distances=table.distances)
    return table


def neighbours_path(checkpoints: Path, bundle: ModelBundle) -> Path:
    """The path of the neighbour table."""
    key = compute_cache_key(bundle.contents.gallery.embeddings, seed=bundle.n_shown)
    return _folder(checkpoints, bundle) / f"neighbours-{_TABLE_RULE}-{key}.npz"


def _folder(checkpoints: Path, bundle: ModelBundle) -> Path:
    return checkpoints / bundle.model_id / FOLDER


def _map_path(checkpoints: Path, bundle: ModelBundle, settings: MapSettings) -> Path:
    embeddings = bundle.contents.gallery.embeddings
    key = compute_cache_key(embeddings, seed=settings.seed, settings=settings)
    return _folder(checkpoints, bundle) / f"map-{key}.npz"


def _save_map(path: Path, fitted: FittedMap) -> None:
    _save_arrays(
        path,
        coordinates=fitted.coordinates,
        quality=np.array(json.dumps(dataclasses.asdict(fitted.quality))),
        settings=np.array(json.dumps(dataclasses.asdict(fitted.settings))),
    )


def _save_arrays(path: Path, **arrays: Any) -> None:
    with write_whole(path, durable=False) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)
