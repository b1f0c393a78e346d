"""The steps, the loop, the cache, and a run that is killed and resumed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from core.answers.diagnose import diagnose
from core.config import RunConfig, Settings, build_preset
from core.data.datasets import Dataset, load_record, read_dataset
from core.errors import CheckpointError, ConfigError, DataError, JobError
from core.images.decode import decode, encode_png
from core.images.ordinary_copies import recompress
from core.images.phantom import write_dataset
from core.models.registry import load_bundle
from core.network.build import build_embedder
from core.training.fitting import (
    FittingModule,
    compute_separation,
    compute_spread,
    draw_steps,
    find_collapse,
    fit,
)
from core.training.run import train
from core.training.trunk_cache import TrunkCache

ROOT = Path(__file__).resolve().parents[1]


def settings_for(folder: Path) -> Settings:
    return Settings(checkpoints_dir=folder, device="cpu")


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return tiny_config.with_overrides(["train.epochs=4", "train.val_fraction=0.25"])


def test_steps_are_balanced_seeded_and_show_every_image_of_the_larger_class() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    rows = np.arange(100, 140)
    options = {"n_images_per_class": 5, "n_views": 3, "seed": 2}
    steps = draw_steps(labels, rows, epoch=0, **options)
    assert len(steps) == 6
    for step in steps:
        assert sum(row < 130 for row in step.rows) == 5
        assert all(0 <= view <= 3 for view in step.views)
    assert {row for step in steps for row in step.rows} == set(rows)
    assert draw_steps(labels, rows, epoch=0, **options) == steps
    assert draw_steps(labels, rows, epoch=1, **options) != steps
    live = draw_steps(labels, rows, epoch=7, is_stored=False, **options)
    assert {view for step in live for view in step.views} == {8}


def test_dropout_and_the_adapters_batch_norm_are_at_work_while_fitting(
    config: RunConfig, phantom_dataset: Dataset, tmp_path: Path
) -> None:
    """Lightning keeps the current mode, so fitting must set training mode itself."""
    settings = settings_for(tmp_path)
    train(phantom_dataset, config, name="m", settings=settings)
    model = load_bundle(tmp_path, "m", settings=settings)
    norm = model.lead.embedder.net.adapters[0][1]
    assert torch.count_nonzero(norm.running_mean) > 0
    assert not norm.training


def test_collapse_is_noticed() -> None:
    rng = np.random.default_rng(0)
    spread_out = rng.normal(size=(50, 16))
    spread_out /= np.linalg.norm(spread_out, axis=1, keepdims=True)
    labels = np.arange(50) % 2
    assert find_collapse(compute_spread(spread_out), 1.0) is None
    one_place = np.repeat(spread_out[:1], 50, axis=0) + 1e-4 * spread_out
    warning = find_collapse(compute_spread(one_place), compute_separation(one_place, labels))
    assert warning is not None
    assert "collapsed" in warning
    # in a narrow cone, but with separate classes: neighbours are still meaningful
    two_places = one_place + 1e-3 * labels[:, None]
    assert compute_separation(two_places, labels) > 2
    assert find_collapse(compute_spread(two_places), compute_separation(two_places, labels)) is None


def test_separation_of_more_images_than_are_compared_at_a_time() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2  # more than are compared at a time
    many = rng.normal(size=(600, 16)) + labels[:, None]
    apart = np.linalg.norm(many[:, None] - many[None], axis=2)
    is_same = labels[:, None] == labels
    within = apart[is_same & ~np.eye(600, dtype=bool)].mean()
    assert compute_separation(many, labels) == pytest.approx(apart[~is_same].mean() / within)


def test_one_step_changes_tails_and_adapter_and_never_the_trunks(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    embedder = build_embedder(config, settings_for(tmp_path))
    records = [*phantom_dataset.subset("train"), *phantom_dataset.subset("val")]
    cache = TrunkCache(tmp_path / "cache", embedder, records)
    cache.build()
    module = FittingModule(embedder.net.requires_grad_(True), config, cache=cache)
    optimiser = module.configure_optimizers()["optimizer"]
    assert [group["lr"] for group in optimiser.param_groups] == [1e-3, 5e-6]
    n_trainable = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    assert n_trainable == sum(p.numel() for p in embedder.net.parameters())
    trunks = [{k: v.clone() for k, v in b.trunk.state_dict().items()} for b in embedder.backbones]
    tails = [p.clone() for p in embedder.net.tails.parameters()]
    embedder.net.train()
    step = module.steps[0]
    labels = torch.tensor([records[row].label for row in step.rows])
    embeddings = embedder.net(cache.read_views(step.rows, step.views))
    loss = module.loss.triplet(embeddings, labels, module.loss.batch_hard(embeddings, labels))
    loss.backward()
    optimiser.step()
    assert float(loss.detach()) > 0
    assert any(
        not torch.equal(a, b) for a, b in zip(tails, embedder.net.tails.parameters(), strict=True)
    )
    for backbone, before in zip(embedder.backbones, trunks, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in backbone.trunk.state_dict().items())


def test_progress_that_did_not_reach_the_disk_means_to_begin_anew(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    embedder = build_embedder(config, settings_for(tmp_path))
    records = phantom_dataset.subset("val")[:2]
    TrunkCache(tmp_path / "c", embedder, records).build()
    assert TrunkCache(tmp_path / "c", embedder, records).is_complete
    for text in ("", "[]", "{}", '{"key": "'):
        (tmp_path / "c" / "progress.json").write_text(text, encoding="utf-8")
        again = TrunkCache(tmp_path / "c", embedder, records)
        assert not again.is_complete
    again.build()
    assert again.is_complete


def test_a_checkpoint_of_version_0_1_is_read(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    config = config.with_overrides(["objective.name=metric-ensemble"])
    embedder = build_embedder(config, settings_for(tmp_path))
    cache = TrunkCache(tmp_path / "c", embedder, phantom_dataset.subset("train"))
    cache.build()
    module = FittingModule(embedder.net, config, cache=cache)
    state = {key.removeprefix("loss."): value for key, value in module.state_dict().items()}
    assert any(key.startswith("proxies.") for key in state)
    state["proxies.proxies"] = torch.full_like(state["proxies.proxies"], 0.5)
    checkpoint = {"state_dict": state}
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    assert bool((module.loss.proxies.proxies == 0.5).all())


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    embedder = build_embedder(config, settings_for(tmp_path))
    cache = TrunkCache(tmp_path / "c", embedder, phantom_dataset.subset("train"))
    cache.build()
    module = FittingModule(embedder.net, config, cache=cache)
    angles = torch.tensor([0.0, 0.3, 1.0, 0.5, 2.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1])
    anchors, positives, negatives = module.loss.batch_hard(embeddings, labels)
    mined = {
        int(a): (int(p), int(n)) for a, p, n in zip(anchors, positives, negatives, strict=True)
    }
    assert mined[0] == (2, 3)
    assert mined[3] == (4, 1)


def test_the_cache_holds_what_the_trunks_give(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    embedder = build_embedder(config, settings_for(tmp_path))
    records = [*phantom_dataset.subset("train"), *phantom_dataset.subset("val")]
    stored = TrunkCache(tmp_path / "a", embedder, records)
    live = TrunkCache(tmp_path / "b", embedder, records, is_stored=False)
    for cache in (stored, live):
        cache.build()
        assert cache.is_complete
    # stored as float16: 11 bits of precision
    for one, two in zip(stored.read_clean([0, 5]), live.read_clean([0, 5]), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    pairs = zip(stored.read_views([1, 2], [0, 2]), live.read_views([1, 2], [0, 2]), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    assert not list((tmp_path / "b").glob("*.bin"))


def test_an_interrupted_cache_goes_on_where_it_was(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    embedder = build_embedder(config, settings_for(tmp_path))
    records = phantom_dataset.subset("train")

    class Killed(BaseException):
        pass

    told: list[float] = []

    def kill(done: float, text: str) -> None:
        told.append(done)
        if done > 16 / len(records):  # 16 are written together
            raise Killed(f"{done} {text}")

    with pytest.raises(Killed):
        TrunkCache(tmp_path / "c", embedder, records).build(progress=kill)
    assert told[:3] == [0.0, 1 / len(records), 2 / len(records)], "said from the start"
    told.clear()
    cache = TrunkCache(tmp_path / "c", embedder, records)
    cache.build(progress=lambda done, _: told.append(done))
    assert told[0] == 16 / len(records)
    whole = TrunkCache(tmp_path / "d", embedder, records)
    whole.build()
    rows = range(len(records))
    for one, two in zip(cache.read_clean(rows), whole.read_clean(rows), strict=True):
        assert torch.equal(one, two)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=9))
    again = TrunkCache(tmp_path / "c", build_embedder(other, settings_for(tmp_path)), records)
    assert not again.is_complete, "another seed draws other views"


def test_a_cache_of_other_images_of_the_same_names_is_not_used(
    config: RunConfig, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "eyes", n_train=16, n_test=4, size=64)
    embedder = build_embedder(config, settings_for(tmp_path))

    def read() -> TrunkCache:
        data = read_dataset(tmp_path / "eyes", val_fraction=0.25)
        records = [*data.subset("train"), *data.subset("val")]
        return TrunkCache(tmp_path / "c", embedder, records, data_id=data.data_id)

    cache = read()
    cache.build()
    assert read().is_complete
    path = cache.records[0].path
    assert path is not None
    pictures = sorted(path.parent.glob("*.png"))
    pictures[0].write_bytes(pictures[-1].read_bytes())
    assert not read().is_complete


def test_an_unreadable_image_is_left_out_and_named(config: RunConfig, tmp_path: Path) -> None:
    write_dataset(tmp_path / "eyes", n_train=40, n_test=4, size=64)
    bad = tmp_path / "eyes" / "train" / "normal" / "eye00000.png"
    bad.write_bytes(b"not an image at all")
    dataset = read_dataset(tmp_path / "eyes", val_fraction=0.25)
    train(dataset, config, name="m", settings=settings_for(tmp_path / "ck"))
    bundle = load_bundle(tmp_path / "ck", "m", settings=settings_for(tmp_path / "ck"))
    assert list(bundle.metrics["left_out"]) == ["train/normal/eye00000.png"]
    n_train = len(dataset.subset("train"))
    assert len(bundle.gallery) in (n_train, n_train - 1)


def test_too_few_readable_images_stop_the_run(config: RunConfig, tmp_path: Path) -> None:
    write_dataset(tmp_path / "eyes", n_train=40, n_test=4, size=64)
    for path in (tmp_path / "eyes" / "train" / "disease").iterdir():
        path.write_bytes(b"no")
    dataset = read_dataset(tmp_path / "eyes", val_fraction=0.25)
    with pytest.raises(DataError, match="class 'disease' has 0 readable images in train"):
        train(dataset, config, name="m", settings=settings_for(tmp_path / "ck"))


def test_names_runs_and_recipes_are_not_mixed(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path)

    def stop(done: float, text: str) -> None:
        raise KeyboardInterrupt(f"{done} {text}")

    with pytest.raises(KeyboardInterrupt):
        train(phantom_dataset, config, name="m", settings=settings, progress=stop)
    with pytest.raises(JobError, match="Add --resume to go on with it"):
        train(phantom_dataset, config, name="m", settings=settings)
    other = config.with_overrides(["train.epochs=1"])
    with pytest.raises(ConfigError, match="had another run"):
        train(phantom_dataset, other, name="m", settings=settings, resume=True)
    train(phantom_dataset, config, name="m", settings=settings, resume=True)
    with pytest.raises(CheckpointError, match="model 'm' exists"):
        train(phantom_dataset, config, name="m", settings=settings, resume=True)
    with pytest.raises(ConfigError, match="expected 1 to 64 letters"):
        train(phantom_dataset, config, name="../m", settings=settings)


@pytest.mark.parametrize("text", ["", '{"run": {', "[]"])
def test_a_run_record_that_did_not_reach_the_disk_says_what_to_do(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / ".runs" / "m"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="Delete that folder to begin anew") as caught:
        train(phantom_dataset, config, name="m", settings=settings_for(tmp_path), resume=True)
    assert caught.value.code == "config.resume"


def test_a_checkpoint_that_did_not_reach_the_disk_means_to_begin_anew(
    phantom_dataset: Dataset,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flushed: list[int] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    cache_of = build_embedder(config, settings_for(tmp_path))
    cache = TrunkCache(tmp_path / "cache", cache_of, phantom_dataset.records)
    cache.build()
    last = tmp_path / "last.ckpt"

    def fit_anew() -> tuple[dict[str, torch.Tensor], str]:
        embedder, lines = build_embedder(config, settings_for(tmp_path)), list[str]()
        fit(embedder, cache, tmp_path, log=lines.append)
        return embedder.net.state_dict(), lines[0]

    whole, first_line = fit_anew()
    assert first_line == "training begins"
    assert last.stat().st_ino in flushed
    data = last.read_bytes()
    assert fit_anew()[1] == "training goes on from the last checkpoint"
    middle = len(data) // 2
    hole = data[:middle] + bytes(4096) + data[middle + 4096 :]
    for damaged in (b"", data[:middle], hole):
        last.write_bytes(damaged)
        again, first_line = fit_anew()
        assert "the last checkpoint cannot be read" in first_line
        assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_two_processes_cannot_train_one_model(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path)
    refused: list[str] = []

    def try_again(done: float, text: str) -> None:
        del done, text
        if not refused:
            try:
                train(phantom_dataset, config, name="m", settings=settings, resume=True)
            except JobError as err:
                refused.append(str(err))

    train(phantom_dataset, config, name="m", settings=settings, progress=try_again)
    assert "model 'm' is being trained by process" in refused[0]


def test_the_run_without_a_cache_trains_too(
    phantom_dataset: Dataset, config: RunConfig, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path)
    short = config.with_overrides(["train.epochs=1"])
    told: list[float] = []
    train(
        phantom_dataset,
        short,
        name="live",
        settings=settings,
        cache_trunk=False,
        progress=lambda done, _: told.append(done),
    )
    assert load_bundle(tmp_path, "live", settings=settings).metrics["k"] >= 1
    assert told == sorted(told)
    assert told[-1] == 1.0


def run_train(folder: Path, data: Path, *, n_kills: int) -> dict[str, object]:
    """``python -m core train`` on tiny-random, killed at random moments and resumed."""
    rng = np.random.default_rng(n_kills)
    script = (
        "import sys; from core import __main__ as cli; "
        "sys.argv = ['core', *sys.argv[1:]]; cli.main()"
    )
    command = [sys.executable, "-c", script, "train", "--data", str(data), "--name", "m"]
    command += ["--preset", "tiny-random", "--checkpoints", str(folder), "--resume"]
    command += ["--set", "train.epochs=60", "--set", "train.n_views=3"]
    environment = {**os.environ, "NEIGHBORDX_DEVICE": "cpu"}
    for kill in range(n_kills + 1):
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            if kill < n_kills:
                assert process.stderr is not None
                process.stderr.readline()  # it has started to report
                time.sleep(float(rng.uniform(0.2, 4.0)))
                process.send_signal(signal.SIGKILL)
                continue
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()[-2000:]
    metrics = json.loads((folder / "m" / "metrics.json").read_text(encoding="utf-8"))
    assert isinstance(metrics, dict)
    assert metrics.pop("seconds")["fit"] > 0  # the duration is not a metric of the model
    return metrics


@pytest.mark.slow
def test_killed_three_times_it_ends_at_the_same_figures(tmp_path: Path) -> None:
    data = tmp_path / "eyes"
    write_dataset(data, n_train=96, n_test=4, size=96)
    calm = run_train(tmp_path / "calm", data, n_kills=0)
    killed = run_train(tmp_path / "killed", data, n_kills=3)
    assert killed == calm
    weights = [
        (tmp_path / f / "m" / "weights.safetensors").read_bytes() for f in ("calm", "killed")
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_offline_preset_learns_the_demo(tmp_path: Path) -> None:
    """Real weights, few images: far better than chance, no collapse, and copies are known."""
    write_dataset(tmp_path / "eyes", n_train=120, n_test=8, size=192)
    config = build_preset("offline").with_overrides(
        ["preprocess.input_size=160", "train.epochs=4", "train.n_views=2"]
    )
    dataset = read_dataset(tmp_path / "eyes")
    train(dataset, config, name="m", settings=settings_for(tmp_path / "ck"))
    metrics = json.loads((tmp_path / "ck" / "m" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["validation"]["auroc"] > 0.8
    assert metrics["warnings"] == []
    bundle = load_bundle(tmp_path / "ck", "m", settings=settings_for(tmp_path / "ck"))
    shown = [load_record(record).pixels for record in dataset.subset("test")]
    copies = [decode(encode_png(recompress(eye, quality=75))) for eye in shown]
    photograph = decode(encode_png(load_sample_images().images[0]))
    answers = diagnose(bundle, [*copies, photograph], explain=False)
    assert [d.abstain_reason == "novel" for d in answers] == [*[False] * len(copies), True]
