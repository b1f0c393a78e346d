"""Evaluate a model on a split, including the longer studies, and keep the result.

Owns the order of the parts and their share of the progress. Each part is saved as soon as it is
done, so a stopped run loses only the part in progress.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from core.assessment.heatmap_study import has_masks, study_heatmaps
from core.assessment.record import Evaluation
from core.assessment.robustness import measure_robustness
from core.assessment.run import run_evaluation
from core.assessment.store import save_evaluation, save_study
from core.config import Settings
from core.data.datasets import read_dataset
from core.data.options import DataOptions
from core.errors import ConfigError
from core.files.read_only import is_read_only
from core.files.whole import check_writable_folder
from core.models.registry import load_bundle
from core.network.embedder import Progress

logger = logging.getLogger(__name__)

PARTS = ("robustness", "explanations")


def assess(
    model_id: str,
    data: Path,
    *,
    split: str,
    settings: Settings,
    parts: Sequence[str] = (),
    options: DataOptions | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict every image of a split, then run the requested longer studies.

    Args:
        model_id: id of a listed model.
        data: folder or file.
        split: "train", "val" or "test".
        settings: where the models are, device, threads.
        parts: names from PARTS.
        options: what a person says about the data.
        progress: called with the fraction done.

    Raises:
        ConfigError: a part is unknown, or could not be kept because the model's folder cannot be
            written. Without parts the evaluation is then made and returned, and not kept.
        CoreError: what loading the model or reading the data raises.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError(
            f"unknown part {', '.join(unknown)} of an evaluation; choose among {', '.join(PARTS)}."
        )
    directory = settings.checkpoints_dir
    model = load_bundle(directory, model_id, settings=settings)
    keeps = not is_read_only(directory / model_id)
    if not keeps and parts:
        check_writable_folder(directory / model_id)
    run = model.lead.config.run.train
    dataset = read_dataset(
        data,
        options,
        model=model.lead.training_data,
        val_fraction=run.val_fraction,
        seed=run.seed,
    )
    n_parts = 1 + len(parts)
    evaluation = run_evaluation(model, dataset, split=split, progress=_part(progress, 0, n_parts))
    if keeps:
        save_evaluation(directory, evaluation)
    else:
        logger.warning(
            "the folder of model %s cannot be written, so this evaluation is not kept with it for "
            "the Evaluate page and the report",
            model_id,
        )
    for index, part in enumerate(parts, start=1):
        report = _part(progress, index, n_parts)
        if part == "robustness":
            study = measure_robustness(model, dataset, split=split, progress=report)
        elif has_masks(dataset, split):
            study = study_heatmaps(model, dataset, split=split, progress=report)
        else:
            study = study_heatmaps(model, dataset, split=split, n_images=24, progress=report)
        save_study(directory, evaluation, part, study)
    return evaluation


def _part(progress: Progress | None, index: int, n_parts: int) -> Progress | None:
    if progress is None:
        return None

    def report(done: float, text: str) -> None:
        progress((index + done) / n_parts, text)

    return report
