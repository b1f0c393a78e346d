"""Describe how a model was trained, from its run configuration and metrics.

Owns the wording only; the settings themselves are documented in core.config.
"""

from collections.abc import Mapping
from typing import Any

from core.config import RunConfig
from core.models.bundle import BundleConfig
from core.training.objectives import LOSSES


def say_way(run: RunConfig) -> str:
    """Describe briefly how the model answers."""
    if run.objective.n_adapters == 0:
        return "a linear classifier"
    return "a metric embedding and a vote of the nearest training images"


def say_network(config: BundleConfig) -> str:
    """Describe the trained part of the network, how it answers, and its initialisation."""
    run = config.run
    n_adapters, seed = run.objective.n_adapters, run.train.seed
    known = "random (for tests)" if run.embedder.random_weights else "pretrained"
    text = (
        f"{config.model_id}: the trunks keep their {known} values, as the trained tails begin with "
        f"theirs (tail depth {run.embedder.tail_depth}). "
    )
    if n_adapters == 0:
        text += (
            "A linear classifier on the pooled features answers, calibrated on validation; it "
            f"starts from values drawn by seed {seed}. The nearest training images are shown and "
            "do not vote."
        )
    else:
        text += (
            f"{_describe_adapters(run)} The answer is the 1/distance-weighted vote of the K "
            f"nearest training images{' of each adapter, averaged and' if n_adapters > 1 else ','} "
            "calibrated on validation."
        )
    return f"{text} {_describe_test_views(run)}"


def _describe_adapters(run: RunConfig) -> str:
    n, hidden = run.objective.n_adapters, run.embedder.hidden_dim
    who = "One adapter turns" if n == 1 else f"{n} adapters side by side each turn"
    if hidden == 0:
        return (
            f"{who} the pooled features into a unit embedding by one linear map, which starts as "
            "the principal components of the untrained features of the training images, found "
            "without labels."
        )
    return (
        f"{who} the pooled features into a unit embedding by a hidden layer of {hidden} (batch "
        f"normalisation, ReLU, dropout {run.embedder.dropout:g} in training) and a linear map, "
        f"which start from values drawn by seed {run.train.seed}."
    )


def _describe_test_views(run: RunConfig) -> str:
    sizes = run.embedder
    if sizes.n_test_views == 1:
        return "Every image is embedded as it is."
    more = (
        f" and {sizes.exposure_views} crops at other exposures, the same for every image"
        if sizes.exposure_views
        else ""
    )
    return (
        f"Every image, of the training data or asked about, is embedded in {sizes.n_test_views} "
        f"views that are averaged: as it is, flipped both ways, rotated by 90 degrees{more}."
    )


def say_fitting(config: BundleConfig) -> str:
    """Describe the loss, the batches, the learning-rate schedule and weight averaging."""
    run = config.run
    aim, plan = run.objective, run.train
    text = (
        f"{config.model_id}: {_describe_loss(run)}, on batches of {plan.n_images_per_class} images "
        "of each class. "
    )
    if plan.warmup_share:
        text += f"The learning rates rise over the first {plan.warmup_share:.0%} of the steps. "
    if plan.start_share and aim.n_adapters:
        text += (
            f"The finished parameters are {1 - plan.start_share:g} of the trained ones plus "
            f"{plan.start_share:g} of the untrained ones (Wortsman et al. 2022, "
            "arXiv:2109.01903). "
        )
    return text + _describe_views(run)


def _describe_loss(run: RunConfig) -> str:
    aim = run.objective
    text = LOSSES[aim.name].describe(aim)
    if aim.auxiliary_weight and aim.n_adapters:
        text += (
            f", plus {aim.auxiliary_weight:g} times the cross-entropy of a helping linear "
            "classifier on the features, which is not kept"
        )
    return text


def _describe_views(run: RunConfig) -> str:
    """Describe the augmentation of training images."""
    how = run.preprocess
    cut = f"{how.crop_scale_min:.0%} to {how.crop_scale_max:.0%}"
    return (
        f"{run.train.n_views} varied views of every training image beside the clean one (without "
        f"a stored cache, a fresh one every epoch instead): random crop of {cut} of the area, "
        f"flips (horizontal {how.horizontal_flip:g}, vertical {how.vertical_flip:g}), rotation to "
        f"±{how.rotation_deg:g} degrees, brightness ±{how.brightness:.0%}, contrast "
        f"±{how.contrast:.0%}, gamma {how.gamma:g}, blur {how.blur:g} px, noise {how.noise:g}, "
        f"stretch {how.stretch:g}, shift {how.shift:g}."
    )


def say_choice(config: BundleConfig) -> str:
    """Describe how K was chosen."""
    run = config.run
    if run.objective.n_adapters == 0:
        return f"{config.model_id}: there is no K to choose; the last step's parameters are kept."
    candidates = ", ".join(str(k) for k in run.knn.k_candidates)
    rule = (
        "the largest whose validation accuracy lies within one standard error of the best "
        "(Breiman et al. 1984)"
        if run.knn.k_rule == "one-standard-error"
        else "the one with the best validation accuracy, of equals the largest"
    )
    return f"{config.model_id}: K is, of {candidates}, {rule}; the last step's parameters are kept."


def say_validation(config: BundleConfig, metrics: Mapping[str, Any]) -> str:
    """Describe where the validation images come from, as far as their names tell."""
    answers = metrics.get("validation_answers", {})
    keys = answers.get("keys", [])
    groups = [group for group in answers.get("groups", []) if group]  # "val:7": predefined split
    plan = config.run.train
    drawn = (
        f"about {plan.val_fraction:.0%} of training, drawn by seed {plan.seed}, stratified by "
        "class, whole patients together where patients are known"
    )
    if any(group.startswith("val:") for group in groups) or (
        keys and all(key.startswith("val/") for key in keys)
    ):
        return f"{config.model_id}: validation is the split that came with the data."
    if groups:
        return f"{config.model_id}: validation is {drawn}."
    return (
        f"{config.model_id}: validation is the split that came with the data or, where none came, "
        f"{drawn}."
    )
