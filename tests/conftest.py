"""Fixtures shared by several test modules: small real models, no network, no stored weights."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Use one thread in every test process, set before a library reads these variables. With two or
# more, threads spin at the end of every small operation waiting for one without a core, which is
# ten times slower beside another process. Numba also sets torch's threads when a map is fitted.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import pytest

from core import __main__ as cli
from core.config import RunConfig, Settings, build_preset
from core.data.datasets import Dataset, read_dataset
from core.data.options import DataOptions
from core.images import phantom
from core.models.bundle import ModelBundle
from core.models.ensemble import Ensemble
from core.models.registry import load_bundle
from core.models.seal import write_seal
from core.training.demo import build_demo

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled parts out of the user's own cache, also in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEIGHBORDX_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real medical data, outside the project because it is not ours to publish."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data sets are not at {SHARED_DATA}; see docs/data.md, 'Data for tests'")
    return SHARED_DATA


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data folder with train and test."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    phantom.write_dataset(folder, n_train=48, n_test=16, size=96)
    return folder


@pytest.fixture(scope="session")
def phantom_dataset(phantom_folder: Path) -> Dataset:
    return read_dataset(phantom_folder, val_fraction=0.25)


@pytest.fixture
def tiny_config() -> RunConfig:
    return build_preset("tiny-random")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoints folder with two tiny-random models and their ensemble called demo."""
    directory = tmp_path_factory.mktemp("checkpoints")
    config = build_preset("tiny-random")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, val_fraction=0.25))
    settings = Settings(checkpoints_dir=directory, device="cpu")
    build_demo(settings, config=config, n_train=48, n_test=16, size=96)
    return directory


@pytest.fixture
def unsaid_checkpoints(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """Two models whose class names do not tell the disease, and their data in ``.demo-data``."""
    directory = tmp_path / "unsaid"
    for split in ("train", "test"):
        for old, new in (("normal", "plain"), ("disease", "spotted")):
            source = tiny_checkpoints / ".demo-data" / split / old
            shutil.copytree(source, directory / ".demo-data" / split / new)
    data = read_dataset(
        directory / ".demo-data", DataOptions(disease_class="spotted"), val_fraction=0.25
    )
    for name in ("demo-triplet", "demo-metric"):
        shutil.copytree(tiny_checkpoints / name, directory / name)
        path = directory / name / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"class_names": ["plain", "spotted"], "data_id": data.data_id}
        path.write_text(json.dumps(config), encoding="utf-8")
        write_seal(directory / name)
    return directory


@pytest.fixture(scope="session")
def seen_folder(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with another id whose test split has 4 training, 2 validation and 2 new demo images."""
    root = tmp_path_factory.mktemp("seen") / "elsewhere"
    demo = read_dataset(tiny_checkpoints / ".demo-data", val_fraction=0.25)
    for label, class_name in enumerate(demo.class_names):
        seen, validated, new = (
            [r.path for r in demo.subset(split) if r.label == label]
            for split in ("train", "val", "test")
        )
        chosen = [*seen[:2], validated[0], new[0]]
        for split, paths in (("test", chosen), ("train", new[1:])):
            folder = root / split / class_name
            folder.mkdir(parents=True)
            for path in paths:
                assert path is not None
                shutil.copy2(path, folder / path.name)
    return root


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoints: Path) -> ModelBundle:
    """The triplet member of the demo."""
    bundle = load_bundle(tiny_checkpoints, "demo-triplet", settings=Settings(device="cpu"))
    assert isinstance(bundle, ModelBundle)
    return bundle


@pytest.fixture(scope="session")
def tiny_ensemble(tiny_checkpoints: Path) -> Ensemble:
    ensemble = load_bundle(tiny_checkpoints, "demo", settings=Settings(device="cpu"))
    assert isinstance(ensemble, Ensemble)
    return ensemble


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def checkpoints(tiny_checkpoints: Path) -> Path:
    """The folder of the models for ``run``; modules that change them override this with a copy."""
    return tiny_checkpoints


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> Callable[..., int]:
    """Run a command on the tiny models and return its exit code."""
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(checkpoints))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["core", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call
