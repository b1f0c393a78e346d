"""Read and write the folder of a model bundle: written atomically, checked on reading.

A bundle is written to a temporary folder, then renamed, and never edited afterwards. Pickle is
never read: parameters are safetensors, arrays are plain npz, the rest is JSON. Trunk parameters
are not stored in the bundle, which identifies them by hash.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from core.config import Settings, build_record
from core.errors import CheckpointError, ConfigError, CoreError
from core.files import abandoned
from core.files.mapped_memory import release_pages
from core.files.whole import check_writable_folder, hash_file, write_text
from core.files.zips import ZIP_ERRORS
from core.gallery import novelty
from core.gallery.corrections import GalleryState
from core.gallery.corrections_db import CurationStore, default_url
from core.gallery.projection import Projection
from core.gallery.search import Gallery
from core.models.bundle import BundleConfig, Contents, ModelBundle, check_model_id
from core.models.marks import MANIFEST_FILE, WEIGHTS_FILE, build_damaged, check_free
from core.models.seal import check_seal, compute_seal, write_seal
from core.network.backbone import Backbone
from core.network.build import build_embedder
from core.network.devices import choose_device, choose_precision
from core.network.embedder import Embedder
from core.stats.calibration import Calibration

logger = logging.getLogger(__name__)


def save_bundle(
    directory: Path, config: BundleConfig, embedder: Embedder, contents: Contents
) -> Path:
    """Write a bundle atomically: to a temporary folder, flushed, then renamed.

    Args:
        directory: the checkpoints folder.
        config: its weights_sha256 is filled in here.
        embedder: its net is stored.
        contents: the arrays and reports.

    Raises:
        CheckpointError: the name is taken.
    """
    check_free(directory, check_model_id(config.model_id))
    with write_folder(directory / config.model_id) as temporary:
        _write_files(temporary, config, embedder, contents)
    return directory / config.model_id


@contextmanager
def write_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder to write a model to; flush and rename it when the block ends."""
    check_writable_folder(final.parent)
    temporary = final.with_name(f".writing-{final.name}-{os.getpid()}")
    if abandoned.is_ours(temporary):  # of an earlier process with this id
        abandoned.remove(temporary)
    temporary.mkdir()
    try:
        yield abandoned.mark(temporary)
        abandoned.unmark(temporary)
        for path in temporary.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.rename(final)
    except BaseException:  # e.g. full disk or Ctrl-C: leave no partial model behind
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_files(
    folder: Path, config: BundleConfig, embedder: Embedder, contents: Contents
) -> None:
    packed = _pack_weights(embedder)
    (folder / WEIGHTS_FILE).write_bytes(packed)
    config = dataclasses.replace(config, weights_sha256=hashlib.sha256(packed).hexdigest())
    _save_arrays(folder, contents)
    for name, value in (
        ("config.json", dataclasses.asdict(config)),
        ("calibration.json", dataclasses.asdict(contents.calibration)),
        ("metrics.json", contents.metrics),
    ):
        write_text(folder / name, json.dumps(value, indent=2))
    write_text(folder / "train.log", contents.log)
    write_card(folder, contents.card)


def write_card(folder: Path, text: str) -> None:
    """Write the card with the model's identity, then seal the folder, whose files are complete."""
    identity = compute_seal(folder).identity
    line = f"Identity: {identity} (SHA-256 of all that takes part in its answers)"
    write_text(folder / "card.md", f"{text.rstrip()}\n\n{line}\n")
    write_seal(folder)


def _pack_weights(embedder: Embedder) -> bytes:
    """The trained parameters as a safetensors file."""
    state = embedder.net.state_dict()
    packed: bytes = save({key: v.detach().cpu().contiguous() for key, v in state.items()})
    return packed


def freeze_trained(embedder: Embedder) -> Embedder:
    """Freeze the model as loading does, so that the gallery is embedded by the same network."""
    return embedder.freeze(name=hashlib.sha256(_pack_weights(embedder)).hexdigest())


