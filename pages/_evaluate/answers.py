"""Evaluate page: headline figures, the confusion matrix with its images, members, subgroups."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from core.assessment.record import Evaluation
from core.errors import CoreError
from core.stats.headlines import Figure, compute_headlines
from core.stats.subgroups import MIN_N, Subgroup, can_split, split_by
from pages import _shared as shared
from pages._text import _, class_label, describe, ngettext, percent, plain

_N_PICTURES = 24
_SHOWN_FIRST = ("accuracy", "auroc", "sensitivity", "specificity")


def figure_label(key: str) -> str:
    """The name of a figure as shown."""
    return {
        "accuracy": _("Accuracy"),
        "auroc": _("AUROC"),
        "balanced_accuracy": _("Balanced accuracy"),
        "sensitivity": _("Sensitivity"),
        "specificity": _("Specificity"),
        "average_precision": _("Average precision"),
        "brier": _("Brier score"),
        "ece": _("Calibration error"),
    }[key]


def figure_help(key: str) -> str:
    """What a figure means, in a sentence."""
    return {
        "accuracy": _("Share of images classified correctly."),
        "auroc": _("Probability that a diseased image is scored higher than one without disease."),
        "balanced_accuracy": _("Mean of sensitivity and specificity."),
        "sensitivity": _("Share of diseased images called diseased."),
        "specificity": _("Share of images without disease called so."),
        "average_precision": _("Area under the precision-recall curve."),
        "brier": _("Mean squared error of the probabilities. Lower is better."),
        "ece": _(
            "Mean gap between the stated probability and the observed share. Lower is better."
        ),
    }[key]


@st.cache_data(max_entries=16, show_spinner=False)
def compute_figures(_evaluation: Evaluation, token: str) -> tuple[Figure, ...]:  # noqa: ARG001
    """Headline figures of an evaluation; ``token`` names it in the cache."""
    return compute_headlines(
        _evaluation.is_disease, _evaluation.p_disease, groups=_evaluation.groups
    )


def show_headlines(evaluation: Evaluation, figures: Sequence[Figure]) -> None:
    """The main figures large, the rest in a row below; every one with its interval and n."""
    n, n_disease = len(evaluation.keys), int(evaluation.is_disease.sum())
    n_patients = len({group for group in evaluation.groups if group})
    words = ngettext(" of {n} patient", " of {n} patients", n_patients)
    patients = words.format(n=n_patients) if n_patients else ""
    st.markdown(
        _("**{n} images**{patients}: {n_disease} {disease}, {n_other} {other}.").format(
            n=n,
            patients=patients,
            n_disease=n_disease,
            disease=plain(class_label(evaluation.disease_class)),
            n_other=n - n_disease,
            other=plain(class_label(evaluation.other_class)),
        ),
        help=_(
            "Of 100 such intervals, 95 contain the true value. Where patients are known, "
            "resampling is by patient."
        ),
    )
    show_seen(evaluation)
    by_key = {figure.key: figure for figure in figures}
    answered = evaluation.result["coverage_at_abstention"]
    if answered["n_answered"] < n:
        st.markdown(
            say_answered(evaluation)
            + " "
            + _("The figures below count every image as if it had been answered.")
        )
    with st.grid(4, min_column_width=150):
        for key in (*_SHOWN_FIRST, *(k for k in by_key if k not in _SHOWN_FIRST)):
            _show_figure(by_key[key])


def show_seen(evaluation: Evaluation) -> None:
    """Where images are not new to the model: that its figures look better than they are."""
    if evaluation.is_own_split:
        st.caption(
            _(
                "The model was trained or calibrated on these images: all figures, calibration "
                "error above all, look better than on new ones."
            )
        )
    elif evaluation.n_known:
        st.warning(
            _(
                "The model was trained or calibrated on **{n}** of these {total} images. The "
                "figures look better than on new images; this is not an external test."
            ).format(n=evaluation.n_known, total=len(evaluation.keys)),
            icon=":material/warning:",
        )


def say_answered(evaluation: Evaluation) -> str:
    """How many images the model answers as it is set, and how right it is on them."""
    answered = evaluation.result["coverage_at_abstention"]
    share = "–" if answered["accuracy"] is None else f"{answered['accuracy'] * 100:.1f} %"
    return ngettext(
        "With its current settings the model answers **{n}** of {total} images and is right on "
        "**{share}** of them; {unsure} was too close to call and {novel} were unfamiliar.",
        "With its current settings the model answers **{n}** of {total} images and is right on "
        "**{share}** of them; {unsure} were too close to call and {novel} were unfamiliar.",
        answered["n_uncertain"],
    ).format(
        n=answered["n_answered"],
        total=len(evaluation.keys),
        share=share,
        unsure=answered["n_uncertain"],
        novel=answered["n_novel"],
    )


def _show_figure(figure: Figure) -> None:
    with st.container(border=True, gap="xsmall"):
        st.markdown(figure_label(figure.key), help=figure_help(figure.key))
        st.markdown(f"### {figure.value:.3f}")
        st.caption(
            _("95 % CI: {low} to {high}").format(low=f"{figure.low:.3f}", high=f"{figure.high:.3f}")
        )


def cell_label(cell: str, evaluation: Evaluation) -> str:
    """A cell of the confusion matrix in words."""
    disease = class_label(evaluation.disease_class)
    return {
        "tp": _("true positive").format(disease=disease),
        "fn": _("false negative (missed)").format(disease=disease),
        "fp": _("false positive").format(disease=disease),
        "tn": _("true negative").format(disease=disease),
    }[cell]


def show_confusion(evaluation: Evaluation) -> None:
    """Four cells with their counts; a press opens the images."""
    st.markdown("#### " + _("Confusion matrix"))
    st.caption(_("Click a cell to see its images."))
    confusion = evaluation.result["confusion"]
    with st.grid(2, min_column_width=150):
        for cell, mark in (("tp", "✓"), ("fn", "✕"), ("fp", "✕"), ("tn", "✓")):
            st.button(
                f"{mark} **{confusion[cell]}**  \n{plain(cell_label(cell, evaluation))}",
                key=f"evaluate_cell_{cell}",
                on_click=_open_cell,
                args=(cell,),
                width="stretch",
                type="primary" if st.session_state.get(shared.CELL_KEY) == cell else "secondary",
            )
    cell = st.session_state.get(shared.CELL_KEY)
    if cell in confusion:
        rows = evaluation.find_cell(cell)
        st.markdown(f"**{plain(cell_label(cell, evaluation))}**: {len(rows)}")
        show_pictures(evaluation, rows, place=f"cell-{cell}")


def _open_cell(cell: str) -> None:
    is_open = st.session_state.get(shared.CELL_KEY) == cell
    st.session_state[shared.CELL_KEY] = None if is_open else cell


def show_pictures(evaluation: Evaluation, rows: NDArray[np.int64], *, place: str) -> None:
    """Images with their truth and the probability said, the surest first."""
    if not len(rows):
        st.caption(_("No images here."))
        return
    shown = rows
    if len(rows) > _N_PICTURES and not st.toggle(
        _("Show all {n}").format(n=len(rows)), key=f"evaluate_all_{place}"
    ):
        shown = rows[:_N_PICTURES]
    with st.grid("auto", min_column_width=130, gap=("small", "xsmall")):
        for row in shown.tolist():
            _show_picture(evaluation, row, place=place)


def _show_picture(evaluation: Evaluation, row: int, *, place: str) -> None:
    is_disease = bool(evaluation.is_disease[row])
    kind = "disease" if is_disease else "other"
    name = evaluation.disease_class if is_disease else evaluation.other_class
    with st.container(key=f"card-{kind}-{place}-{row}"):
        st.image(
            evaluation.thumbnail(row),
            width="stretch",
            output_format="PNG",
            alt=_("Image {key}, true class {name}").format(
                key=evaluation.keys[row], name=class_label(name)
            ),
        )
        lines = [
            ("◆ " if is_disease else "● ") + f"**{plain(class_label(name))}**",
            _("predicted {p}").format(p=percent(float(evaluation.p_disease[row]))),
            plain(evaluation.keys[row].rsplit("/", 1)[-1]),
        ]
        st.markdown("  \n".join(f":small[{line}]" for line in lines))


def show_members(evaluation: Evaluation) -> None:
    """The performance of each member of an ensemble, and the images on which they disagree."""
    members = evaluation.result["members"]
    if len(members) < 2:
        st.caption(_("A single model: there is no second opinion."))
        return
    st.dataframe(
        pd.DataFrame(members),
        hide_index=True,
        width="content",
        alt=_("Table of the ensemble members with their figures"),
        column_order=("model_id", "weight", "accuracy", "auroc", "k"),
        column_config={
            "model_id": st.column_config.TextColumn(_("Model")),
            "weight": st.column_config.NumberColumn(_("Weight in the vote"), format="%.3f"),
            "accuracy": st.column_config.NumberColumn(_("Accuracy"), format="%.3f"),
            "auroc": st.column_config.NumberColumn(_("AUROC"), format="%.3f"),
            "k": st.column_config.NumberColumn(_("K")),
        },
    )
    agreement = evaluation.result["agreement"]
    rows = evaluation.find_disputed()
    n_right = sum((evaluation.p_disease[row] > 0.5) == evaluation.is_disease[row] for row in rows)
    st.markdown(
        _(
            "They agree on **{agree}** of {n} images. Of the {disagree} on which they disagree, "
            "the vote is correct on {right}."
        ).format(
            agree=agreement["agree"],
            n=len(evaluation.keys),
            disagree=agreement["disagree"],
            right=int(n_right),
        )
    )
    show_pictures(evaluation, rows, place="disputed")


def show_subgroups(evaluation: Evaluation) -> None:
    """Figures by any column of the manifest that makes groups."""
    columns = {name: values for name, values in evaluation.columns.items() if can_split(values)}
    if not columns:
        st.info(
            _(
                "The data has no column to split by. Add columns to manifest.csv (age, sex, "
                "scanner, site …) and evaluate again."
            ),
            icon=":material/view_column:",
        )
        return
    name = st.selectbox(_("Column"), list(columns), key="evaluate_column", width=320)
    try:
        rows = split_by(
            evaluation.is_disease,
            evaluation.p_disease,
            columns[name],
            groups=evaluation.groups,
        )
    except CoreError as error:
        st.warning(describe(error))
        return
    st.dataframe(
        pd.DataFrame([_describe_group(row) for row in rows]),
        hide_index=True,
        alt=_("Table of the figures by subgroup"),
        column_config={
            "value": st.column_config.TextColumn(name),
            "n": st.column_config.NumberColumn(_("Images")),
            "n_disease": st.column_config.NumberColumn(_("of them diseased")),
            "accuracy": st.column_config.TextColumn(_("Accuracy")),
            "sensitivity": st.column_config.TextColumn(_("Sensitivity")),
            "specificity": st.column_config.TextColumn(_("Specificity")),
            "auroc": st.column_config.TextColumn(_("AUROC")),
            "note": st.column_config.TextColumn(""),
        },
    )
    if any(row.is_small for row in rows):
        st.warning(
            _(
                "Groups with fewer than {n} patients of either class (images, where patients are"
                " unknown) are marked: their figures may be due to chance."
            ).format(n=MIN_N),
            icon=":material/warning:",
        )


def _describe_group(row: Subgroup) -> dict[str, object]:
    def say(value: float | None, low: float, high: float) -> str:
        return "–" if value is None else f"{value:.2f} ({low:.2f}–{high:.2f})"

    shares = {key: getattr(row, key) for key in ("accuracy", "sensitivity", "specificity")}
    return {
        "value": row.value or _("(empty)"),
        "n": row.n,
        "n_disease": row.n_disease,
        **{key: say(share.share, share.low, share.high) for key, share in shares.items()},
        "auroc": say(row.auroc, *(row.auroc_ci95 or (0.0, 1.0))),
        "note": "⚠ " + _("small sample") if row.is_small else "",
    }
