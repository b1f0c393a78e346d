"""Views and their inverse geometry, augmentation from one seed, input unchanged."""

import dataclasses

import numpy as np
import pytest
import torch

from core.config import PreprocessConfig, build_preset
from core.errors import ShapeError
from core.network.transforms import (
    augment,
    build_batch,
    build_test_views,
    build_views,
    merge_views,
    undo_views,
)


def picture(rng: np.random.Generator, height: int = 40, width: int = 30) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_build_batch_scales_to_the_unit_range() -> None:
    white = np.full((7, 9, 3), 255, dtype=np.uint8)
    batch = build_batch([white, np.zeros_like(white)], size=32)
    assert batch.shape == (2, 3, 32, 32)
    assert torch.equal(batch[0], torch.ones(3, 32, 32))
    assert torch.equal(batch[1], torch.zeros(3, 32, 32))


def test_one_size_image_passes_unchanged(rng: np.random.Generator) -> None:
    image = picture(rng, 32, 32)
    batch = build_batch([image], size=32)
    np.testing.assert_allclose(batch[0].permute(1, 2, 0).numpy() * 255, image, atol=1e-3)


def test_views_by_hand() -> None:
    batch = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    views = build_views(batch, tta=True)[:, 0, 0]
    assert views[0].tolist() == [[1, 2], [3, 4]]
    assert views[1].tolist() == [[2, 1], [4, 3]]
    assert views[2].tolist() == [[3, 4], [1, 2]]
    assert views[3].tolist() == [[2, 4], [1, 3]]


def test_undoing_the_views_is_the_identity() -> None:
    batch = torch.rand(1, 1, 5, 5)
    for tta in (True, False):
        upright = undo_views(build_views(batch, tta=tta)[:, 0, 0])
        assert all(torch.equal(view, batch[0, 0]) for view in upright)


def test_merged_views_are_unit_vectors_and_keep_agreement() -> None:
    one = torch.nn.functional.normalize(torch.rand(3, 8), dim=1)
    torch.testing.assert_close(merge_views(torch.stack([one] * 4)), one)
    mixed = merge_views(torch.nn.functional.normalize(torch.randn(4, 3, 8), dim=2))
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(3))


def test_augment_is_fixed_by_its_generator(rng: np.random.Generator) -> None:
    image, config = picture(rng), PreprocessConfig(input_size=32)
    before = image.copy()
    first = augment(image, config=config, rng=np.random.default_rng(5))
    second = augment(image, config=config, rng=np.random.default_rng(5))
    other = augment(image, config=config, rng=np.random.default_rng(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 32, 32)
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 1.0
    np.testing.assert_array_equal(image, before)


def test_augment_with_everything_off_is_a_resize(rng: np.random.Generator) -> None:
    image = picture(rng)
    config = PreprocessConfig(
        input_size=32,
        crop_scale_min=1.0,
        crop_scale_max=1.0,
        horizontal_flip=0.0,
        vertical_flip=0.0,
        rotation_deg=0.0,
        brightness=0.0,
        contrast=0.0,
    )
    plain = build_batch([image], size=32)[0]
    torch.testing.assert_close(augment(image, config=config, rng=rng), plain)
    flipped = dataclasses.replace(config, horizontal_flip=1.0)
    torch.testing.assert_close(augment(image, config=flipped, rng=rng), plain.flip(-1))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least one image"):
        build_batch([], size=32)
    with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) uint8"):
        build_batch([np.zeros((4, 4), dtype=np.uint8)], size=32)
    with pytest.raises(ShapeError, match=r"\(B, C, S, S\)"):
        build_views(torch.zeros(1, 3, 4, 5), tta=True)
    with pytest.raises(ShapeError, match="1 or at least 4"):
        undo_views(torch.zeros(2, 4, 4))
    with pytest.raises(ShapeError, match=r"\(V, B, D\)"):
        merge_views(torch.zeros(2, 4))


def test_exposure_views_follow_the_four_and_are_drawn_alike_for_every_image() -> None:
    config = build_preset("offline").with_overrides(["preprocess.input_size=32"])
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    views = build_test_views([image, image], config)
    assert views.shape == (8, 2, 3, 32, 32)
    torch.testing.assert_close(views[:, 0], views[:, 1])
    torch.testing.assert_close(views[:4], build_views(build_batch([image] * 2, size=32), tta=True))
    assert all(not torch.allclose(views[0], view) for view in views[4:])
    alone = config.with_overrides(["embedder.tta=false"])
    assert build_test_views([image], alone).shape == (1, 1, 3, 32, 32)


def test_maps_of_exposure_views_are_left_out() -> None:
    maps = torch.rand(8, 5, 5)
    torch.testing.assert_close(undo_views(maps), undo_views(maps[:4]))


def test_a_stretched_and_shifted_view_shows_the_image_on_black() -> None:
    white = np.full((40, 60, 3), 255, dtype=np.uint8)
    plain = PreprocessConfig(
        input_size=64, crop_scale_min=1.0, crop_scale_max=1.0, rotation_deg=0.0, brightness=0.0,
        contrast=0.0, horizontal_flip=0.0, vertical_flip=0.0,
    )  # fmt: skip
    moved = dataclasses.replace(plain, shift=0.25)
    shares = [
        float(augment(white, config=moved, rng=np.random.default_rng(seed)).mean())
        for seed in range(20)
    ]
    assert min(shares) >= 0.75**2 - 0.05  # at most a quarter is lost on each axis
    assert min(shares) < 0.9 < max(shares)
    small = dataclasses.replace(plain, stretch=1.0)
    shares = [
        float(augment(white, config=small, rng=np.random.default_rng(seed)).mean())
        for seed in range(20)
    ]
    assert 0.2 < min(shares) < 0.9  # at least half of each side
    assert max(shares) == pytest.approx(1.0)  # enlarged: it fills the view
