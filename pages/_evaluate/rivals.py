"""Evaluate page: other models on the same images, and the ablation table."""

import pandas as pd
import streamlit as st

from core.assessment import store
from core.assessment.ablation.saved import Ablation, list_ablations
from core.assessment.record import Evaluation
from core.config import Settings
from core.stats.paired_tests import compare_aurocs, compare_calls, write_p
from pages._text import _, ngettext, plain


def show_rivals(evaluation: Evaluation) -> None:
    """Other models on the same images, with paired tests."""
    directory = Settings.from_env().checkpoints_dir
    rivals = store.list_rivals(directory, evaluation)
    if not rivals:
        st.info(_("No other model has been evaluated on these images."), icon=":material/balance:")
        return
    chosen = st.multiselect(
        _("Models to compare"), rivals, default=rivals[:3], key="evaluate_rivals"
    )
    rows = [_describe_rival(evaluation, evaluation)]
    for model_id in chosen:
        other = store.load_evaluation(directory, model_id, evaluation.name)
        rows.append(_describe_rival(evaluation, other))
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt=_("Table of several models on the same images"),
        column_config={
            "model": st.column_config.TextColumn(_("Model")),
            "accuracy": st.column_config.TextColumn(_("Accuracy")),
            "auroc": st.column_config.TextColumn(_("AUROC")),
            "sensitivity": st.column_config.NumberColumn(_("Sensitivity"), format="%.3f"),
            "specificity": st.column_config.NumberColumn(_("Specificity"), format="%.3f"),
            "mcnemar": st.column_config.TextColumn(
                _("p (answers)"),
                help=_("McNemar's exact test of the answers on the same images, by patient."),
            ),
            "delong": st.column_config.TextColumn(
                _("p (AUROC)"),
                help=_("DeLong's test of the two AUROCs on the same images, by patient."),
            ),
        },
    )


def _describe_rival(first: Evaluation, second: Evaluation) -> dict[str, object]:
    result = second.result
    row: dict[str, object] = {
        "model": second.model_id,
        "accuracy": _say_interval(result["accuracy"], *result["accuracy_ci95"]),
        "auroc": _say_interval(result["auroc"], *result["auroc_ci95"]),
        "sensitivity": result["sensitivity"],
        "specificity": result["specificity"],
        "mcnemar": "",
        "delong": "",
    }
    if second is not first and second.keys == first.keys:
        three = first.is_disease, first.p_disease, second.p_disease
        calls = compare_calls(*three, groups=first.groups)
        aurocs = compare_aurocs(*three, groups=first.groups)
        row |= {"mcnemar": write_p(calls.p_value), "delong": write_p(aurocs.p_value)}
    return row


def _say_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def _say_seconds(seconds: float | None, *, digits: int) -> str:
    return "–" if seconds is None else f"{seconds:.{digits}f}"  # frozen features: nothing timed


def show_ablations() -> None:
    """The report's systems side by side, from saved runs."""
    found = list_ablations(Settings.from_env().checkpoints_dir)
    if not found:
        st.info(_("No ablation study has been run."), icon=":material/table:")
        st.code("python -m core ablation --data DATA --systems 1,4,5,6 --json ablation_data.json")
        st.caption(
            _(
                "Files named ablation\\_….json in the models folder or in benchmarks/results are "
                "listed here."
            )
        )
        return
    names = [ablation.name for ablation in found]
    name = st.selectbox(_("Ablation"), names, key="evaluate_ablation", width=420)
    _show_ablation(found[names.index(name)])


def _show_ablation(ablation: Ablation) -> None:
    st.caption(
        ngettext(
            "Data {data}, preset {preset}, {n} seed; 95 % intervals over patients.",
            "Data {data}, preset {preset}, {n} seeds; 95 % intervals over seeds and patients.",
            ablation.n_seeds,
        ).format(data=plain(ablation.data_name), preset=plain(ablation.preset), n=ablation.n_seeds)
    )
    rows = [
        {
            "system": f"{row['system']}: {row['label']}",
            "accuracy": _say_interval(*(row["accuracy"][k] for k in ("mean", "low", "high"))),
            "auroc": _say_interval(*(row["auroc"][k] for k in ("mean", "low", "high"))),
            "train": _say_seconds(row["seconds_train"], digits=0),
            "image": _say_seconds(row["seconds_per_image"], digits=3),
        }
        for row in ablation.summary
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt=_("Table of the systems in the report"),
        column_config={
            "system": st.column_config.TextColumn(_("System")),
            "accuracy": st.column_config.TextColumn(_("Accuracy")),
            "auroc": st.column_config.TextColumn(_("AUROC")),
            "train": st.column_config.TextColumn(_("Training (s)")),
            "image": st.column_config.TextColumn(_("Per image (s)")),
        },
    )
