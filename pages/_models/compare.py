"""Models page: two models on one test set, image by image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core.assessment.model_comparison import is_evidence
from core.config import Settings
from core.data.uploads import find_data
from core.files.names import write_path
from core.jobs import queue
from core.models import registry
from core.models.registry import ModelSummary
from core.stats.paired_tests import write_p
from pages import _shared as shared
from pages._job import show_short_job
from pages._text import N_, _, class_label, describe_job, percent, plain

_CHANGES = {
    "broken": N_("was correct, is wrong now"),
    "fixed": N_("was wrong, is correct now"),
}
_N_FLIPS = 24
_SPLITS = ("test", "val")


def show_compare(models: Sequence[ModelSummary]) -> None:
    """Choose two models and a data set, measure both, show who flips."""
    settings = Settings.from_env()
    usable = [m.model_id for m in models if m.problem is None]
    places = find_data(settings)
    if len(usable) < 2 or not places:
        st.info(
            _("To compare, you need two models and, on the server, a data set with a test split."),
            icon=":material/info:",
        )
        return
    active = registry.active_model_id(settings.checkpoints_dir)
    columns = st.columns(4, vertical_alignment="bottom")
    first = columns[0].selectbox(
        _("Model in use"),
        usable,
        index=usable.index(active) if active in usable else 0,
        key=shared.MODELS_FIRST_KEY,
    )
    others = [name for name in usable if name != first]
    second = columns[1].selectbox(_("Candidate"), others, key=shared.MODELS_SECOND_KEY)
    place = columns[2].selectbox(_("Data"), list(places), key=shared.MODELS_DATA_KEY)
    split = columns[3].selectbox(
        _("Split"),
        _SPLITS,
        format_func=_split,
        key=shared.keep_choice(shared.MODELS_SPLIT_KEY),
    )
    summary = next(m for m in models if m.model_id == first)
    params = {
        "first": first,
        "second": second,
        "data": write_path(Path(places[place])),
        "split": split,
        "disease_class": summary.disease_class,
    }
    _show_job(params, settings, summary)


def _split(name: str) -> str:
    return {"test": _("test images"), "val": _("validation images")}[name]


def _show_job(params: dict[str, Any], settings: Settings, summary: ModelSummary) -> None:
    job = queue.find_latest(settings.checkpoints_dir, "compare", params)
    if job is not None and job.is_open:
        show_short_job(job)
        return
    st.button(
        _("Compare") if job is None else _("Compare again"),
        type="primary" if job is None else "secondary",
        icon=":material/compare_arrows:",
        on_click=_start,
        args=(params, settings),
        key="models_compare",
    )
    if job is not None and job.status == "failed":
        st.error(
            describe_job(job),
            icon=":material/error:",
        )
    if job is not None and job.status == "done":
        found = queue.read_result(settings.checkpoints_dir, job.job_id)
        folder = queue.folder_of(settings.checkpoints_dir, job.job_id) / "pictures"
        _show_figures(found)
        if not is_evidence(found["split"], found.get("n_known")):
            st.warning(
                _(
                    "The gate ignores this comparison: it needs test images that neither model "
                    "was trained or validated on."
                ),
                icon=":material/front_hand:",
            )
        _show_subgroups(found)
        _show_flips(found, folder, summary)


def _start(params: dict[str, Any], settings: Settings) -> None:
    title = f"{params['first']} / {params['second']}"
    with shared.show_errors():
        queue.start("compare", params, title=title, settings=settings)


def _show_figures(found: dict[str, Any]) -> None:
    test, auc = found["mcnemar"], found["delong"]
    with st.grid(4, min_column_width=220):
        st.metric(_("Images"), found["n"])
        st.metric(
            _("Accuracy, before and after"),
            f"{found['accuracy_first']:.3f} → {found['accuracy_second']:.3f}",
        )
        st.metric(
            _("AUROC, before and after"), f"{auc['auroc_first']:.3f} → {auc['auroc_second']:.3f}"
        )
        st.metric(_("Corrected / newly wrong"), f"{test['n_only_second']} / {test['n_only_first']}")
    st.markdown(
        _(
            "Could the difference be chance? McNemar's test on the answers: p = {p_calls}. "
            "DeLong's test on the AUROCs: p = {p_auroc}. Values under 0.05 argue against chance. "
            "Both tests count patients where some have several images."
        ).format(p_calls=write_p(test["p_value"]), p_auroc=write_p(auc["p_value"]))
    )


def _show_subgroups(found: dict[str, Any]) -> None:
    if not found["subgroups"]:
        st.caption(
            _(
                "No subgroups: the data has no manifest.csv with additional columns (sex, device, "
                "…)."
            )
        )
        return
    harmed = [g for g in found["subgroups"] if g["is_harmed"]]
    if harmed:
        names = ", ".join(f"{g['column']} = {g['value']}" for g in harmed)
        st.warning(
            _("Worse in a subgroup: {names}").format(names=plain(names)),
            icon=":material/warning:",
        )
    st.dataframe(
        pd.DataFrame(found["subgroups"]).drop(columns=["is_harmed"]),
        hide_index=True,
        alt=_("Table of the subgroups"),
        column_config={
            "column": st.column_config.TextColumn(_("Column")),
            "value": st.column_config.TextColumn(_("Value")),
            "n": st.column_config.NumberColumn(_("Images")),
            "accuracy_first": st.column_config.NumberColumn(_("Accuracy before"), format="%.3f"),
            "accuracy_second": st.column_config.NumberColumn(_("Accuracy after"), format="%.3f"),
            "p_value": st.column_config.NumberColumn(_("p value of the change"), format="%.3f"),
        },
    )


def _show_flips(found: dict[str, Any], folder: Path, summary: ModelSummary) -> None:
    flips = [row for row in found["rows"] if row["change"] != "same"]
    st.markdown("#### " + _("Images with a changed answer"))
    if not flips:
        st.caption(_("None: both models give the same answer for every image."))
        return
    (other,) = [c for c in summary.class_names if c != summary.disease_class]
    for start in range(0, min(len(flips), _N_FLIPS), 4):
        for column, row in zip(st.columns(4), flips[start : start + 4], strict=False):
            with column.container(border=True):
                if row["picture"]:
                    st.image(
                        str(folder / row["picture"]),
                        width="stretch",
                        alt=_("Image {name}").format(name=row["key"]),
                    )
                change = _CHANGES[row["change"]]
                truth = summary.disease_class if row["is_disease"] else other
                st.markdown(
                    f"**{_(change)}**  \n"
                    + _("Labelled {name}").format(name=plain(class_label(truth)))
                    + "  \n"
                    + _("Probability of {name}: {before} → {after}").format(
                        name=plain(class_label(summary.disease_class)),
                        before=percent(row["p_first"]),
                        after=percent(row["p_second"]),
                    )
                )
                st.caption(plain(row["key"]))
    if len(flips) > _N_FLIPS:
        st.caption(_("The first {n} are shown.").format(n=_N_FLIPS))
