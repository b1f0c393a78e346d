"""The cost of a run, estimated by a trial: the sums, and that the trial leaves nothing behind."""

from pathlib import Path

import pytest

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.network.build import build_embedder
from core.network.devices import read_gpu_memory
from core.training.cost_estimate import run_trial
from core.training.fitting import fit
from core.training.trunk_cache import TrunkCache


@pytest.mark.slow
def test_a_trial_extrapolates_and_cleans_up(
    phantom_dataset: Dataset, tiny_config: RunConfig, tmp_path: Path
) -> None:
    settings = Settings(checkpoints_dir=tmp_path / "ck", device="cpu")
    config = tiny_config.with_overrides(["train.epochs=10"])
    told: list[float] = []
    found = run_trial(
        phantom_dataset, config, settings=settings, progress=lambda done, _: told.append(done)
    )
    assert told == sorted(told)
    assert list((tmp_path / "ck").iterdir()) == []
    n_images = len(phantom_dataset.subset("train")) + len(phantom_dataset.subset("val"))
    assert found.n_images == n_images
    assert min(found.trunk_s, found.fit_s, found.finish_s) > 0
    embedder = build_embedder(config, settings)
    records = [*phantom_dataset.subset("train"), *phantom_dataset.subset("val")]
    cache = TrunkCache(tmp_path / "cache", embedder, records)
    cache.build()
    fit(embedder, cache, tmp_path, log=lambda _text: None)
    real = sum(path.stat().st_size for path in cache.folder.glob("*.bin"))
    real += 2 * (tmp_path / "last.ckpt").stat().st_size  # the old one goes when the new is complete
    assert found.disk_bytes == pytest.approx(real, rel=0.02)
    assert found.has_disk
    assert found.memory_bytes > 100e6
    assert (found.device, found.gpu_name, found.has_gpu_memory) == ("cpu", "", True)
    assert read_gpu_memory(embedder.device) is None
    both = run_trial(phantom_dataset, config, settings=settings, is_ensemble=True, process_s=50.0)
    assert both.n_steps == 2 * found.n_steps
    assert both.start_s > 50.0
    assert both.disk_bytes > found.disk_bytes
