"""Diagnose page, second half: one case, the answer in words first, then its evidence.

Shows what the Diagnosis record holds and computes nothing.
"""

import pandas as pd
import streamlit as st

from core.diagnosis import Diagnosis
from core.ensemble import Model
from pages import _charts as charts
from pages import _shared as shared
from pages._diagnose_evidence import show_heatmaps, show_map, show_neighbours
from pages._diagnose_intake import n_frames_of, sample_truth
from pages._text import _, class_label, describe_error, moment, percent, plain


def show_case(model: Model, case_id: str, diagnosis: Diagnosis) -> None:
    """Answer, ledger, heatmaps, map and provenance of one case."""
    st.subheader(plain(diagnosis.file), divider="gray")
    _choose_frame(case_id)
    if diagnosis.status == "rejected":
        _show_rejected(diagnosis)
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        _show_image(case_id, diagnosis)
    with right:
        _show_answer(model, diagnosis)
    if diagnosis.abstain_reason == "novel":
        with st.expander(_("What the model would have compared it with")):
            _show_evidence(model, diagnosis)
    else:
        _show_evidence(model, diagnosis)
    _show_provenance(diagnosis)


def _show_evidence(model: Model, diagnosis: Diagnosis) -> None:
    show_neighbours(model, diagnosis)
    show_heatmaps(diagnosis)
    show_map(model, diagnosis)
    if len(diagnosis.members) > 1:
        _show_members(diagnosis)


def _choose_frame(case_id: str) -> None:
    n_frames = n_frames_of(case_id)
    if n_frames <= 1:
        return
    frames: dict[str, int] = st.session_state[shared.FRAMES_KEY]
    key = f"{shared.FRAME_KEY}_{case_id}"

    def remember() -> None:
        st.session_state[shared.FRAMES_KEY][case_id] = st.session_state[key] - 1

    st.number_input(
        _("Frame (1 to {n})").format(n=n_frames),
        min_value=1,
        max_value=n_frames,
        value=frames.get(case_id, 0) + 1,
        key=key,
        on_change=remember,
        help=_("This file holds several pictures. Each one is read by itself."),
        width=220,
    )


def _show_rejected(diagnosis: Diagnosis) -> None:
    with st.container(key="answer-rejected"):
        st.markdown("### " + _("Not read, so there is no answer"))
        reason = describe_error(diagnosis.error_code, diagnosis.error or "", diagnosis.error_params)
        st.markdown(plain(reason))


def _show_image(case_id: str, diagnosis: Diagnosis) -> None:
    if diagnosis.pixels is not None:
        st.image(
            diagnosis.pixels,
            width="stretch",
            output_format="PNG",
            alt=_("The image that was read: {name}").format(name=diagnosis.file),
        )
    truth = sample_truth(case_id)
    if truth is not None:
        st.markdown(
            _(":violet-badge[SYNTHETIC] Drawn with lesions.")
            if truth
            else _(":violet-badge[SYNTHETIC] Drawn without lesions.")
        )


def _show_answer(model: Model, diagnosis: Diagnosis) -> None:
    predicted = class_label(diagnosis.predicted_class or "")
    is_disease = diagnosis.predicted_class == diagnosis.disease_class
    if diagnosis.abstain_reason == "novel":
        with st.container(key="answer-novel"):
            st.markdown("## " + _("No answer"))
            st.markdown(_("**This is not the kind of image this model knows.**"))
            _show_novelty(diagnosis)
        return
    if diagnosis.status == "abstained":
        with st.container(key="answer-uncertain"):
            st.markdown("## " + _("No answer: too close to call"))
            st.markdown(_("Leaning: {name}").format(name=f"**{plain(predicted)}**"))
            _show_probability(model, diagnosis)
        return
    with st.container(key="answer-disease" if is_disease else "answer-other"):
        mark = "◆" if is_disease else "●"
        st.markdown(f"## {mark} " + _("Answer: {name}").format(name=plain(predicted)))
        _show_probability(model, diagnosis)


def _show_probability(model: Model, diagnosis: Diagnosis) -> None:
    parts = [
        f"{plain(class_label(c))} **{percent(p)}**"
        for c, p in sorted(
            diagnosis.probabilities.items(), key=lambda item: item[0] == diagnosis.disease_class
        )
    ]
    st.markdown(
        _("Probability: {parts}").format(parts=" · ".join(parts)),
        help=_(
            "Of validation images that got this number, about this share had the class. It comes "
            "from the vote of the nearest training images, corrected on images held out from "
            "training. It says nothing about how common the disease is among your patients."
        ),
    )
    st.plotly_chart(
        charts.build_probability_bar(diagnosis, model.class_names, label=class_label),
        config={"displayModeBar": False},
        key="diagnose_probability",
    )
    _show_vote(diagnosis)
    _show_novelty(diagnosis)


def _show_vote(diagnosis: Diagnosis) -> None:
    votes = [n.class_name for n in diagnosis.neighbours]
    predicted = diagnosis.predicted_class or ""
    st.markdown(
        _("{n} of the {k} nearest training images are labelled {name}.").format(
            n=f"**{votes.count(predicted)}**",
            k=diagnosis.k,
            name=f"**{plain(class_label(predicted))}**",
        ),
        help=_("Nearest means most alike to the model. Nearer images have a larger say."),
    )


def _show_novelty(diagnosis: Diagnosis) -> None:
    if diagnosis.novelty is None:
        return
    st.markdown(
        _("More unusual than {share} of the training images.").format(
            share=percent(diagnosis.novelty.distance_percentile / 100)
        ),
        help=_(
            "How far this image lies from the training images, compared with how far they lie "
            "from each other. Far beyond all of them, the model refuses to answer."
        ),
    )


def _show_members(diagnosis: Diagnosis) -> None:
    st.markdown("#### " + _("What each model of the ensemble says"))
    p_label = _("Probability of {name}").format(name=class_label(diagnosis.disease_class))
    rows = [
        {
            "model": m.model_id,
            "p": percent(m.probabilities.get(diagnosis.disease_class, 0.0)),
            "weight": m.weight,
        }
        for m in diagnosis.members
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="content",
        alt=_("Table of the votes of the models"),
        column_config={
            "model": st.column_config.TextColumn(_("Model")),
            "p": st.column_config.TextColumn(p_label),
            "weight": st.column_config.NumberColumn(_("Weight in the vote"), format="%.3f"),
        },
    )


def _show_provenance(diagnosis: Diagnosis) -> None:
    st.caption(
        _(
            "Model {model} · training data {data} · read {when} UTC · "
            "**Research use, not a diagnosis.**"
        ).format(
            model=plain(diagnosis.model_id),
            data=plain(diagnosis.data_id),
            when=moment(diagnosis.created),
        )
    )
