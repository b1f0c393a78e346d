"""The embedded demo: synthetic data, two models and their ensemble, so that a fresh app answers.

Owns its size and its recipe; does nothing when the model exists and goes on when interrupted.
"""

import shutil
from pathlib import Path

from core import phantom
from core.config import RunConfig, Settings, build_preset
from core.datasets import read_dataset
from core.embedder import Progress
from core.ensemble import build_ensemble
from core.training import train

MODEL_ID = "demo"
MEMBERS = {"demo-triplet": "triplet", "demo-metric": "metric-ensemble"}  # systems 4 and 5
_CACHE_FOLDER = ".demo-cache"  # both members see the same views
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
    """Draw the images, train both members, and return the folder of their ensemble `demo`.

    Args:
        settings: where it goes.
        config: another recipe than the offline preset (tests).
        n_train: images drawn for training and validation.
        n_test: images drawn for ``evaluate``.
        size: side of the images in pixels.
        progress: told the share done and a sentence.
    """
    final = settings.checkpoints_dir / MODEL_ID
    if final.is_dir():
        if progress:
            progress(1.0, "the demo model exists")
        return final
    data = settings.checkpoints_dir / _DATA_FOLDER
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    phantom.write_dataset(
        data,
        n_train=n_train,
        n_test=n_test,
        size=size,
        progress=_scale(progress, 0.0, _DRAW_SHARE),
    )
    # Semi-hard triplets first spread the embedding: distances a person can read. On the real films
    # tried so far they overfit, so the preset itself stays batch-hard.
    config = config or build_preset("offline").with_overrides(
        ["objective.semihard_share=0.5", "train.epochs=8", "train.n_views=4"]
    )
    dataset = read_dataset(data, val_fraction=config.train.val_fraction, seed=config.train.seed)
    cache = settings.checkpoints_dir / _CACHE_FOLDER
    share = (1.0 - _DRAW_SHARE) / len(MEMBERS)
    for index, (name, objective) in enumerate(MEMBERS.items()):
        if not (settings.checkpoints_dir / name).is_dir():
            train(
                dataset,
                config.with_overrides([f"objective.name={objective}"]),
                name=name,
                settings=settings,
                resume=True,
                cache_folder=cache,
                is_synthetic=True,
                progress=_scale(progress, _DRAW_SHARE + index * share, share),
            )
    shutil.rmtree(cache, ignore_errors=True)
    return build_ensemble(
        settings.checkpoints_dir,
        MODEL_ID,
        list(MEMBERS),
        min_val_accuracy=config.ensemble.min_val_accuracy,
    )


def _scale(progress: Progress | None, start: float, share: float) -> Progress | None:
    if progress is None:
        return None

    def report(done: float, text: str) -> None:
        progress(start + share * done, text)

    return report
