"""Grad-CAM of the vote: its target by hand, its position in the image, hooks removed, overlay."""

import dataclasses

import numpy as np
import pytest
import torch

from core.config import Settings, build_preset
from core.errors import ShapeError
from core.explanations.grad_cam import (
    compute_vote_log_odds,
    find_class_neighbours,
    find_voters,
    merge_heatmaps,
    overlay,
    resize_heatmap,
)
from core.explanations.methods import explain_vote
from core.gallery.search import Gallery
from core.images.phantom import draw
from core.models.bundle import ModelBundle
from core.network.build import build_embedder


def test_the_target_by_hand_and_its_gradient() -> None:
    embedding = torch.tensor([[1.0, 0.0]], requires_grad=True)
    near, far = torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, -2.0]])
    log_odds = compute_vote_log_odds([embedding], [[near, far]])
    # weights 2 and 0.5: odds 4 to 1
    torch.testing.assert_close(log_odds, torch.tensor([[np.log(4.0), -np.log(4.0)]]).float())
    (gradient,) = torch.autograd.grad(log_odds[0, 0], embedding)
    assert gradient[0, 1] > 0  # toward its own class


def test_neighbours_of_each_class_equal_a_plain_search(tiny_bundle: ModelBundle) -> None:
    gallery = tiny_bundle.gallery
    rows = find_class_neighbours(gallery, gallery.embeddings[0], k=3, n_classes=2, excluded=(0,))
    for label, found in enumerate(rows):
        mine = [i for i in np.flatnonzero(gallery.labels == label) if i != 0]
        apart = {i: np.linalg.norm(gallery.embeddings[i] - gallery.embeddings[0]) for i in mine}
        assert found.tolist() == sorted(mine, key=lambda i: apart[i])[:3]
    barred = tuple(np.flatnonzero(gallery.labels == 1))
    with pytest.raises(ShapeError, match="class 1 has no gallery image left"):
        find_class_neighbours(gallery, gallery.embeddings[0], k=3, n_classes=2, excluded=barred)


@pytest.mark.parametrize("spread", [1e-3, 5e-7])
def test_neighbours_of_a_class_are_exact_in_a_narrow_cone(
    rng: np.random.Generator, spread: float
) -> None:
    points = rng.normal(size=16) + spread * rng.normal(size=(801, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    names = tuple(map(str, range(800)))
    gallery = Gallery(points[:800], np.arange(800) % 2, names, names, ("",) * 800, names)
    found = find_class_neighbours(gallery, points[800], k=25, n_classes=2)
    apart = np.linalg.norm(gallery.embeddings - points[800], axis=1)
    for label, rows in enumerate(found):
        others = np.setdiff1d(np.flatnonzero(gallery.labels == label), rows)
        assert len(rows) == 25
        assert apart[rows].max() <= apart[others].min()


def explain_one(bundle: ModelBundle, class_index: int) -> dict[str, np.ndarray]:
    embedded = bundle.embedder.embed_batch([draw(900001, is_diseased=True, size=96).pixels])
    return explain_vote(
        bundle.embedder,
        [a[:, 0] for a in embedded.activations],
        class_index=class_index,
        neighbours=find_voters(bundle.gallery, embedded.embeddings[0], k=3),
        method="grad-cam",
    )


def test_one_map_per_backbone_in_range_and_repeatable(tiny_bundle: ModelBundle) -> None:
    maps = explain_one(tiny_bundle, 1)
    assert set(maps) == {"convnext_atto", "vit_tiny_patch16_224"}
    for name, heatmap in maps.items():
        assert heatmap.ndim == 2
        assert heatmap.min() >= 0.0
        assert heatmap.max() == pytest.approx(1.0), f"{name} explains nothing"
        np.testing.assert_array_equal(heatmap, explain_one(tiny_bundle, 1)[name])


def test_the_two_classes_are_argued_for_differently(tiny_bundle: ModelBundle) -> None:
    for name, heatmap in explain_one(tiny_bundle, 1).items():
        assert np.abs(heatmap - explain_one(tiny_bundle, 0)[name]).max() > 0.1


def test_no_hook_and_no_gradient_stays_on_the_shared_net(tiny_bundle: ModelBundle) -> None:
    explain_one(tiny_bundle, 1)
    for module in tiny_bundle.embedder.net.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(p.grad is None for p in tiny_bundle.embedder.net.parameters())


def test_a_map_points_at_what_moves_the_vote() -> None:
    """If a query differs from a gallery image only in one corner, the map points there."""
    config = build_preset("offline").with_overrides(
        ["preprocess.input_size=288", "embedder.tta=false", "embedder.precision=float32"]
    )
    embedder = build_embedder(config, Settings(device="cpu"))
    embedder.net.requires_grad_(False)
    plain = draw(900002, is_diseased=False, size=288).pixels.copy()
    marked = plain.copy()
    marked[54:120, 168:234] = (250, 250, 90)
    reference = embedder.embed_batch([plain, marked]).embeddings
    query = embedder.embed_batch([marked])
    maps = explain_vote(
        embedder,
        [a[:, 0] for a in query.activations],
        class_index=1,
        neighbours=[[reference[:1], reference[1:] + np.float32(0.01)]],
        method="grad-cam",
    )
    mean = np.mean([resize_heatmap(m, height=288, width=288) for m in maps.values()], axis=0)
    inside = mean[54:120, 168:234].mean()
    assert inside > 1.3 * mean.mean()


def test_resizing_keeps_the_range_and_the_geometry() -> None:
    heatmap = np.zeros((4, 4), dtype=np.float32)
    heatmap[0, 3] = 1.0
    large = resize_heatmap(heatmap, height=40, width=80)
    assert large.shape == (40, 80)
    assert np.unravel_index(large.argmax(), large.shape)[0] < 10
    assert np.unravel_index(large.argmax(), large.shape)[1] > 60


def test_the_target_of_several_adapters_is_their_mean_vote() -> None:
    one = torch.tensor([[1.0, 0.0]])
    near, far = torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, -2.0]])
    # shares 0.8 and 0.2 in the first, 0.2 and 0.8 in the second: the mean is a tie
    log_odds = compute_vote_log_odds([one, one], [[near, far], [far, near]])
    torch.testing.assert_close(log_odds, torch.zeros(1, 2), atol=1e-5, rtol=0)


def test_heatmaps_of_members_are_weighted() -> None:
    left, right = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    left[:, 0], right[:, 1] = 1.0, 1.0
    merged = merge_heatmaps([(3.0, left), (1.0, right)])
    np.testing.assert_allclose(merged, [[1.0, 1 / 3], [1.0, 1 / 3]], rtol=1e-5)
    assert merge_heatmaps([(1.0, np.zeros((2, 2), np.float32))]).max() == 0


def test_overlay_by_hand() -> None:
    pixels = np.full((2, 2, 3), 100, dtype=np.uint8)
    heatmap = np.array([[0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    mixed = overlay(pixels, heatmap, opacity=1.0)
    assert mixed[0, 0].tolist() == [100, 100, 100]
    assert mixed[0, 1].tolist() != [100, 100, 100]
    np.testing.assert_array_equal(overlay(pixels, heatmap, opacity=0.0), pixels)
    assert pixels.max() == 100
    with pytest.raises(ShapeError, match="heatmap"):
        overlay(pixels, heatmap[:1], opacity=0.5)
    with pytest.raises(ShapeError, match="opacity"):
        overlay(pixels, heatmap, opacity=2.0)


def test_the_bundle_is_frozen(tiny_bundle: ModelBundle) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_bundle.novelty_limit = 1.0  # type: ignore[misc]
