"""Background jobs on a page: the list, one job's progress, cancel, log and outcome.

Polls the state on disk in a fragment, and stops polling when nothing is open.
"""

import re

import streamlit as st

from core.config import Settings
from core.jobs import queue
from core.jobs.kinds import lane_of
from core.jobs.metrics import read_log, read_metrics
from pages import _shared as shared
from pages._charts import jobs as charts
from pages._text import N_, _, class_label, describe_job, moment, percent, plain

_POLL_S = 2.0
_N_SHOWN = 12
_KIND_WORDS = {
    "train": N_("training"),
    "evaluate": N_("evaluation"),
    "compare": N_("comparison"),
    "audit": N_("data check"),
    "trial": N_("measurement"),
}
STATUS = {
    "queued": N_(":blue-badge[:material/hourglass_empty: waiting]"),
    "running": N_(":violet-badge[:material/play_arrow: running]"),
    "done": N_(":gray-badge[:material/check: done]"),
    "failed": N_(":red-badge[:material/error: failed]"),
    "cancelled": N_(":gray-badge[:material/block: cancelled]"),
}
_STAGES = {
    "running the trunks": N_("Reading the images"),
    "training": N_("Training"),
    "choosing K, fitting the map, writing the model": N_("Finishing: choosing K, drawing the map"),
    "loading the backbones": N_("Loading the pretrained weights"),
    "running the trunks on a few images": N_("Reading a few images"),
    "training a few steps": N_("Training a few steps"),
    "embedding a few images": N_("Finishing"),
    "drawing a map": N_("Drawing the map"),
}


def describe_message(message: str) -> str:
    """A job's progress sentence in the session's language: stage, count, time left."""
    stage, _colon, rest = message.partition(": ")
    words = [_(_STAGES[stage])] if stage in _STAGES else []
    count = re.search(r"(\d+) of (\d+)", message)
    if count:
        words.append(_("{i} of {n}").format(i=count[1], n=count[2]))
    left = re.search(r"about (\d+) (min|s) left", rest)
    if left:
        unit = _("about {n} min left in this stage") if left[2] == "min" else None
        words.append((unit or _("about {n} s left in this stage")).format(n=left[1]))
    return ", ".join(words)


def show_jobs() -> None:
    """The list of model jobs, then the one on view; polls while anything is open."""
    found = [j for j in _list() if lane_of(j.kind) == "model"]
    if not found:
        return
    is_open = any(job.is_open for job in found)
    st.fragment(_show_all, run_every=_POLL_S if is_open else None)(is_open)


def _list() -> list[queue.Job]:
    return queue.list_jobs(Settings.from_env().checkpoints_dir)


def _show_all(was_open: bool) -> None:
    found = [j for j in _list() if lane_of(j.kind) == "model"]
    if was_open and not any(job.is_open for job in found):
        st.rerun()  # once more, without polling
    st.subheader(_("Jobs"), divider="gray")
    st.caption(
        _(
            "Jobs run one at a time and continue when you close this page; everyone who opens it"
            " sees the same list."
        )
    )
    for job in found[:_N_SHOWN]:
        _show_row(job)
    chosen = st.session_state.get(shared.FT_JOB_KEY)
    on_view = next((j for j in found if j.job_id == chosen), None) or next(
        (j for j in found if j.kind == "train" and j.status == "running"), None
    )
    if on_view is not None and on_view.kind == "train":
        _show_run(on_view)


def _show_row(job: queue.Job) -> None:
    with st.container(border=True, key=f"job-{job.job_id}"):
        left, middle, right = st.columns([3, 4, 3], vertical_alignment="center")
        left.markdown(f"**{plain(job.title)}** · {_kind_label(job.kind)} {_(STATUS[job.status])}")
        left.caption(_("Requested {time} (UTC)").format(time=moment(job.created)))
        if job.status == "running":
            words = describe_message(job.message) or _("Starting: loading libraries and data …")
            middle.progress(min(1.0, job.progress), text=words)
        elif job.status == "failed":
            middle.markdown(describe_job(job))
        elif job.status == "done":
            middle.caption(_("Ended {time} (UTC)").format(time=moment(job.ended)))
        with right.container(horizontal=True, horizontal_alignment="right"):
            if job.kind == "train":
                st.button(
                    _("View"), key=f"look-{job.job_id}", icon=":material/monitoring:",
                    on_click=_look, args=(job.job_id,),
                )  # fmt: skip
            if job.is_open:
                show_cancel(job, _("Cancel"), key=f"cancel-{job.job_id}")
            if job.can_resume and st.button(
                _("Resume"), key=f"resume-{job.job_id}", icon=":material/resume:"
            ):
                with shared.show_errors():
                    settings = Settings.from_env()
                    queue.resume(settings.checkpoints_dir, job.job_id, settings=settings)
                st.rerun()
            if not job.is_open and st.button(
                _("Remove"), key=f"remove-{job.job_id}", icon=":material/delete:"
            ):
                st.dialog(_("Please confirm"))(_confirm_removal)(job)


def show_cancel(job: queue.Job, words: str, *, key: str) -> None:
    """The button that ends an open job; once pressed it says so until the job has ended."""
    pressed = f"cancelling-{job.job_id}-{job.queued}"  # resumed, it can be cancelled again
    is_pressed = st.session_state.get(pressed, False)
    st.button(
        _("Cancelling …") if is_pressed else words,
        key=key,
        icon=":material/stop:",
        disabled=is_pressed,
        on_click=_cancel,
        args=(job.job_id, pressed),
    )


