"""Compiled parts: same as torch, any number of items, cached on disk, refused if wrong."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.config import Settings, build_preset
from core.images.phantom import draw
from core.network import openvino
from core.network.build import build_embedder
from core.network.embedder import embed_together

EITHER = ("f32", "bf16")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEIGHBORDX_CACHE", str(tmp_path))
    return tmp_path


def build_part() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6()).eval()


def force(monkeypatch: pytest.MonkeyPatch, *, openvino_ms: float) -> None:
    """Fix the trial's outcome, so that it does not depend on the machine's load."""
    monkeypatch.setattr(
        openvino, "_time", lambda run, _: 1.0 if isinstance(run, nn.Module) else openvino_ms
    )


def test_a_compiled_part_says_what_torch_says_and_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, openvino_ms=0.1)
    part, batch = build_part(), torch.rand(5, 3, 16, 16)
    first = openvino.compile_part(part, batch[:1], name="p")
    assert first is not None
    with torch.inference_mode():
        torch.testing.assert_close(first(batch), part(batch), atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(openvino, "_convert", lambda *_: pytest.fail("converted again"))
    again = openvino.compile_part(part, batch[:1], name="p")
    assert again is not None
    torch.testing.assert_close(again(batch), first(batch))
    (trial,) = [json.loads(path.read_text()) for path in cache.glob("*.json")]
    assert trial["route"] == "f32"
    assert trial["agreement"]["f32"] > openvino.MIN_AGREEMENT["f32"]
    assert sys.modules["openvino_telemetry"] is None  # telemetry is disabled


def test_a_compiled_part_that_changed_on_the_disk_is_compiled_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit in a kept part would change every answer of its model, unseen."""
    force(monkeypatch, openvino_ms=0.1)
    part, batch = build_part(), torch.rand(2, 3, 16, 16)
    assert openvino.compile_part(part, batch[:1], name="p") is not None
    (path,) = cache.glob("*.bin")
    data = bytearray(path.read_bytes())
    data[3] ^= 0x40  # an exponent
    path.write_bytes(bytes(data))
    assert openvino.find_compiled(tuple(batch[:1].shape), name="p") is None
    again = openvino.compile_part(part, batch[:1], name="p")
    assert again is not None
    with torch.inference_mode():
        torch.testing.assert_close(again(batch), part(batch), atol=1e-4, rtol=1e-4)
    assert openvino.find_compiled(tuple(batch[:1].shape), name="p") is not None


@pytest.mark.usefixtures("cache")
def test_half_precision_is_taken_only_when_asked_for_faster_and_in_agreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clock(run: object, _: torch.Tensor) -> float:
        return {"f32": 0.5, "bf16": 0.1}.get(getattr(run, "precision", ""), 1.0)

    monkeypatch.setattr(openvino, "_time", clock)
    part, example = build_part(), torch.rand(1, 3, 16, 16)
    exact = openvino.compile_part(part, example, name="p")
    half = openvino.compile_part(part, example, name="p", precisions=EITHER)
    assert exact is not None
    assert half is not None
    assert (getattr(exact, "precision", ""), getattr(half, "precision", "")) == ("f32", "bf16")
    with torch.inference_mode():
        torch.testing.assert_close(half(example), part(example), atol=0.05, rtol=0.05)
    again = openvino.compile_part(part, example, name="p", precisions=EITHER)
    assert getattr(again, "precision", "") == "bf16"  # remembered
    monkeypatch.setitem(openvino.MIN_AGREEMENT, "bf16", 1.1)
    strict = openvino.compile_part(part, example, name="other", precisions=EITHER)
    assert getattr(strict, "precision", "") == "f32"


def test_a_slower_or_wrong_part_is_left_to_torch(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, openvino_ms=2.0)
    example = torch.rand(1, 3, 16, 16)
    assert openvino.compile_part(build_part(), example, name="slow") is None
    force(monkeypatch, openvino_ms=0.1)
    assert openvino.compile_part(build_part(), example, name="slow") is None  # remembered
    other = nn.Sequential(build_part(), nn.Conv2d(8, 8, 1)).eval()
    right = openvino._convert
    monkeypatch.setattr(openvino, "_convert", lambda _, x: right(other, x))
    assert openvino.compile_part(build_part(), example, name="wrong") is None
    assert not list(cache.glob("*.xml"))


def test_the_offline_model_compiled_equals_torch_in_float32(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, openvino_ms=0.1)
    config = build_preset("offline").with_overrides(["preprocess.input_size=128"])
    fast = build_embedder(config, Settings(device="cpu")).freeze(name="untrained")
    assert fast.precision == "float32"
    assert all(b.compiled is not None for b in fast.backbones)
    exact = dataclasses.replace(
        fast,
        backbones=tuple(dataclasses.replace(b, compiled=None) for b in fast.backbones),
        frozen_tails=(),
    )
    pictures = [draw(seed, is_diseased=True, size=128).pixels for seed in (900_001, 900_002)]
    ours, plain = fast.embed_batch(pictures), exact.embed_batch(pictures)
    cosine = (ours.embeddings * plain.embeddings).sum(axis=1)
    assert cosine.min() > 0.99999
    np.testing.assert_allclose(ours.descriptors, plain.descriptors, atol=1e-4)
    assert embed_together([fast, exact], pictures)[1].embeddings.shape == ours.embeddings.shape
    assert cache.is_dir()


