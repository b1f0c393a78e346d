"""Evaluate page: robustness, heatmaps, the external test."""

from typing import Any

import pandas as pd
import streamlit as st

from core.assessment import heatmap_study, store
from core.assessment.record import Evaluation, order_pair
from core.config import Settings
from core.errors import CoreError
from core.images.corruptions import STRENGTHS
from core.stats.shift import Comparison, Recalibration, compare
from pages import _shared as shared
from pages._charts import evaluate as charts
from pages._evaluate.answers import figure_label, show_seen
from pages._evaluate.run import damage_label, split_label
from pages._text import _, describe, moment, ngettext, plain

_QUIET = {"displayModeBar": False}


def show_robustness(evaluation: Evaluation) -> None:
    """Accuracy under graded damage; says how to make the study where it is missing."""
    study = store.load_study(Settings.from_env().checkpoints_dir, evaluation, "robustness")
    if study is None:
        _say_missing()
        return
    names = {kind: damage_label(kind) for kind in STRENGTHS}
    st.caption(
        _(
            "{n} images, half of each class where possible, corrupted at three levels. Measured "
            "{when} UTC."
        ).format(n=study["n"], when=moment(study["made"]["created"]))
    )
    st.plotly_chart(
        charts.build_robustness(study["rows"], names, translate=_),
        config=_QUIET,
        key="evaluate_robustness",
    )
    rows = [
        {
            "kind": damage_label(row["kind"]),
            "level": row["level"],
            "strength": _say_strength(row["kind"], row["strength"]),
            "accuracy": f"{row['accuracy']:.3f} "
            f"({row['accuracy_ci95'][0]:.2f}–{row['accuracy_ci95'][1]:.2f})",
            "auroc": row["auroc"],
            "unanswered": row["n_unanswered"],
        }
        for row in study["rows"]
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt=_("Table of accuracy at each level of corruption"),
        column_config={
            "kind": st.column_config.TextColumn(_("Corruption")),
            "level": st.column_config.NumberColumn(_("Level")),
            "strength": st.column_config.TextColumn(_("Strength")),
            "accuracy": st.column_config.TextColumn(_("Accuracy")),
            "auroc": st.column_config.NumberColumn(_("AUROC"), format="%.3f"),
            "unanswered": st.column_config.NumberColumn(_("Not answered")),
        },
    )


def _say_strength(kind: str, strength: float) -> str:
    return {
        "blur": _("σ {s} % of the side"),
        "noise": _("σ {s} % of full scale"),
        "brightness": _("gamma {s}"),
        "jpeg": _("quality {s}"),
        "rotation": _("{s} degrees"),
    }.get(kind, "").format(s=f"{strength:g}")


def _say_missing() -> None:
    st.info(
        _(
            "This study has not been run for this evaluation. Select it under “New evaluation” "
            "and start."
        ),
        icon=":material/science:",
    )


def show_heatmap_study(evaluation: Evaluation) -> None:
    """Pointing game, energy, deletion and insertion, per backbone and method."""
    study = store.load_study(Settings.from_env().checkpoints_dir, evaluation, "explanations")
    if study is None:
        _say_missing()
        return
    if study["n_masks"]:
        text = ngettext(
            "Heatmaps tested on {n} diseased image, {m} with a lesion mask.",
            "Heatmaps tested on {n} diseased images, {m} of them with a lesion mask.",
            study["n"],
        )
    else:
        text = ngettext(
            "Heatmaps tested on {n} diseased image. Without lesion masks, their location cannot "
            "be checked.",
            "Heatmaps tested on {n} diseased images. Without lesion masks, their location cannot"
            " be checked.",
            study["n"],
        )
    when = _("Measured {when} UTC.").format(when=moment(study["made"]["created"]))
    n_followed = max((row["n_faithful"] for row in study["rows"]), default=0)
    followed = _("Deletion and insertion were measured on {n} of them.").format(n=n_followed)
    st.caption(f"{text.format(n=study['n'], m=study['n_masks'])} {followed} {when}")
    st.dataframe(
        pd.DataFrame([_describe_method(row) for row in study["rows"]]),
        hide_index=True,
        height="content",  # the baselines come last and must be seen
        alt=_("Table of the heatmap figures by backbone and method"),
        column_config={
            "backbone": st.column_config.TextColumn(_("Backbone")),
            "method": st.column_config.TextColumn(_("Method")),
            "hit": st.column_config.TextColumn(
                _("Peak on the lesion"),
                help=_("Pointing game: share of images whose brightest point lies on the lesion."),
            ),
            "energy": st.column_config.TextColumn(
                _("Energy on the lesion"),
                help=_("Share of the heatmap's brightness that lies on the lesion."),
            ),
            "deletion": st.column_config.TextColumn(
                _("Deletion ↓"),
                help=_(
                    "Mean vote while the brightest areas are blurred away first. Lower is more "
                    "faithful."
                ),
            ),
            "insertion": st.column_config.TextColumn(
                _("Insertion ↑"),
                help=_(
                    "Mean vote while the brightest areas come back first. Higher is more faithful."
                ),
            ),
            "better": st.column_config.TextColumn(
                _("Better than chance"),
                help=_("Share of images where both are better than in random order."),
            ),
        },
    )
    _show_sanity(study)


