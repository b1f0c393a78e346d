"""Evaluate page: the movable operating point, reliability, coverage and the curve of K."""

import math

import streamlit as st

from core.assessment.record import Evaluation
from core.stats import curves
from pages._charts import evaluate as charts
from pages._evaluate.answers import say_answered
from pages._text import _, class_label, plain

_THRESHOLD_KEY = "evaluate_threshold"
_PREVALENCE_KEY = "evaluate_prevalence"
_QUIET = {"displayModeBar": False}


def show_operating_point(evaluation: Evaluation) -> None:
    """Threshold and prevalence in, sensitivity, specificity, PPV and NPV out, on both curves."""
    truth, probs = evaluation.is_disease, evaluation.p_disease
    disease = plain(class_label(evaluation.disease_class))
    left, right = st.columns(2, gap="large")
    with left:
        st.session_state.setdefault(_THRESHOLD_KEY, 0.5)
        threshold = st.slider(
            _("Call {disease} above a probability of").format(disease=disease),
            0.0,
            1.0,
            step=0.001,
            format="%.3f",
            key=_THRESHOLD_KEY,
        )
        with st.container(horizontal=True):
            st.button(
                _("0.5 (used for the answers)"),
                key="evaluate_t_half",
                on_click=_set_threshold,
                args=(0.5,),
            )
            st.button(
                _("Best balance (Youden)"),
                key="evaluate_t_youden",
                on_click=_set_threshold,
                args=(curves.find_threshold(truth, probs),),
                help=_("The threshold with the largest sum of sensitivity and specificity."),
            )
            st.button(
                _("Sensitivity at least 95 %"),
                key="evaluate_t_safe",
                on_click=_set_threshold,
                args=(curves.find_threshold(truth, probs, min_sensitivity=0.95),),
                help=_("The highest threshold that still detects 95 % of diseased images."),
            )
    with right:
        prevalence = st.slider(
            _("Disease prevalence among your patients"),
            0.1,
            99.0,
            value=round(float(truth.mean()) * 100, 1),
            step=0.1,
            format="%.1f %%",
            key=_PREVALENCE_KEY,
        )
        st.caption(
            _(
                "Prevalence in these images: {share} %. Predictive values depend on prevalence."
            ).format(share=f"{truth.mean() * 100:.0f}")
        )
    point = curves.compute_operating_point(
        truth,
        probs,
        threshold=threshold,
        prevalence=prevalence / 100,
        groups=evaluation.groups,
    )
    _show_point(point)
    drawn = curves.compute_curves(truth, probs)
    with st.grid(2, min_column_width=320):
        st.plotly_chart(
            charts.build_roc(drawn, point, translate=_), config=_QUIET, key="evaluate_roc"
        )
        st.plotly_chart(
            charts.build_pr(drawn, point, translate=_), config=_QUIET, key="evaluate_pr"
        )
    st.caption(
        _(
            "A threshold chosen on the images it is evaluated on looks better than it will on new "
            "ones."
        )
    )


def _set_threshold(value: float) -> None:
    # Down to the slider's own steps: a lower threshold misses no more than the value asked for.
    st.session_state[_THRESHOLD_KEY] = math.floor(value * 1000) / 1000


def _show_point(point: curves.OperatingPoint) -> None:
    shares = (
        (_("Sensitivity"), point.sensitivity),
        (_("Specificity"), point.specificity),
    )
    values = (
        (_("PPV"), point.ppv, _("Share of positive calls that have the disease.")),
        (_("NPV"), point.npv, _("Share of negative calls that are free of disease.")),
    )
    with st.grid(4, min_column_width=150):
        for label, share in shares:
            with st.container(border=True, gap="xsmall"):
                st.markdown(label)
                st.markdown(f"### {share.share or 0.0:.3f}")
                interval = _("95 % CI: {low} to {high}").format(
                    low=f"{share.low:.3f}", high=f"{share.high:.3f}"
                )
                st.caption(f"{share.n_hit} / {share.n} · {interval}")
        for label, value, text in values:
            with st.container(border=True, gap="xsmall"):
                st.markdown(label, help=text)
                st.markdown("### " + ("–" if value is None else f"{value:.3f}"))
                st.caption(
                    _("at {share} % prevalence").format(share=f"{point.prevalence:.1%}"[:-1])
                )


def show_reliability(evaluation: Evaluation) -> None:
    """Are the probabilities honest, and what does abstaining buy?"""
    truth, probs = evaluation.is_disease, evaluation.p_disease
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown(
            "#### " + _("Are the probabilities calibrated?"),
            help=_(
                "Observed share of disease among images with a given predicted probability. On "
                "the dotted line the two are equal. The small numbers are image counts."
            ),
        )
        bins = curves.compute_reliability(truth, probs, groups=evaluation.groups)
        st.plotly_chart(
            charts.build_reliability(bins, translate=_), config=_QUIET, key="evaluate_reliability"
        )
    with right:
        st.markdown(
            "#### " + _("What is gained by answering fewer images?"),
            help=_(
                "Images with a probability near 0.5 go unanswered, more and more of them towards"
                " the left. The star marks the abstention zone of this model."
            ),
        )
        rows = curves.compute_coverage(truth, probs, may_answer=~evaluation.is_novel)
        st.plotly_chart(
            charts.build_coverage(rows, evaluation.abstain_margin, translate=_),
            config=_QUIET,
            key="evaluate_coverage",
        )
    st.markdown(say_answered(evaluation))


def show_k(evaluation: Evaluation) -> None:
    """Accuracy for every K, per member that votes."""
    if not evaluation.k_curves:
        st.info(_("A plain classifier has no K, because no images vote."))
        return
    chosen = {m["model_id"]: int(m["k"]) for m in evaluation.result["members"]}
    st.markdown(
        "#### " + _("Accuracy by number of neighbours K"),
        help=_(
            "K was chosen on validation images. The other line only shows the accuracy on "
            "these images."
        ),
    )
    st.plotly_chart(
        charts.build_k_curves(evaluation.k_curves, evaluation.k_validation, chosen, translate=_),
        config=_QUIET,
        key="evaluate_k",
    )
