"""The run configuration, presets, machine settings."""

from core.config.presets import PRESETS, build_preset
from core.config.sections import (
    K_CANDIDATES,
    K_RULES,
    MEMBERS,
    OBJECTIVES,
    PRECISIONS,
    RECIPES,
    SCHEMA_VERSION,
    EmbedderConfig,
    EnsembleConfig,
    KnnConfig,
    ObjectiveConfig,
    PreprocessConfig,
    RunConfig,
    TrainConfig,
    build_record,
)
from core.config.settings import Settings
from core.config.software import describe_software

__all__ = [
    "K_CANDIDATES",
    "K_RULES",
    "MEMBERS",
    "OBJECTIVES",
    "PRECISIONS",
    "PRESETS",
    "RECIPES",
    "SCHEMA_VERSION",
    "EmbedderConfig",
    "EnsembleConfig",
    "KnnConfig",
    "ObjectiveConfig",
    "PreprocessConfig",
    "RunConfig",
    "Settings",
    "TrainConfig",
    "build_preset",
    "build_record",
    "describe_software",
]