def _describe_method(row: dict[str, Any]) -> dict[str, object]:
    better = row["better_than_random"]
    return {
        "backbone": {"mean": _("mean over the backbones"), "-": _("baseline")}.get(
            row["backbone"], row["backbone"]
        ),
        "method": _name_method(row["method"]),
        "hit": _say_kept(row["pointing_game"], row["pointing_ci95"]),
        "energy": _say_kept(row["energy_in_mask"], row["energy_ci95"]),
        "deletion": _say_kept(row["deletion_auc"], row["deletion_ci95"]),
        "insertion": _say_kept(row["insertion_auc"], row["insertion_ci95"]),
        "better": "–" if better is None else f"{better * 100:.0f} %",
    }


def _name_method(method: str) -> str:
    references = {"random": _("random map"), "centre": _("always the image centre")}
    return references.get(method) or shared.heatmap_method_label(method)


def _say_kept(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.2f} ({interval[0]:.2f}–{interval[1]:.2f})"


def _show_sanity(study: dict[str, Any]) -> None:
    method = _name_method(heatmap_study.find_checked_method(study))
    if study["randomisation"]:
        parts = ", ".join(
            f"{plain(name)} **{value:.2f}**" for name, value in study["randomisation"].items()
        )
        st.markdown(
            _(
                "Agreement with heatmaps of a randomly initialised network ({method}): {parts}."
            ).format(method=method, parts=parts),
            help=_(
                "Rank correlation; 1 means identical. A heatmap that stays the same when the "
                "trained layers are randomised does not show what was learned; values near 0 are"
                " good."
            ),
        )
    if study["agreement"] is not None:
        st.markdown(
            _("Agreement between backbones ({method}): **{value}**.").format(
                method=method, value=f"{study['agreement']:.2f}"
            ),
            help=_(
                "Rank correlation between the heatmaps of the same image, averaged over the images."
            ),
        )


def show_external(evaluation: Evaluation) -> None:
    """This evaluation against another data set's: figures, shift, recalibration."""
    directory = Settings.from_env().checkpoints_dir
    others = {
        summary.name: summary
        for summary in store.list_evaluations(directory, evaluation.model_id)
        if summary.name != evaluation.name
    }
    if not others:
        st.info(
            _(
                "Also evaluate this model on images from another hospital (under “New "
                "evaluation”), then compare the two here."
            ),
            icon=":material/domain:",
        )
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        name = st.selectbox(
            _("Compare with"),
            list(others),
            format_func=lambda key: f"{others[key].data_name}, {others[key].split}",
            key="evaluate_other",
        )
    other = store.load_evaluation(directory, evaluation.model_id, name)
    home, away = order_pair(evaluation, other)
    most = max(10, len(away.keys) // 2)
    with right:
        n_sample = st.slider(
            _("Labelled images for recalibration"),
            5,
            most,
            min(40, most),
            key="evaluate_sample",
        )
    show_seen(away)
    try:
        result = compare(home.to_answers(), away.to_answers(), n_sample=n_sample)
    except CoreError as error:
        st.warning(describe(error))
        return
    _show_side_by_side(home, away, result)
    st.plotly_chart(
        charts.build_distances(
            {_name(home): home.distance, _name(away): away.distance}, translate=_
        ),
        config=_QUIET,
        key="evaluate_distances",
    )
    shift = result.shift
    st.markdown(
        _(
            "In **{share} %** of the pairs of one image from each set, the second set's image "
            "lies farther from the training images (50 %: no shift; Kolmogorov-Smirnov p {p}). "
            "Refused as unfamiliar: {home} % and {away} %."
        ).format(
            share=f"{shift.separation * 100:.0f}",
            p=f"{shift.p_value:.2g}",
            home=f"{shift.novel_home * 100:.0f}",
            away=f"{shift.novel_away * 100:.0f}",
        )
    )
    if shift.novel_home or shift.novel_away:
        st.caption(_("The figures above count rejected images as if they had been answered."))
    _show_gains(result.recalibration)


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.data_name}, {split_label(str(evaluation.result['split']))}"


def _show_side_by_side(home: Evaluation, away: Evaluation, result: Comparison) -> None:
    rows = [
        {
            "figure": figure_label(a.key),
            "home": f"{a.value:.3f} ({a.low:.3f}–{a.high:.3f})",
            "away": f"{b.value:.3f} ({b.low:.3f}–{b.high:.3f})",
        }
        for a, b in zip(result.home, result.away, strict=True)
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt=_("Table of the figures on both data sets"),
        column_config={
            "figure": st.column_config.TextColumn(_("Figure")),
            "home": st.column_config.TextColumn(f"{_name(home)}, n = {len(home.keys)}"),
            "away": st.column_config.TextColumn(f"{_name(away)}, n = {len(away.keys)}"),
        },
    )


def _show_gains(result: Recalibration) -> None:
    st.markdown(
        "#### " + _("Recalibrated on {n} labelled images").format(n=result.n_sample),
        help=_(
            "Two parameters are fitted on a random sample and evaluated on all other images. "
            "Samples drawn: {n}."
        ).format(n=result.n_draws),
    )
    rows = [
        {
            "figure": figure_label(gain.key),
            "before": gain.before,
            "after": gain.after,
            "gain": f"{gain.gain:+.3f} ({gain.gain_low:+.3f} – {gain.gain_high:+.3f})",
        }
        for gain in result.gains
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="content",
        alt=_("Table of what recalibration gains"),
        column_config={
            "figure": st.column_config.TextColumn(_("Figure")),
            "before": st.column_config.NumberColumn(_("Before"), format="%.3f"),
            "after": st.column_config.NumberColumn(_("After"), format="%.3f"),
            "gain": st.column_config.TextColumn(_("Gain (95 % of the samples)")),
        },
    )
