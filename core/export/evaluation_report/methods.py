"""The report's sections on purpose, data, model and methods: what was done, without results."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

from core.assessment.record import Evaluation, say_seen
from core.config import describe_software
from core.export.evaluation_report.blocks import Block, Paragraph, Section, TableBlock
from core.export.evaluation_report.recipe import (
    say_choice,
    say_fitting,
    say_network,
    say_validation,
)
from core.models.bundle import BundleConfig
from core.models.bundle_files import read_json

_PACKAGES = ("torch", "timm", "faiss-cpu", "scikit-learn", "grad-cam", "numpy")


def describe_purpose(evaluation: Evaluation) -> Section:
    return Section(
        "Intended use and goal",
        (3, 5, 6),
        (
            Paragraph(
                f"Research use: to propose {evaluation.other_class} or {evaluation.disease_class} "
                "for one image of the kind the model was trained on, with the training images "
                "behind the answer, for a reader who decides. Not for diagnosis, not for images "
                "of another kind, not without a reader. The study is retrospective; its goal is "
                "to measure the model as it stands."
            ),
        ),
    )


def describe_data(evaluation: Evaluation) -> Section:
    unreadable = evaluation.result["unreadable"]
    return Section(
        "Data",
        (7, 8, 9, 10, 12),
        (
            Paragraph(
                f"Source: {evaluation.data_name}, identified as {evaluation.result['data']}, a "
                "short hash of the files' names, labels, patients, given splits and sizes and of "
                "a sample of each file's bytes. Every readable image of the split is included; "
                f"{len(unreadable)} could not be read and were left out."
            ),
            Paragraph(
                "Preprocessing: decoding with rescale and window where the file gives them, "
                "resizing to a square, normalisation as the backbones were pretrained. Missing "
                "metadata are shown as a group of their own."
            ),
        ),
    )


def describe_reference() -> Section:
    return Section(
        "Reference standard",
        (14,),
        (
            Paragraph(
                "The label that came with the data (class folder or manifest). How it was made, "
                "by whom, and how far readers agree is for the author to add."
            ),
        ),
    )


def describe_partitions(members: Sequence[BundleConfig], checkpoints_dir: Path) -> Section:
    rows, origins = [], []
    for config in members:
        metrics = read_json(checkpoints_dir / config.model_id / "metrics.json")
        n_val = metrics["validation"]["n"]
        rows.append((config.model_id, config.data_id, str(metrics["n_gallery"]), str(n_val)))
        origins.append(Paragraph(say_validation(config, metrics)))
    return Section(
        "Partitions",
        (19, 20),
        (
            Paragraph(
                "Training and test come apart with the data. A training image that is a copy of "
                "the image asked about, or of the same patient in the same split of the data, "
                "has no vote on it."
            ),
            *origins,
            TableBlock(
                ("model", "training data", "training images", "validation images"), (*rows,)
            ),
        ),
    )


def describe_model(members: Sequence[BundleConfig]) -> Section:
    rows = [
        (
            config.model_id,
            f"{info.name} ({info.source_kind}, licence {info.licence})",
            f"{config.run.preprocess.input_size} px",
            f"{config.run.embedder.embedding_dim}-d",
            info.trunk_hash,
        )
        for config in members
        for info in config.backbones
    ]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return Section(
        "Model",
        (22, 23, 24),
        (
            Paragraph(
                "Each backbone is cut into a frozen trunk and a trained tail, whose features are "
                "pooled and joined."
            ),
            *(Paragraph(say_network(config)) for config in members),
            TableBlock(("model", "backbone", "input", "embedding", "trunk"), (*rows,)),
            Paragraph(
                f"NeighborDx {describe_software()}, Python {platform.python_version()}, {versions}."
            ),
        ),
    )


def describe_training(members: Sequence[BundleConfig], checkpoints_dir: Path) -> Section:
    rows = []
    for config in members:
        run = config.run
        k = read_json(checkpoints_dir / config.model_id / "metrics.json")["k"]
        rows.append(
            (
                config.model_id,
                f"{run.preset}, {run.recipe}, {run.objective.name}",
                f"{run.train.epochs} epochs, adapter {run.train.adapter_lr:g}, tail "
                f"{run.train.tail_lr:g}, weight decay {run.train.weight_decay:g}",
                f"seed {run.train.seed}",
                f"K {k}" if k else "no vote",
            )
        )
    blocks: list[Block] = [
        TableBlock(("model", "recipe", "optimisation (AdamW, cosine)", "seed", "chosen"), (*rows,)),
        *(Paragraph(say_fitting(config)) for config in members),
        *(Paragraph(say_choice(config)) for config in members),
        Paragraph("Nothing was chosen on test."),
    ]
    if len(members) > 1:
        blocks.append(
            Paragraph(
                "Ensemble: mean of the members' probabilities, weighted by their validation "
                "accuracy; weak members are refused."
            )
        )
    return Section("Training", (25, 26, 27) if len(members) > 1 else (25, 26), (*blocks,))


def describe_methods(evaluation: Evaluation) -> Section:
    has_groups = any(evaluation.groups)
    unit = "patients" if has_groups else "images (the data name no patients)"
    seen = say_seen(evaluation)
    note = f" {seen}" if seen else ""
    return Section(
        "Evaluation methods",
        (28, 29),
        (
            Paragraph(
                f"Called {evaluation.disease_class} where the probability exceeds 0.5. 95 % "
                f"intervals: percentile bootstrap over {unit}; single proportions have "
                "Wilson's where every image stands for itself, and so have figures without any "
                "spread, over the patients of the rarer class. Calibration error over 10 "
                f"bins of equal width.{note}"
            ),
        ),
    )


def describe_limits(evaluation: Evaluation) -> Section:
    made = (
        "Drawn images: the figures say nothing about patients. " if evaluation.is_synthetic else ""
    )
    return Section(
        "Limitations and implications",
        (40, 41),
        (
            Paragraph(
                f"{made}Two classes, one image at a time. The figures hold for images like these; "
                "another scanner, hospital or prevalence will do otherwise, and predictive values "
                "depend on prevalence. Refusal of unfamiliar images does not notice every one. "
                "Heatmaps show what moved the vote, not where disease is."
            ),
        ),
    )


def describe_availability(members: Sequence[BundleConfig]) -> Section:
    hashes = "; ".join(f"{config.model_id} {config.weights_sha256[:16]}" for config in members)
    return Section(
        "Availability",
        (42, 43),
        (
            Paragraph(
                "NeighborDx is Apache-2.0 software; its README and CONTRIBUTING files describe the "
                f"method. Parameters, by SHA-256: {hashes}. config.json of each model holds the "
                "whole recipe."
            ),
        ),
    )