def _cancel(job_id: str, pressed: str) -> None:
    with shared.show_errors():
        queue.cancel(Settings.from_env().checkpoints_dir, job_id)
    st.session_state[pressed] = True


def _look(job_id: str) -> None:
    st.session_state[shared.FT_JOB_KEY] = job_id


def _confirm_removal(job: queue.Job) -> None:
    st.markdown(_("Remove **{name}** from the list?").format(name=plain(job.title)))
    if job.status != "done":
        st.markdown(_("The progress so far is deleted and cannot be resumed."))
    else:
        st.markdown(_("Its log and curves are deleted. The model itself is kept."))
    if st.button(_("Remove"), type="primary", key="remove-yes"):
        with shared.show_errors():
            queue.delete(Settings.from_env().checkpoints_dir, job.job_id)
        st.rerun()


def _show_run(job: queue.Job) -> None:
    folder = queue.folder_of(Settings.from_env().checkpoints_dir, job.job_id)
    records = read_metrics(folder)
    st.markdown("#### " + _("Training of {name}").format(name=plain(job.title)))
    if records:
        if member := records[-1].get("member"):
            words = _("Now training member {name} of the ensemble.")
            if not job.is_open:
                words = _("These curves are from the last member, {name}.")
            st.caption(words.format(name=plain(member)))
        _show_figures(records)
        _show_curves(records)
    elif job.is_open:
        st.info(_("The curves start once all images have been read."), icon=":material/timer:")
    with st.expander(_("End of the log")):
        st.code("\n".join(read_log(folder)) or "–", language=None)
        st.caption(
            _("Files for TensorBoard: {folder}").format(folder=f"`{folder / 'tensorboard'}`")
        )


def _show_figures(records: list[dict]) -> None:  # type: ignore[type-arg]
    last = records[-1]
    validation = next((r["validation"] for r in reversed(records) if r.get("validation")), None)
    columns = st.columns(5)
    columns[0].metric(_("Step"), f"{last['step']:.0f} / {last['n_steps']:.0f}")  # narrow
    columns[1].metric(_("Loss"), f"{last['loss']:.3f}")
    columns[2].metric(
        _("Active triplets"),
        percent(last["active"]),
        help=_("Share of images in the last batch whose hardest triplet still contributes to the"
               " loss. At 0 % there is nothing left to learn."),
    )  # fmt: skip
    columns[3].metric(
        _("Embedding spread"),
        f"{last['spread']:.3f}",
        help=_("0: all embeddings coincide (collapse). 1: spread over the whole sphere."),
    )
    if validation:
        columns[4].metric(_("Validation AUROC"), f"{validation['auroc']:.3f}")


def _show_curves(records: list[dict]) -> None:  # type: ignore[type-arg]
    words = {"accuracy": _("accuracy"), "auroc": _("AUROC")}
    validation = next((r["validation"] for r in reversed(records) if r.get("validation")), None)
    tiles = [
        (_("Loss"), charts.build_lines(records, {"loss": _("loss")}, x_title=_("step"))),
        (
            _("Learning rates"),
            charts.build_lines(
                records,
                {"adapter_lr": _("adapter"), "tail_lr": _("backbone tail")},
                x_title=_("step"),
                is_log=True,
            ),
        ),
        (
            _("Active triplets and embedding spread"),
            charts.build_lines(
                records,
                {"active": _("active triplets"), "spread": _("spread")},
                x_title=_("step"),
            ),
        ),
    ]
    if validation:
        tiles.append(
            (
                _("Validation during training"),
                charts.build_validation(records, x_title=_("step"), **words),
            )
        )
        if validation["k_scores"]:
            tiles.append(
                (
                    _("Validation by number of neighbours K"),
                    charts.build_k_curve(validation["k_scores"], **words),
                )
            )
        tiles.append(
            (
                _("Validation images as the model sees them now"),
                charts.build_growing_map(
                    validation["map"],
                    disease=class_label("disease"),
                    other=class_label("normal"),
                ),
            )
        )
    for start in range(0, len(tiles), 3):
        for column, (title, figure) in zip(st.columns(3), tiles[start : start + 3], strict=False):
            with column:
                st.markdown(f"**{title}**")
                st.plotly_chart(
                    figure, key=f"curve-{title}", config={"displayModeBar": False}, alt=title
                )
    if validation:
        st.caption(
            _(
                "Measured on at most 192 images with one view each, so less precise than the "
                "figures of the finished model. The map shows two principal directions and "
                "distorts distances."
            )
        )


def show_short_job(job: queue.Job) -> None:
    """A data check or measurement that is on its way; reruns the page when it has ended."""
    st.fragment(_poll_short, run_every=1.0)(job.job_id)


def _poll_short(job_id: str) -> None:
    directory = Settings.from_env().checkpoints_dir
    job = queue.find(directory, job_id)
    if not job.is_open:
        st.rerun()
    waiting = _("Queued") if job.status == "queued" else _("In progress")
    st.progress(
        min(1.0, job.progress),
        text=f"{_kind_label(job.kind)}: {describe_message(job.message) or waiting}",
    )
    show_cancel(job, _("Cancel"), key=f"cancel-{job_id}")


def _kind_label(kind: str) -> str:
    return _(_KIND_WORDS.get(kind, kind))
