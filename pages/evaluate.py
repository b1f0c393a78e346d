"""The Evaluate page: a model's performance on a split, and whether its heatmaps are faithful."""

import streamlit as st

from core.assessment import store
from core.assessment.record import Evaluation
from core.assessment.store import Summary
from core.config import Settings
from pages import _shared as shared
from pages._evaluate import answers, curves, rivals, studies
from pages._evaluate.report import show_report
from pages._evaluate.run import choose_evaluation, show_new_evaluation
from pages._text import _, moment, plain


@st.cache_resource(max_entries=4, show_spinner=False)
def _load(model_id: str, name: str, created: str) -> Evaluation:  # noqa: ARG001 - cache key
    return store.load_evaluation(Settings.from_env().checkpoints_dir, model_id, name)


def _show(summary: Summary) -> None:
    evaluation = _load(summary.model_id, summary.name, summary.created)
    token = f"{summary.model_id}/{summary.name}/{summary.created}"
    with st.spinner(_("Computing the intervals …")):
        figures = answers.compute_figures(evaluation, token)
    if evaluation.is_synthetic:
        st.markdown(_(":violet-badge[SYNTHETIC] Computer-generated images, no patients."))
    names = {
        "overview": _("Overview"),
        "point": _("Operating point"),
        "honesty": _("Probabilities"),
        "models": _("Models and K"),
        "groups": _("Subgroups"),
        "robust": _("Robustness"),
        "maps": _("Heatmaps"),
        "external": _("External test"),
        "report": _("Report"),
    }
    chosen = st.segmented_control(
        _("Part"),
        list(names),
        default="overview",
        format_func=names.get,
        required=True,
        key=shared.PART_KEY,
        label_visibility="collapsed",
    )
    if chosen == "overview":
        answers.show_headlines(evaluation, figures)
        answers.show_confusion(evaluation)
    elif chosen == "point":
        curves.show_operating_point(evaluation)
    elif chosen == "honesty":
        curves.show_reliability(evaluation)
    elif chosen == "models":
        answers.show_members(evaluation)
        curves.show_k(evaluation)
        st.markdown("#### " + _("Other models on the same images"))
        rivals.show_rivals(evaluation)
        st.markdown("#### " + _("Ablation study of the report's systems"))
        rivals.show_ablations()
    elif chosen == "groups":
        answers.show_subgroups(evaluation)
    elif chosen == "robust":
        studies.show_robustness(evaluation)
    elif chosen == "maps":
        studies.show_heatmap_study(evaluation)
    elif chosen == "external":
        studies.show_external(evaluation)
    else:
        show_report(evaluation)
    st.caption(
        _(
            "Model {model} · data {data} ({data_id}) · measured {when} UTC · "
            "**Research use, not a diagnosis.**"
        ).format(
            model=plain(evaluation.model_id),
            data=plain(evaluation.data_name),
            data_id=plain(str(evaluation.result["data"])),
            when=moment(evaluation.created),
        )
    )


def main() -> None:
    """The page."""
    model = shared.require_summary()
    st.subheader(_("Performance of {model}").format(model=plain(model.model_id)), divider="gray")
    summary = choose_evaluation(model)
    show_new_evaluation(model, is_open=summary is None)
    if summary is not None:
        _show(summary)


main()
