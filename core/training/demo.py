"""Build the embedded demo: synthetic data, two models and their ensemble.

Owns its size and recipe. Does nothing if the model exists; resumes if interrupted.
"""

from pathlib import Path

from core.config import RunConfig, Settings, build_preset
from core.data.datasets import read_dataset
from core.images import phantom
from core.models.marks import check_free, is_model
from core.network.embedder import Progress
from core.training.ensemble import map_progress, train_ensemble

MODEL_ID = "demo"
_DATA_FOLDER = ".demo-data"  # hidden: it is not a model
_N_TRAIN, _N_TEST, _SIZE = 480, 120, 384
_DRAW_SHARE = 0.1


def build_demo(
    settings: Settings,
    *,
    config: RunConfig | None = None,
    n_train: int = _N_TRAIN,
    n_test: int = _N_TEST,
    size: int = _SIZE,
    progress: Progress | None = None,
) -> Path:
    """Draw the images, train both members and return the folder of their ensemble ``demo``.

    Args:
        settings: where to write it.
        config: recipe to use instead of the offline preset (for tests).
        n_train: images drawn for training and validation.
        n_test: images drawn for ``evaluate``.
        size: side of the images in pixels.
        progress: called with the fraction done and a message.
    """
    final = settings.checkpoints_dir / MODEL_ID
    if is_model(final):
        if progress:
            progress(1.0, "the demo model exists")
        return final
    check_free(settings.checkpoints_dir, MODEL_ID)
    data = settings.checkpoints_dir / _DATA_FOLDER
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    phantom.write_dataset(
        data,
        n_train=n_train,
        n_test=n_test,
        size=size,
        progress=map_progress(progress, 0.0, _DRAW_SHARE),
    )
    config = config or build_preset("offline").with_overrides(
        ["train.n_views=3", "embedder.exposure_views=0"]  # all phantoms have the same exposure
    )
    dataset = read_dataset(data, val_fraction=config.train.val_fraction, seed=config.train.seed)
    return train_ensemble(
        dataset,
        config,
        name=MODEL_ID,
        settings=settings,
        resume=True,
        is_synthetic=True,
        progress=map_progress(progress, _DRAW_SHARE, 1.0 - _DRAW_SHARE),
    )