def _save_arrays(folder: Path, contents: Contents) -> None:
    gallery = contents.gallery
    copies = contents.novelty.copy_distances
    np.savez(
        folder / "gallery.npz",
        embeddings=gallery.embeddings,
        labels=gallery.labels,
        keys=np.array(gallery.keys, dtype=np.str_),
        splits=np.array(gallery.splits, dtype=np.str_),
        groups=np.array(gallery.groups, dtype=np.str_),
        sha256=np.array(gallery.sha256, dtype=np.str_),
        descriptors=contents.novelty.descriptors,
        copy_distances=np.zeros((0, 0), np.float32) if copies is None else copies,
    )
    np.savez(
        folder / "projection.npz",
        gallery_xy=contents.gallery_xy,
        cache_key=np.array(contents.projection_key),
    )
    np.savez(
        folder / "thumbnails.npz",
        data=np.frombuffer(b"".join(contents.thumbnails), dtype=np.uint8),
        ends=np.cumsum([len(t) for t in contents.thumbnails], dtype=np.int64),
    )


def read_bundle(
    folder: Path, settings: Settings, *, shared: Sequence[Backbone] = ()
) -> ModelBundle:
    """Read a bundle folder and build its network on the pretrained backbones.

    Args:
        folder: of the bundle.
        settings: of this machine.
        shared: backbones of bundles already read, whose trunks are reused.

    Raises:
        CheckpointError: the bundle is damaged, or its backbones' pretrained parameters have changed
            (not detected, and harmless, if their trunks were already compiled on this machine).
        BackboneError: the backbones' parameters are not available on this machine.
    """
    config = read_bundle_config(folder)
    seal = check_seal(folder)
    if seal is None:
        logger.warning(
            "model %s has no %s: it was made by an earlier version, or that file was lost. Changes "
            "in its gallery and calibration would not be noticed",
            folder.name,
            MANIFEST_FILE,
        )
    contents = _load_contents(folder, config)
    embedder = _build_embedder(config, settings, shared=shared)
    for info, backbone in zip(config.backbones, embedder.backbones, strict=True):
        if info.trunk_hash != backbone.trunk_hash:
            raise CheckpointError(
                f"model {folder.name!r} was trained on {info.name} weights from "
                f"{info.source_location}; the ones found here ({backbone.source.location}) differ. "
                "Use the same weights or train again.",
                code="checkpoint.trunk",
                params={"name": info.name},
            )
    _load_net(folder, config, embedder)
    embedder = embedder.freeze(name=config.weights_sha256)
    release_pages(folder / WEIGHTS_FILE)  # the tails may run on copies in another precision
    if embedder.precision != config.precision:
        logger.warning("model %s: %s", folder.name, say_precision(config, embedder))
    limit = contents.novelty.compute_limit(
        percentile=config.run.knn.novelty_percentile, slack=config.run.knn.novelty_slack
    )
    projection = Projection(contents.gallery_xy, contents.projection_key)
    state = _read_curation(settings.database_url or default_url(folder.parent), config.data_id)
    identity = seal.identity if seal else ""
    bundle = ModelBundle(config, embedder, contents, projection, limit, state, identity=identity)
    width = config.run.embedder.embedding_dim * contents.gallery.n_parts
    found = contents.gallery.embeddings.shape[1]
    if bundle.has_vote and found != width:
        raise build_damaged(folder, f"gallery embeddings have {found} values, not {width}")
    return bundle


def say_precision(config: BundleConfig, embedder: Embedder) -> str:
    """Say that the model runs in another precision than it was built in; empty if it does not."""
    if embedder.precision == config.precision:
        return ""
    return (
        f"its gallery was embedded in {config.precision}, and this machine computes in "
        f"{embedder.precision}; answers may differ slightly from those of the machine it was "
        "trained on"
    )


def _build_embedder(
    config: BundleConfig, settings: Settings, *, shared: Sequence[Backbone]
) -> Embedder:
    """Build the embedder in the gallery's precision, if this machine supports it."""
    run, asked = config.run, config.run.embedder.precision
    native = choose_precision(asked, choose_device(settings.device))
    if asked == "auto" and config.precision == native == "bfloat16":
        run = run.with_overrides(["embedder.precision=bfloat16"])
    embedder = build_embedder(run, settings, shared=shared, known=config.backbones)
    return dataclasses.replace(embedder, config=config.run)


def _read_curation(url: str, data_id: str) -> GalleryState:
    store = CurationStore(url)
    try:
        return store.read_state(data_id)
    finally:
        store.close()


