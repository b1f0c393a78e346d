"""Pretrained backbones: where their parameters come from, and their cut into trunk and tail."""

from core.backbones.parts import (
    Backbone,
    BackboneInfo,
    Tail,
    build_backbone,
    cut,
    sketch_backbone,
)
from core.backbones.sources import WeightSource, create_model, load_pretrained

__all__ = [
    "Backbone",
    "BackboneInfo",
    "Tail",
    "WeightSource",
    "build_backbone",
    "create_model",
    "cut",
    "load_pretrained",
    "sketch_backbone",
]
