"""The model bundle: what a finished model is, and its folder on disk."""

from core.bundle.files import (
    freeze_trained,
    read_bundle,
    read_bundle_config,
    read_json,
    save_bundle,
    write_text,
)
from core.bundle.records import (
    MODEL_ID,
    BundleConfig,
    Contents,
    Member,
    ModelBundle,
    check_model_id,
)

__all__ = [
    "MODEL_ID",
    "BundleConfig",
    "Contents",
    "Member",
    "ModelBundle",
    "check_model_id",
    "freeze_trained",
    "read_bundle",
    "read_bundle_config",
    "read_json",
    "save_bundle",
    "write_text",
]
