"""The report's sections of results, as computed elsewhere in core."""

from collections.abc import Sequence
from pathlib import Path

from core.assessment import store
from core.assessment.record import Evaluation, order_pair, say_seen
from core.errors import CoreError
from core.export.evaluation_report import figures
from core.export.evaluation_report.blocks import (
    Block,
    Paragraph,
    Picture,
    Pictures,
    Section,
    TableBlock,
)
from core.images.decode import encode_png
from core.stats.curves import compute_coverage, compute_curves, compute_reliability
from core.stats.headlines import Figure
from core.stats.shift import Comparison, compare
from core.stats.subgroups import can_split, split_by

_N_PICTURES = 6
_N_SAMPLE = 40
FIGURE_NAMES = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "average_precision": "average precision",
    "brier": "Brier score (smaller is better)",
    "ece": "expected calibration error (smaller is better)",
}


def say_figure(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def count_images(evaluation: Evaluation) -> Section:
    n, n_disease = len(evaluation.keys), int(evaluation.is_disease.sum())
    answered = evaluation.result["coverage_at_abstention"]
    rows = [
        ("images measured", str(n)),
        (f"of them {evaluation.disease_class}", str(n_disease)),
        (f"of them {evaluation.other_class}", str(n - n_disease)),
        ("of them the model was trained or calibrated on", _describe_known(evaluation)),
        ("patients named", str(len({g for g in evaluation.groups if g}))),
        ("left out as unreadable", str(len(evaluation.result["unreadable"]))),
        ("answered as the model is set", str(answered["n_answered"])),
        ("too close to call", str(answered["n_uncertain"])),
        ("refused as another kind of image", str(answered["n_novel"])),
    ]
    return Section("Numbers", (35,), (TableBlock(("", "n"), (*rows,)),))


def _describe_known(evaluation: Evaluation) -> str:
    return str(evaluation.n_known) if "n_in_gallery" in evaluation.result else "–"


def show_performance(
    evaluation: Evaluation, headlines: Sequence[Figure], *, is_internal: bool
) -> Section:
    truth, probs = evaluation.is_disease, evaluation.p_disease
    curves = compute_curves(truth, probs)
    by_key = {figure.key: figure for figure in headlines}
    coverage = compute_coverage(truth, probs, may_answer=~evaluation.is_novel)
    pictures = (
        Picture(
            figures.draw_confusion(
                evaluation.result["confusion"],
                disease=evaluation.disease_class,
                other=evaluation.other_class,
            ),
            "Confusion matrix at 0.5.",
        ),
        Picture(figures.draw_roc(curves, by_key["auroc"].value), "ROC curve."),
        Picture(
            figures.draw_pr(curves, float(truth.mean())),
            "Precision and recall; dotted: the share of disease.",
        ),
        Picture(
            figures.draw_reliability(compute_reliability(truth, probs, groups=evaluation.groups)),
            "Reliability: observed share against the probability said, 95 % intervals.",
        ),
        Picture(
            figures.draw_coverage(coverage),
            "Accuracy of the answered images when the unsure are left out.",
        ),
    )
    rows = [(FIGURE_NAMES[figure.key], say_figure(figure)) for figure in headlines]
    blocks: list[Block] = [TableBlock(("figure", "value (95 % interval)"), (*rows,))]
    members = evaluation.result["members"]
    if len(members) > 1:
        agreement = evaluation.result["agreement"]
        blocks.append(
            TableBlock(
                ("member", "weight", "accuracy", "AUROC"),
                tuple(
                    (
                        m["model_id"],
                        f"{m['weight']:.3f}",
                        f"{m['accuracy']:.3f}",
                        f"{m['auroc']:.3f}",
                    )
                    for m in members
                ),
            )
        )
        blocks.append(
            Paragraph(
                f"The members agree on {agreement['agree']} images and not on "
                f"{agreement['disagree']}."
            )
        )
    where = 32 if is_internal else 33  # internal or external test set
    return Section("Performance", (where, 37, 38), (*blocks, Pictures(pictures)))


def show_subgroups(evaluation: Evaluation) -> Section:
    blocks: list[Block] = []
    for name, values in evaluation.columns.items():
        if not can_split(values):
            continue
        rows = split_by(
            evaluation.is_disease, evaluation.p_disease, values, groups=evaluation.groups
        )
        blocks.append(
            TableBlock(
                (name, "n", "accuracy", "sensitivity", "specificity", ""),
                tuple(
                    (
                        row.value or "(empty)",
                        str(row.n),
                        *(
                            "–"
                            if s.share is None
                            else f"{s.share:.2f} ({s.low:.2f} to {s.high:.2f})"
                            for s in (row.accuracy, row.sensitivity, row.specificity)
                        ),
                        "few: may be luck" if row.is_small else "",
                    )
                    for row in rows
                ),
            )
        )
    if not blocks:
        return Section("Subgroups", (), (Paragraph("The data have no column to split by."),))
    return Section("Subgroups", (36,), (*blocks,))


def show_robustness(checkpoints_dir: Path, evaluation: Evaluation) -> Section:
    study = store.load_study(checkpoints_dir, evaluation, "robustness")
    if study is None:
        return Section("Robustness", (), (Paragraph("Not measured."),))
    rows = tuple(
        (
            row["kind"],
            str(row["level"]),
            f"{row['strength']:g}",
            "{:.3f} ({:.2f} to {:.2f})".format(row["accuracy"], *row["accuracy_ci95"]),
            f"{row['auroc']:.3f}",
        )
        for row in study["rows"]
    )
    picture = Picture(figures.draw_robustness(study["rows"]), "Accuracy under graded damage.")
    return Section(
        "Robustness",
        (30,),
        (
            Paragraph(
                f"Measured {study['made']['created']}: {study['n']} images, damaged at three "
                "levels: Gaussian blur (% of the side), noise (% of full scale), darkening "
                "(gamma), JPEG (quality), rotation (degrees)."
            ),
            TableBlock(("damage", "level", "strength", "accuracy", "AUROC"), rows),
            Pictures((picture,)),
        ),
    )


def show_external(checkpoints_dir: Path, evaluation: Evaluation) -> Section:
    others = [
        summary
        for summary in store.list_evaluations(checkpoints_dir, evaluation.model_id)
        if summary.data_id != evaluation.result["data"]
    ]
    blocks: list[Block] = []
    n_external = 0
    for summary in others:
        other = store.load_evaluation(checkpoints_dir, evaluation.model_id, summary.name)
        home, away = order_pair(evaluation, other)
        n_sample = min(_N_SAMPLE, len(away.keys) // 2)
        try:
            result = compare(home.to_answers(), away.to_answers(), n_sample=n_sample)
        except CoreError as error:
            blocks.append(Paragraph(f"{summary.data_name}: {error}"))
            continue
        blocks += _describe_comparison(home, away, result)
        if seen := say_seen(away):
            blocks.append(Paragraph(f"{away.data_name}: {seen}"))
        n_external += not away.is_internal
    if not blocks:
        return Section("External test", (), (Paragraph("Not measured on other data."),))
    return Section("External test", (33,) if n_external else (), (*blocks,))


def _describe_comparison(home: Evaluation, away: Evaluation, result: Comparison) -> list[Block]:
    pairs = zip(result.home, result.away, strict=True)
    shift, again = result.shift, result.recalibration
    return [
        TableBlock(
            (
                "figure",
                f"{home.data_name} (n {len(home.keys)})",
                f"{away.data_name} (n {len(away.keys)})",
            ),
            tuple((FIGURE_NAMES[a.key], say_figure(a), say_figure(b)) for a, b in pairs),
        ),
        Paragraph(
            f"Shift: median embedding distance to the nearest training images "
            f"{shift.median_home:.3f} and {shift.median_away:.3f}; an image of {away.data_name} "
            f"lies farther in {shift.separation:.0%} of the pairs (Kolmogorov-Smirnov p "
            f"{shift.p_value:.2g})."
        ),
        TableBlock(
            (f"recalibrated on {again.n_sample} images", "before", "after", "won (95 % of draws)"),
            tuple(
                (
                    FIGURE_NAMES[g.key],
                    f"{g.before:.3f}",
                    f"{g.after:.3f}",
                    f"{g.gain:+.3f} ({g.gain_low:+.3f} to {g.gain_high:+.3f})",
                )
                for g in again.gains
            ),
        ),
    ]


def show_failures(evaluation: Evaluation) -> Section:
    blocks: list[Block] = []
    for cell, words in (("fn", "missed"), ("fp", "called without disease")):
        rows = evaluation.find_cell(cell)
        shown = "; shown are the surest wrong calls" if len(rows) else ""
        blocks.append(Paragraph(f"{len(rows)} {words}{shown}."))
        if len(rows):
            blocks.append(
                Pictures(
                    tuple(
                        Picture(
                            encode_png(evaluation.thumbnail(int(row))),
                            f"{evaluation.keys[row].rsplit('/', 1)[-1]}, said "
                            f"{evaluation.p_disease[row]:.2f}",
                            width_share=0.15,
                        )
                        for row in rows[:_N_PICTURES]
                    )
                )
            )
    return Section("Wrong calls", (39,), (*blocks,))
