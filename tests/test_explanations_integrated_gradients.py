"""Integrated gradients of the vote: they sum to the change in log-odds, and find a mark."""

import numpy as np
import pytest
import torch

from core.config import Settings, build_preset
from core.errors import ConfigError
from core.explanations.grad_cam import find_voters, randomise_net, resize_heatmap
from core.explanations.integrated_gradients import (
    Recipe,
    compute_log_odds,
    draw_shares,
    integrate_vote,
)
from core.explanations.methods import METHODS, explain_vote
from core.images.phantom import draw
from core.models.bundle import ModelBundle
from core.network.build import build_embedder


def explain_one(bundle: ModelBundle, method: str, class_index: int = 1) -> dict[str, np.ndarray]:
    embedded = bundle.embedder.embed_batch([draw(900_001, is_diseased=True, size=96).pixels])
    return explain_vote(
        bundle.embedder,
        [a[:, 0] for a in embedded.activations],
        class_index=class_index,
        neighbours=find_voters(bundle.gallery, embedded.embeddings[0], k=3),
        method=method,
    )


def test_the_shares_sum_to_the_change_of_the_log_odds(tiny_bundle: ModelBundle) -> None:
    embedder = tiny_bundle.embedder
    embedded = embedder.embed_batch([draw(900_001, is_diseased=True, size=96).pixels])
    wholes = [a[:, 0].float().clone() for a in embedded.activations]
    voters = find_voters(tiny_bundle.gallery, embedded.embeddings[0], k=3)
    shares = integrate_vote(embedder, wholes, class_index=1, neighbours=voters, n_steps=64)
    rows = [[torch.from_numpy(n) for n in part] for part in voters]
    flat = [a.clone() for a in wholes]
    flat[0][:] = flat[0].mean(dim=(2, 3), keepdim=True)  # ConvNeXt: a map
    flat[1][:, 1:] = flat[1][:, 1:].mean(dim=1, keepdim=True)  # ViT: its class token is kept
    with torch.no_grad():
        end = compute_log_odds(embedder.net, wholes, rows)[0, 1]
        start = compute_log_odds(embedder.net, flat, rows)[0, 1]
    total = sum(float(maps.sum()) for maps in shares.values())
    assert total == pytest.approx(float(end - start), rel=0.02, abs=0.01)
    assert {maps.shape[0] for maps in shares.values()} == {4}  # one per view


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_one_map_per_backbone(tiny_bundle: ModelBundle, method: str) -> None:
    maps = explain_one(tiny_bundle, method)
    assert set(maps) == {"convnext_atto", "vit_tiny_patch16_224"}
    for heatmap in maps.values():
        assert heatmap.ndim == 2
        assert heatmap.min() >= 0.0
        assert heatmap.max() in (0.0, pytest.approx(1.0))
    if method == "integrated":
        np.testing.assert_array_equal(
            maps["convnext_atto"], explain_one(tiny_bundle, method)["convnext_atto"]
        )


def test_a_recipe_by_hand() -> None:
    """Two views disagree about the left cell: summed it is dark, rectified it is half bright."""
    shares = np.array([[[2.0, 1.0]], [[-2.0, 1.0]]], dtype=np.float32)
    np.testing.assert_allclose(draw_shares(shares, Recipe()), [[0.0, 1.0]])
    np.testing.assert_allclose(draw_shares(shares, Recipe(rectifies_views=True)), [[1.0, 1.0]])
    assert not draw_shares(-np.abs(shares), Recipe()).any()


def test_smoothing_moves_the_peak_from_a_speck_to_a_patch() -> None:
    shares = np.zeros((1, 16, 16), dtype=np.float32)
    shares[0, 1, 1] = 2.0  # one high cell
    shares[0, 9:13, 9:13] = 1.0  # an area
    sharp, smooth = (draw_shares(shares, Recipe(sigma=s)) for s in (0.0, 0.1))
    assert np.unravel_index(sharp.argmax(), sharp.shape) == (1, 1)
    row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    assert 9 <= row < 13
    assert 9 <= column < 13
    assert smooth.max() == 1.0


def test_an_unknown_method_is_refused(tiny_bundle: ModelBundle) -> None:
    with pytest.raises(ConfigError, match="unknown method 'guess'; choose one of grad-cam"):
        explain_one(tiny_bundle, "guess")


def test_nothing_stays_on_the_shared_net(tiny_bundle: ModelBundle) -> None:
    explain_one(tiny_bundle, "integrated")
    assert all(p.grad is None for p in tiny_bundle.embedder.net.parameters())


def test_random_weights_make_another_net_and_leave_the_model(tiny_bundle: ModelBundle) -> None:
    before = {k: v.clone() for k, v in tiny_bundle.embedder.net.state_dict().items()}
    other = randomise_net(tiny_bundle.embedder)
    for key, value in tiny_bundle.embedder.net.state_dict().items():
        assert torch.equal(value, before[key]), key
    weights = dict(other.net.named_parameters())
    changed = [k for k, v in weights.items() if v.ndim > 1 and not torch.equal(v, before[k])]
    assert len(changed) == sum(v.ndim > 1 for v in weights.values())
    assert all(b.tail is t for b, t in zip(other.backbones, other.net.tails, strict=True))


def test_the_map_gathers_at_what_moves_the_vote() -> None:
    """If a query differs from a gallery image in one square, the map is densest there.

    Its peak may be elsewhere, because a distant cell can matter as much in a deep layer: of 18
    maps, 5 peaked outside the square; in 12 the square had 3.1 to 6.4 times the average.
    """
    config = build_preset("offline").with_overrides(
        ["preprocess.input_size=288", "embedder.tta=false", "embedder.precision=float32"]
    )
    embedder = build_embedder(config, Settings(device="cpu"))
    embedder.net.requires_grad_(False)
    plain = draw(900_002, is_diseased=False, size=288).pixels
    squares = [(slice(54, 120), slice(168, 234)), (slice(160, 226), slice(60, 126))]
    for square, other in (squares, squares[::-1]):
        marked = plain.copy()
        marked[square] = (250, 250, 90)
        reference = embedder.embed_batch([plain, marked]).embeddings
        maps = explain_vote(
            embedder,
            [a[:, 0] for a in embedder.embed_batch([marked]).activations],
            class_index=1,
            neighbours=[[reference[:1], reference[1:] + np.float32(0.01)]],
            method="integrated",
        )
        for name, heatmap in maps.items():
            fine = resize_heatmap(heatmap, height=288, width=288)
            assert fine[square].mean() > 2.5 * fine.mean(), name
            assert fine[square].mean() > 2 * fine[other].mean(), name