def test_half_precision_keeps_the_answer_of_a_transformer(cache: Path) -> None:
    config = build_preset("tiny-random")
    exact = build_embedder(config, Settings(device="cpu"))
    asked = config.with_overrides(["embedder.precision=bfloat16"])
    half = build_embedder(asked, Settings(device="cpu")).freeze(name="untrained")
    assert half.precision == "bfloat16"
    pictures = [draw(seed, is_diseased=True, size=96).pixels for seed in (900_001, 900_002)]
    cosine = (half.embed_batch(pictures).embeddings * exact.embed_batch(pictures).embeddings).sum(1)
    assert cosine.min() > 0.999
    assert not list(cache.iterdir())  # nothing is compiled at 64 px


def test_a_transformer_compiled_in_half_precision_answers_as_in_float32(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, openvino_ms=0.1)
    config = build_preset("tiny-random").with_overrides(["preprocess.input_size=128"])
    exact = build_embedder(config, Settings(device="cpu"))
    exact = dataclasses.replace(
        exact, backbones=tuple(dataclasses.replace(b, compiled=None) for b in exact.backbones)
    )
    asked = config.with_overrides(["embedder.precision=bfloat16"])
    half = build_embedder(asked, Settings(device="cpu")).freeze(name="untrained")
    assert all(b.compiled is not None and b.dtype == torch.bfloat16 for b in half.backbones)
    pictures = [draw(seed, is_diseased=True, size=128).pixels for seed in (900_001, 900_002)]
    cosine = (half.embed_batch(pictures).embeddings * exact.embed_batch(pictures).embeddings).sum(1)
    assert cosine.min() > 0.999
    routes = {json.loads(path.read_text())["route"] for path in cache.glob("*.json")}
    assert routes == {"f32", "bf16"}

    known = [backbone.info for backbone in half.backbones]
    monkeypatch.setattr(
        "core.network.backbone.load_pretrained", lambda *_, **__: pytest.fail("read")
    )
    again = build_embedder(asked, Settings(device="cpu"), known=known)
    batch = torch.rand(2, 3, 128, 128)
    for one, other in zip(half.run_trunks(batch), again.run_trunks(batch), strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert torch.equal(one, other)


def test_a_damaged_compiled_file_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, openvino_ms=0.1)
    part, example = build_part(), torch.rand(1, 3, 16, 16)
    first = openvino.compile_part(part, example, name="p")
    (model,) = cache.glob("*.xml")
    model.write_text("<net")
    assert openvino.find_compiled((1, 3, 16, 16), name="p") is None
    again = openvino.compile_part(part, example, name="p")
    assert first is not None
    assert again is not None
    torch.testing.assert_close(again(example), first(example))
    assert openvino.find_compiled((1, 3, 16, 16), name="p") is not None


def test_a_cache_that_cannot_be_written_costs_no_speed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, openvino_ms=0.1)
    (cache / "file").write_text("not a folder")
    monkeypatch.setenv("NEIGHBORDX_CACHE", str(cache / "file"))
    run = openvino.compile_part(build_part(), torch.rand(1, 3, 16, 16), name="p")
    assert run is not None
    assert run(torch.rand(3, 3, 16, 16)).shape == (3, 8, 16, 16)


def test_parts_that_nothing_read_for_long_are_dropped(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, openvino_ms=0.1)
    part, example = build_part(), torch.rand(1, 3, 16, 16)
    old = time.time() - openvino._KEEP_S - 60.0
    for name in ("used", "forgotten"):
        assert openvino.compile_part(part, example, name=name) is not None
    force(monkeypatch, openvino_ms=2.0)
    assert openvino.compile_part(part, example, name="slow") is None
    force(monkeypatch, openvino_ms=0.1)
    (cache / "notes.json").write_text("a file of somebody's")
    for path in cache.iterdir():
        os.utime(path, (old, old))
    assert openvino.find_compiled((1, 3, 16, 16), name="used") is not None
    assert openvino.compile_part(part, example, name="slow") is None  # in use too
    assert openvino.compile_part(part, example, name="new") is not None
    assert len(list(cache.glob("*.json"))) == 4  # used, slow, new and notes
    assert (cache / "notes.json").is_file()
    assert openvino.find_compiled((1, 3, 16, 16), name="used") is not None
    assert openvino.find_compiled((1, 3, 16, 16), name="forgotten") is None