def _load_net(folder: Path, config: BundleConfig, embedder: Embedder) -> None:
    """Load the trained parameters into the network, memory-mapped where possible."""
    path, net = folder / WEIGHTS_FILE, embedder.net
    kinds = {key: value.dtype for key, value in net.state_dict().items()}
    try:
        if hash_file(path) != config.weights_sha256:
            raise build_damaged(folder, f"{WEIGHTS_FILE} does not match its recorded hash")
        state = load_file(path)
        net.load_state_dict(state, assign=True)
    except (OSError, SafetensorError, RuntimeError) as err:
        raise build_damaged(folder, f"{WEIGHTS_FILE}: {err}") from err
    if any(value.dtype != kinds[key] for key, value in state.items()):
        raise build_damaged(folder, f"{WEIGHTS_FILE} holds values of another precision")
    if not all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        raise build_damaged(folder, f"{WEIGHTS_FILE} holds values that are not numbers")
    net.to(embedder.device).arrange().requires_grad_(False).eval()


def _load_contents(folder: Path, config: BundleConfig) -> Contents:
    try:
        with np.load(folder / "gallery.npz", allow_pickle=False) as arrays:
            gallery = Gallery(
                embeddings=arrays["embeddings"],
                labels=arrays["labels"],
                keys=tuple(arrays["keys"].tolist()),
                splits=tuple(arrays["splits"].tolist()),
                groups=tuple(arrays["groups"].tolist()),
                sha256=tuple(arrays["sha256"].tolist()),
                n_parts=max(1, config.run.objective.n_adapters),
            )
            descriptors = arrays["descriptors"]
            copies = _read_copies(arrays)
        with np.load(folder / "projection.npz", allow_pickle=False) as arrays:
            gallery_xy, key = arrays["gallery_xy"], str(arrays["cache_key"])
        with np.load(folder / "thumbnails.npz", allow_pickle=False) as arrays:
            data, ends = arrays["data"].tobytes(), arrays["ends"].tolist()
        calibration = build_record(
            Calibration, read_json(folder / "calibration.json"), "calibration.json"
        )
        card = (folder / "card.md").read_text(encoding="utf-8")
    except (*ZIP_ERRORS, CoreError) as err:
        raise build_damaged(folder, str(err)) from err
    if not (len(gallery_xy) == len(ends) == len(gallery) == len(descriptors)):
        raise build_damaged(folder, "gallery, map and thumbnails differ in length")
    if gallery.labels.min() < 0 or gallery.labels.max() >= len(config.class_names):
        raise build_damaged(folder, "gallery labels do not fit the class names")
    starts = [0, *ends[:-1]]
    return Contents(
        gallery=gallery,
        novelty=novelty.fit(descriptors, copy_distances=copies),
        gallery_xy=gallery_xy,
        projection_key=key,
        calibration=calibration,
        metrics=read_json(folder / "metrics.json"),
        thumbnails=tuple(data[a:b] for a, b in zip(starts, ends, strict=True)),
        card=card,
    )


def _read_copies(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32] | None:
    """Distances of ordinary copies, (V, M); None in a model that did not measure them."""
    if "copy_distances" not in arrays or not arrays["copy_distances"].size:
        return None
    copies = arrays["copy_distances"]
    if copies.ndim != 2 or not ((copies >= 0) & (copies <= 2)).all():  # of unit vectors
        raise ValueError("the distances of copies are not a table of numbers from 0 to 2")
    return copies.astype(np.float32)


def read_bundle_config(folder: Path) -> BundleConfig:
    """Read config.json of a bundle folder.

    Raises:
        CheckpointError: it is missing or not a bundle's.
    """
    raw = read_json(folder / "config.json")
    try:
        config = build_record(BundleConfig, raw, "config.json")
    except ConfigError as err:
        raise build_damaged(folder, str(err)) from err
    if not 0 <= config.disease_index < len(config.class_names):
        raise build_damaged(folder, "config.json: disease_index is not one of the classes")
    # The folder's name is the id, so a copied or renamed bundle takes its new name.
    return dataclasses.replace(config, model_id=folder.name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a bundle.

    Raises:
        CheckpointError: it is missing, not JSON, or not an object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise build_damaged(path.parent, f"{path.name}: {err}") from err
    if not isinstance(raw, dict):
        raise build_damaged(path.parent, f"{path.name}: expected an object")
    return raw
