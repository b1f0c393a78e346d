"""Evaluate page: choose an evaluation, or start a new one."""

import re

import streamlit as st

from core.assessment import store
from core.assessment.assess import PARTS
from core.assessment.store import Summary
from core.config import Settings
from core.data.options import DataOptions
from core.data.plan import SPLITS, make_plan
from core.errors import CoreError
from core.files.names import read_path, write_path
from core.jobs import queue
from core.jobs.kinds import lane_of
from core.jobs.queue import Job
from core.models.registry import ModelSummary
from pages import _shared as shared
from pages._job import describe_message, show_cancel
from pages._text import _, describe, describe_job, moment, ngettext, percent


def choose_evaluation(model: ModelSummary) -> Summary | None:
    """The kept evaluation on view; None where the model has none."""
    kept = store.list_evaluations(Settings.from_env().checkpoints_dir, model.model_id)
    if not kept:
        st.info(
            _("This model has not been evaluated yet. Choose images below and start."),
            icon=":material/analytics:",
        )
        return None
    by_name = {summary.name: summary for summary in kept}
    name = st.selectbox(
        _("Evaluation"),
        list(by_name),
        format_func=lambda key: _describe(by_name[key]),
        key=shared.keep_choice(shared.EVALUATION_KEY),
    )
    chosen = by_name[name]
    if not chosen.is_current:
        st.warning(
            _(
                "These figures are from an earlier version of this model or its gallery. Run the"
                " evaluation again."
            ),
            icon=":material/history:",
        )
    return chosen


def _describe(summary: Summary) -> str:
    words = ngettext(
        "{data}, {split}: {n} image, accuracy {accuracy}, created {when} UTC",
        "{data}, {split}: {n} images, accuracy {accuracy}, created {when} UTC",
        summary.n,
    )
    return words.format(
        data=summary.data_name,
        split=split_label(summary.split),
        n=summary.n,
        accuracy=percent(summary.accuracy),
        when=moment(summary.created),
    )


def split_label(split: str) -> str:
    """A split as shown."""
    return {"train": _("training"), "val": _("validation"), "test": _("test")}.get(split, split)


def damage_label(kind: str) -> str:
    """A kind of damage as shown."""
    return {
        "blur": _("blur"),
        "noise": _("noise"),
        "brightness": _("darkening"),
        "jpeg": _("JPEG compression"),
        "rotation": _("rotation"),
    }.get(kind, _("unchanged"))


def part_label(part: str) -> str:
    """A longer study as shown."""
    return {
        "robustness": _("Robustness: blur, noise, darkening, JPEG, rotation"),
        "explanations": _("Heatmaps: are they faithful?"),
    }.get(part, part)


def data_root(model_id: str) -> str:
    """Where the model's own training data lay; empty where it cannot be told."""
    directory = Settings.from_env().checkpoints_dir
    return store.find_training_data(directory, model_id).root


def show_new_evaluation(model: ModelSummary, *, is_open: bool) -> None:
    """Choose images and studies, start a job, and watch it."""
    with st.expander(_("New evaluation"), expanded=is_open, icon=":material/add_chart:"):
        left, right = st.columns([3, 2], gap="large")
        with left:
            data = st.text_input(
                _("Folder or file with the images on this server"),
                value=data_root(model.model_id),
                key="evaluate_data",
                help=_(
                    "Same folder layout as training data; see the README. Images are only "
                    "read, never changed."
                ),
            )
        with right:
            st.session_state.setdefault("evaluate_split", "test")
            split = st.selectbox(
                _("Split"),
                SPLITS,
                format_func=split_label,
                key=shared.keep_choice("evaluate_split"),
            )
        _choose_disease(data)
        parts = [
            part for part in PARTS if st.checkbox(part_label(part), key=f"evaluate_part_{part}")
        ]
        st.caption(
            _("The additional studies take minutes. The images must not be training images.")
        )
        if st.button(
            _("Start the evaluation"),
            type="primary",
            icon=":material/play_arrow:",
            key="evaluate_start",
            disabled=not data.strip(),
        ):
            _start(model, data.strip(), split, parts)
    if any(job.is_open for job in _list_own_jobs(model.model_id)[:1]):
        _watch(model.model_id)
    else:
        _show_last_failure(model.model_id)


def _choose_disease(data: str) -> None:
    """Ask which class is the disease, once the start of an evaluation had to ask."""
    state = st.session_state
    if state.get("evaluate_asked_of") != data:
        state["evaluate_asked_of"] = data
        state.pop("evaluate_classes", None)
        state.pop("evaluate_disease", None)
    if names := state.get("evaluate_classes"):
        st.warning(
            _("The names of the classes do not say for sure which one is the disease."),
            icon=":material/help:",
        )
        st.selectbox(
            _("Which class is the disease?"), sorted(names), index=None, key="evaluate_disease"
        )


def _start(model: ModelSummary, data: str, split: str, parts: list[str]) -> None:
    """Queue a job; a folder that is not there is refused at once."""
    settings = Settings.from_env()
    try:
        root = read_path(data).expanduser().resolve()
        training_data = store.find_training_data(settings.checkpoints_dir, model.model_id)
        said = st.session_state.get("evaluate_disease")
        options = DataOptions(disease_class=said) if said else None
        plan = make_plan(root, options, model=training_data)
        if plan.questions and len(plan.class_names) == 2:
            st.session_state["evaluate_classes"] = plan.class_names
            st.rerun()
        plan.require_answers()
        queue.start(
            "evaluate",
            {
                "model": model.model_id,
                "data": write_path(root),
                "split": split,
                "parts": parts,
                "options": options.to_json() if options else {},
            },
            title=model.model_id,  # in no language: everybody reads it, the kind is said beside it
            settings=settings,
        )
    except CoreError as error:
        st.error(describe(error), icon=":material/error:")


def _list_own_jobs(model_id: str) -> list[Job]:
    """This model's evaluation jobs, newest first."""
    return [
        job
        for job in queue.list_jobs(Settings.from_env().checkpoints_dir)
        if job.kind == "evaluate" and job.params.get("model") == model_id
    ]


@st.fragment(run_every=1.5)
def _watch(model_id: str) -> None:
    """Progress of the running evaluation; the whole page comes again when it ends."""
    job = next(iter(_list_own_jobs(model_id)), None)
    if job is None or not job.is_open:
        st.rerun()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(min(job.progress, 1.0), text=say_progress(job))
        show_cancel(job, _("Stop"), key="evaluate_stop")


def say_progress(job: Job) -> str:
    """What an open evaluation does, or waits for."""
    listed = queue.list_jobs(Settings.from_env().checkpoints_dir)
    others = [j for j in listed if lane_of(j.kind) == lane_of(job.kind)]
    if job.status == "queued" and any(other.status == "running" for other in others):
        return _("Waiting for other work to finish …")
    damage = re.fullmatch(r"(\w+), level (\d+)", job.message)
    text = describe_message(job.message)
    if damage:
        text = _("{damage}, level {n}").format(damage=damage_label(damage[1]), n=damage[2])
    if job.status == "queued" or not text:
        return _("Starting: loading libraries and data …")
    return _("Evaluating: {text}").format(text=text)


def _show_last_failure(model_id: str) -> None:
    job = next(iter(_list_own_jobs(model_id)), None)
    if job is not None and job.status == "failed":
        reason = describe_job(job)
        st.error(
            _("The last evaluation failed: {reason}").format(reason=reason),
            icon=":material/error:",
        )
