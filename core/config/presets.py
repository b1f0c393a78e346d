"""The presets: pairs of backbones, and the recipes to train them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config.sections import (
    RECIPES,
    EmbedderConfig,
    EnsembleConfig,
    KnnConfig,
    PreprocessConfig,
    RunConfig,
    TrainConfig,
    require,
)
from core.errors import ConfigError

# Changes of the robust recipe to the report's; docs/results.md explains how they were chosen.
_ROBUST = (
    "embedder.hidden_dim=0",
    "embedder.exposure_views=4",
    "objective.auxiliary_weight=1.0",
    "knn.k_rule=one-standard-error",
    "preprocess.crop_scale_min=0.5",
    "preprocess.crop_scale_max=1.0",
    "preprocess.brightness=0.4",
    "preprocess.contrast=0.5",
    "preprocess.gamma=1.0",
    "preprocess.blur=1.5",
    "preprocess.noise=0.05",
    "train.n_images_per_class=16",
    "train.start_share=0.5",
)
# Learning rates, cut and length were tuned on the packaged backbones only.
_ROBUST_OFFLINE = (
    "embedder.tail_depth=2",
    "train.tail_lr=0.0001",
    "train.epochs=6",
    "train.n_views=4",
    "train.warmup_share=0.2",
)


@dataclass(frozen=True)
class Preset:
    """A pair of backbones with their input size."""

    backbones: tuple[str, ...]  # timm names
    input_size: int = 448  # px
    non_commercial: str = ""  # weights whose licence forbids commercial use, with the licence
    robust: tuple[str, ...] = ()  # overrides that the robust recipe adds for these backbones


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(("convnext_large.fb_in22k", "vit_large_patch16_224.augreg_in21k_ft_in1k")),
    "swin-effnetv2": Preset(
        ("swin_large_patch4_window7_224.ms_in22k", "tf_efficientnetv2_l.in21k_ft_in1k")
    ),
    "convnextv2-beit": Preset(
        ("convnextv2_large.fcmae_ft_in22k_in1k", "beit_large_patch16_224.in22k_ft_in22k_in1k"),
        non_commercial="ConvNeXtV2 (CC BY-NC 4.0)",
    ),
    "compact": Preset(("convnext_tiny.fb_in22k", "vit_small_patch16_224.augreg_in21k_ft_in1k")),
    "offline": Preset(
        ("tf_efficientnet_lite0.in1k", "tf_efficientnet_lite2.in1k"),
        input_size=288,
        robust=_ROBUST_OFFLINE,
    ),
}


def _tiny_random() -> RunConfig:
    return RunConfig(
        preset="tiny-random",
        embedder=EmbedderConfig(
            backbones=("convnext_atto", "vit_tiny_patch16_224"),
            hidden_dim=32,
            precision="float32",
            random_weights=True,
        ),
        preprocess=PreprocessConfig(input_size=64),
        train=TrainConfig(epochs=2, n_images_per_class=4, n_views=2),
        knn=KnnConfig(k_candidates=(1, 3, 5)),
        ensemble=EnsembleConfig(min_val_accuracy=0.0),  # random trunks would not reach a threshold
    )


def build_preset(name: str, *, recipe: str = RECIPES[0]) -> RunConfig:
    """Return the RunConfig of a preset.

    Args:
        name: which backbones and input size.
        recipe: how they are trained: ``report`` as in METHOD.md, ``robust`` as tuned here.

    Raises:
        ConfigError: the name is not a preset or a recipe; the message lists the valid ones.
    """
    require(recipe in RECIPES, f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}.")
    if name == "tiny-random":
        return _tiny_random()
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    config = RunConfig(
        preset=name,
        embedder=EmbedderConfig(backbones=preset.backbones),
        preprocess=PreprocessConfig(input_size=preset.input_size),
    )
    if recipe == "report":
        return config
    overrides = [*_ROBUST, *preset.robust]
    return dataclasses.replace(config.with_overrides(overrides), recipe=recipe)


def build_config(params: Mapping[str, Any]) -> RunConfig:
    """Build the configuration of a train or trial job from its parameters.

    Raises:
        ConfigError: a name is unknown or a value out of range.
    """
    chosen = [f"objective.name={params.get('objective', 'triplet')}"]
    chosen.append(f"train.seed={params.get('seed', 0)}")
    overrides = [*chosen, *params.get("overrides", [])]
    recipe = params.get("recipe", RECIPES[0])
    return build_preset(params.get("preset", "offline"), recipe=recipe).with_overrides(overrides)
