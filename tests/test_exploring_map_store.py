"""Maps stored with a bundle: remembered, measured, fitted in the background, never incomplete."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from core.config import Settings
from core.errors import ConfigError, JobError
from core.exploring import map_store
from core.gallery import projection
from core.gallery.projection import MapSettings, compute_cache_key, fit_map
from core.models.bundle import ModelBundle
from core.models.registry import load_bundle

PCA3 = MapSettings("pca", 3)
UMAP3 = MapSettings("umap", 3, n_neighbors=5, min_dist=0.3, seed=2)


@pytest.fixture
def home(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """A checkpoints folder that a test can write to."""
    shutil.copytree(tiny_checkpoints / "demo-triplet", tmp_path / "demo-triplet")
    return tmp_path


def test_pca_is_there_at_once_with_its_figures(home: Path, tiny_bundle: ModelBundle) -> None:
    fitted = map_store.load_map(home, tiny_bundle, PCA3)
    assert fitted is not None
    assert fitted.coordinates.shape == (len(tiny_bundle.gallery), 3)
    assert 0.5 < fitted.quality.trustworthiness <= 1.0
    spread = fitted.coordinates.std(axis=0)
    assert spread[0] >= spread[1] >= spread[2]


def test_principal_components_keep_distances_where_three_axes_are_all() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    flat = fit_map(points, PCA3)
    for few in (points, points[:3]):
        flat = fit_map(few, PCA3)
        wanted = np.linalg.norm(few[:, None] - few, axis=2)
        np.testing.assert_allclose(np.linalg.norm(flat[:, None] - flat, axis=2), wanted, atol=1e-4)


def test_the_bundles_own_map_needs_no_fit(home: Path, tiny_bundle: ModelBundle) -> None:
    own = MapSettings(seed=tiny_bundle.config.run.train.seed)
    fitted = map_store.load_map(home, tiny_bundle, own)
    assert fitted is not None
    np.testing.assert_array_equal(fitted.coordinates, tiny_bundle.contents.gallery_xy)
    embeddings = tiny_bundle.gallery.embeddings
    assert compute_cache_key(embeddings, seed=own.seed) == tiny_bundle.projection.cache_key


def test_a_map_is_fitted_kept_and_remembered(home: Path, tiny_bundle: ModelBundle) -> None:
    assert map_store.load_map(home, tiny_bundle, UMAP3) is None
    shares: list[float] = []
    fitted = map_store.fit_and_save(
        home, tiny_bundle, UMAP3, progress=lambda share, _text: shares.append(share)
    )
    assert fitted.coordinates.shape == (len(tiny_bundle.gallery), 3)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    again = map_store.load_map(home, tiny_bundle, UMAP3)
    assert again is not None
    np.testing.assert_array_equal(again.coordinates, fitted.coordinates)
    assert again.quality == fitted.quality
    assert map_store.read_state(home, tiny_bundle, UMAP3).status == "done"
    # The bundle with its maps still loads.
    load_bundle(home, "demo-triplet", settings=Settings(device="cpu"))


def test_umaps_progress_bar_is_read_as_a_share() -> None:
    told: list[tuple[float, str]] = []
    reader = projection._EpochReader(lambda share, text: told.append((share, text)))
    for text in ("\r", "\r125/500", "Epochs completed:", "\r500/500\n"):
        reader.write(text)
    assert told == [(0.25, "epoch 125 of 500"), (1.0, "epoch 500 of 500")]


def test_a_dead_fit_has_failed_and_a_live_one_is_not_joined(
    home: Path, tiny_bundle: ModelBundle
) -> None:
    assert map_store.read_state(home, tiny_bundle, UMAP3).status == "none"
    path = map_store._map_path(home, tiny_bundle, UMAP3)
    path.parent.mkdir()
    state = {"status": "running", "share": 0.4, "message": "epoch 2 of 5"}
    path.with_suffix(".json").write_text(json.dumps(state), encoding="utf-8")
    assert map_store.read_state(home, tiny_bundle, UMAP3).status == "failed"
    with FileLock(path.with_suffix(".lock")):
        running = map_store.read_state(home, tiny_bundle, UMAP3)
        assert running == map_store.FitState("running", 0.4, "epoch 2 of 5")
        with pytest.raises(JobError, match="another process"):
            map_store.fit_and_save(home, tiny_bundle, UMAP3)


def test_a_damaged_file_is_made_again(home: Path, tiny_bundle: ModelBundle) -> None:
    table = map_store.load_neighbours(home, tiny_bundle)
    path = map_store.neighbours_path(home, tiny_bundle)
    again = map_store.load_neighbours(home, tiny_bundle)
    np.testing.assert_array_equal(again.rows, table.rows)
    path.write_bytes(b"not an archive")
    np.testing.assert_array_equal(map_store.load_neighbours(home, tiny_bundle).rows, table.rows)
    map_path = map_store._map_path(home, tiny_bundle, UMAP3)
    map_path.write_bytes(b"not an archive")
    assert map_store.load_map(home, tiny_bundle, UMAP3) is None


def test_what_cannot_be_kept_is_made_all_the_same(home: Path, tiny_bundle: ModelBundle) -> None:
    (home / "demo-triplet" / map_store.FOLDER).write_text("no folder", encoding="utf-8")
    table = map_store.load_neighbours(home, tiny_bundle)
    assert len(table.rows[0]) == len(tiny_bundle.gallery)
    assert map_store.load_map(home, tiny_bundle, PCA3) is not None


@pytest.mark.slow
def test_a_fit_in_the_background_is_followed_to_its_end(
    home: Path, tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    map_store.start_fit(home, "demo-triplet", UMAP3)
    for _ in range(480):
        if map_store.read_state(home, tiny_bundle, UMAP3).status == "done":
            break
        time.sleep(0.25)
    fitted = map_store.load_map(home, tiny_bundle, UMAP3)
    assert fitted is not None
    assert map_store.neighbours_path(home, tiny_bundle).is_file()


@pytest.mark.parametrize(
    "options", [{"method": "tsne"}, {"n_dimensions": 4}, {"n_neighbors": 1}, {"min_dist": 2.0}]
)
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="a map"):
        dataclasses.replace(MapSettings(), **options)  # type: ignore[arg-type]
