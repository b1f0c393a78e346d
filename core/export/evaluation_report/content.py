"""The content of the report, section by section, independent of its format."""

from collections.abc import Sequence
from pathlib import Path

from core.assessment import store
from core.assessment.record import Evaluation, say_seen
from core.export.evaluation_report import claim
from core.export.evaluation_report.blocks import Paragraph, Report, Section, TableBlock
from core.export.evaluation_report.heatmaps import build_explanations
from core.export.evaluation_report.methods import (
    describe_availability,
    describe_data,
    describe_limits,
    describe_methods,
    describe_model,
    describe_partitions,
    describe_purpose,
    describe_reference,
    describe_training,
)
from core.export.evaluation_report.recipe import say_way
from core.export.evaluation_report.results import (
    FIGURE_NAMES,
    count_images,
    say_figure,
    show_external,
    show_failures,
    show_performance,
    show_robustness,
    show_subgroups,
)
from core.models.bundle import BundleConfig
from core.models.bundle_files import read_bundle_config
from core.models.registry import find_model
from core.stats.headlines import Figure, compute_headlines


def build_report(checkpoints_dir: Path, model_id: str, name: str) -> Report:
    """Build a model's report on a saved evaluation.

    Raises:
        CheckpointError: there is no such model or evaluation.
        DataError: the evaluation has only one class.
    """
    evaluation = store.load_evaluation(checkpoints_dir, model_id, name)
    summary = find_model(checkpoints_dir, model_id)
    members = [
        read_bundle_config(checkpoints_dir / member) for member in summary.members or (model_id,)
    ]
    headlines = compute_headlines(
        evaluation.is_disease, evaluation.p_disease, groups=evaluation.groups
    )
    sections = [
        _summarise(evaluation, headlines, members),
        describe_purpose(evaluation),
        describe_data(evaluation),
        describe_reference(),
        describe_partitions(members, checkpoints_dir),
        describe_model(members),
        describe_training(members, checkpoints_dir),
        describe_methods(evaluation),
        count_images(evaluation),
        show_performance(
            evaluation,
            headlines,
            is_internal=evaluation.is_internal
            or evaluation.result["data"] in {config.data_id for config in members},
        ),
        show_subgroups(evaluation),
        show_robustness(checkpoints_dir, evaluation),
        build_explanations(store.load_study(checkpoints_dir, evaluation, "explanations")),
        show_external(checkpoints_dir, evaluation),
        show_failures(evaluation),
        describe_limits(evaluation),
        describe_availability(members),
    ]
    return Report(
        title=f"Evaluation of {model_id}",
        subtitle=f"Data {evaluation.data_name} ({evaluation.result['data']}), split "
        f"{evaluation.result['split']}, measured {evaluation.created}",
        is_synthetic=evaluation.is_synthetic,
        sections=(*sections, _list_items(sections)),
    )


def _summarise(
    evaluation: Evaluation, headlines: Sequence[Figure], members: Sequence[BundleConfig]
) -> Section:
    by_key = {figure.key: figure for figure in headlines}
    names = dict.fromkeys(info.name for config in members for info in config.backbones)
    ways = dict.fromkeys(say_way(config.run) for config in members)
    parts = ", ".join(
        f"{FIGURE_NAMES[key]} {say_figure(by_key[key])}"
        for key in ("accuracy", "auroc", "sensitivity", "specificity")
    )
    return Section(
        "Summary",
        (1, 2),
        (
            Paragraph(
                f"Retrospective evaluation of a deep-learning model on {', '.join(names)} that "
                f"tells {evaluation.other_class} from {evaluation.disease_class} by "
                f"{' and by '.join(ways)}."
            ),
            Paragraph(
                f"On {len(evaluation.keys)} images: {parts} (95 % intervals). "
                f"{say_seen(evaluation)}".rstrip()
            ),
        ),
    )


def _list_items(sections: Sequence[Section]) -> Section:
    """List every item with the section that covers it or what is left to the author."""
    places = {item: section.title for section in sections for item in section.items}
    n_in_part = sum(item in claim.IN_PART for item in places)
    return Section(
        "Checklist",
        (),
        (
            Paragraph(
                f"{claim.NAME}: {len(places) - n_in_part} of {len(claim.ITEMS)} items are covered "
                f"here, {n_in_part} in part, {len(claim.ITEMS) - len(places)} are for the author."
            ),
            TableBlock(
                ("item", "what it asks for", "where", "for the author to add"),
                tuple(
                    (
                        str(item),
                        name,
                        places.get(item, "–"),
                        claim.IN_PART.get(item, "") if item in places else "all of it",
                    )
                    for item, name in claim.ITEMS.items()
                ),
            ),
        ),
    )
