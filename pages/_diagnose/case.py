"""Diagnose page: one case, its answer and its evidence.

Shows what the Diagnosis record holds and computes nothing.
"""

import pandas as pd
import streamlit as st

from core.answers.diagnosis import Diagnosis
from core.answers.reliability import describe_reliability
from core.answers.scrutiny import Scrutiny
from core.models.ensemble import Model
from pages._charts import cases as charts
from pages._diagnose.display import show_controls, show_patient_tags, warn_of_text
from pages._diagnose.evidence import show_map, show_neighbours
from pages._diagnose.export import show_case_downloads
from pages._diagnose.heatmaps import show_heatmaps
from pages._diagnose.reader import is_hidden, show_form, show_read
from pages._diagnose.sources import Source, sample_truth
from pages._text import _, class_label, describe_error, moment, ngettext, percent, plain


def show_case(model: Model, case_id: str, diagnosis: Diagnosis, source: Source) -> None:
    """Answer, ledger, heatmaps, map, provenance and downloads of one case."""
    st.subheader(plain(diagnosis.file), divider="gray")
    show_controls(case_id)
    if diagnosis.status == "rejected":
        _show_rejected(diagnosis)
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        _show_image(case_id, diagnosis)
        show_patient_tags(source)
    with right:
        if is_hidden(diagnosis):
            show_form(model, case_id, diagnosis)
        else:
            show_read(diagnosis)
            _show_answer(model, diagnosis)
        warn_of_text(diagnosis)
    if is_hidden(diagnosis):
        return
    if diagnosis.abstain_reason == "novel":  # no answer, so no evidence for one
        scrutiny = None
        with st.expander(_("What the model would have compared it to")):
            show_neighbours(model, diagnosis)
            show_map(model, diagnosis)
    else:
        scrutiny = _show_evidence(model, diagnosis)
    show_case_downloads(model, diagnosis, source, scrutiny)
    _show_provenance(diagnosis)


def _show_evidence(model: Model, diagnosis: Diagnosis) -> Scrutiny | None:
    """Everything behind the answer; the heatmaps on view with their test."""
    show_neighbours(model, diagnosis)
    if len(diagnosis.members) > 1:
        _show_members(diagnosis)
    show_map(model, diagnosis)
    return show_heatmaps(model, diagnosis)  # last: testing them takes seconds


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
    elif diagnosis.has_synthetic_mark:
        st.markdown(
            _(":violet-badge[SYNTHETIC] Bears the mark of NeighborDx's drawn images: no patient.")
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
    _show_reliability(model)


def _show_reliability(model: Model) -> None:
    """What the held-out validation images say of these probabilities."""
    known = describe_reliability(model)
    if known is None:
        return
    before = (
        ""
        if known.ece_before is None
        else _(" ({before} before correction)").format(before=_points(known.ece_before))
    )
    st.markdown(
        _("Calibration error {ece}{before}, on {n} validation images.").format(
            ece=f"**{_points(known.ece)}**", before=before, n=known.n
        ),
        help=_(
            "Expected calibration error. Correction by {method}. Measured on images that the "
            "models were not trained on, of the same source: other hospitals' images do worse."
        ).format(method=_methods()[known.method]),
    )
    if not known.is_held_out:
        st.caption(
            _("The correction was fitted on these very images: on new ones the gap is larger.")
        )
    parts = [
        _("accuracy {accuracy} on the most certain {share}").format(
            accuracy=f"**{percent(c.accuracy)}**", share=percent(c.share)
        )
        for c in known.coverage
    ]
    st.markdown(
        _("On validation: {parts}.").format(parts=" · ".join(parts)),
        help=_("Images nearest to 50 % are left unanswered first.")
        if known.answered is None
        else _(
            "Images nearest to 50 % are left unanswered first. With the abstain zone in force, "
            "{share} were answered and {accuracy} of those were right."
        ).format(share=percent(known.answered.share), accuracy=percent(known.answered.accuracy)),
    )


def _points(share: float) -> str:
    return _("{n} points").format(n=f"{share * 100:.1f}")


def _methods() -> dict[str, str]:
    return {
        "temperature": _("temperature scaling"),
        "isotonic": _("isotonic regression"),
        "vote": _("each model's own, then their weighted mean"),
    }


def _show_vote(diagnosis: Diagnosis) -> None:
    votes = [n.class_name for n in diagnosis.neighbours]
    predicted = diagnosis.predicted_class or ""
    leading = max(diagnosis.vote_shares, key=diagnosis.vote_shares.__getitem__, default=predicted)
    if leading != predicted:
        st.markdown(
            _(
                "The vote itself leans to {name}; the probabilities, corrected on held-out images, "
                "lean the other way."
            ).format(name=f"**{plain(class_label(leading))}**")
        )
    n = votes.count(predicted)
    if len(diagnosis.members) > 1 and diagnosis.vote_shares:  # each asked its own nearest
        line = ngettext(
            "{n} of the {k} training images that voted is labelled {name}.",
            "{n} of the {k} training images that voted are labelled {name}.",
            n,
        )
        means = _("Each model lets its nearest images vote. Nearer images count more.")
    else:
        line = ngettext(
            "{n} of the {k} nearest training images is labelled {name}.",
            "{n} of the {k} nearest training images are labelled {name}.",
            n,
        )
        means = _("Nearest means most similar to the model. Nearer images count more.")
    name = f"**{plain(class_label(predicted))}**"
    st.markdown(line.format(n=f"**{n}**", k=diagnosis.k, name=name), help=means)


def _show_novelty(diagnosis: Diagnosis) -> None:
    novelty = diagnosis.novelty
    if novelty is None:
        return
    if novelty.is_beyond_all and not novelty.is_novel:
        st.warning(
            _(
                "**More unusual than any training image**, though within the limit: take the "
                "answer with caution."
            ),
            icon=":material/warning:",
        )
        return
    st.markdown(
        _("More unusual than any training image.")
        if novelty.is_beyond_all
        else _("More unusual than {share} of the training images.").format(
            share=percent(novelty.distance_percentile / 100)
        ),
        help=_(
            "How far this image lies from the training images, compared with how far they lie "
            "from each other. Far beyond all of them, the model refuses to answer."
        ),
    )


def _show_members(diagnosis: Diagnosis) -> None:
    st.markdown("#### " + _("What each model of the ensemble says"))
    p_label = _("Probability of {name}").format(name=class_label(diagnosis.disease_class))
    if diagnosis.members_agree:
        st.markdown(
            _(":material/check: All {n} models lean the same way.").format(n=len(diagnosis.members))
        )
    else:
        st.warning(
            _("**The models disagree.** The weighted mean of their probabilities decides."),
            icon=":material/call_split:",
        )
    rows = [
        {
            "model": m.model_id,
            "leaning": class_label(m.leaning),
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
            "leaning": st.column_config.TextColumn(_("Leans to")),
            "p": st.column_config.TextColumn(p_label),
            "weight": st.column_config.NumberColumn(_("Weight in the vote"), format="%.3f"),
        },
    )


def _show_provenance(diagnosis: Diagnosis) -> None:
    st.caption(
        _(
            "Model {model} · training data {data} · read {when} UTC · NeighborDx {software} · "
            "**Research use, not a diagnosis.**"
        ).format(
            model=plain(diagnosis.model_id),
            data=plain(diagnosis.data_id),
            when=moment(diagnosis.created),
            software=plain(diagnosis.software),
        )
    )
