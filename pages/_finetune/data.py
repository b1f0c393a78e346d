"""Fine-tune page: choose the data and check it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core.config import Settings
from core.data.options import DataOptions
from core.data.plan import Plan
from core.data.readiness import Finding, combine, read_finding
from core.data.uploads import find_data, store, uploads_dir
from core.errors import CoreError
from core.files.names import show_name, write_path
from core.jobs import queue
from core.jobs.uploads import delete_upload, list_models_of, list_users
from pages import _shared as shared
from pages._finetune.findings import SPLITS, show_findings, show_pictures
from pages._finetune.plan import forget_plans
from pages._job import show_short_job
from pages._text import _, class_label, describe, describe_job, plain

SEEDS = tuple(range(10))  # of the validation split and the adapter; the check looks at all
_SOURCES = ("folder", "zip")


def choose_data(settings: Settings) -> Path | None:
    """A folder of the server, or an uploaded zip."""
    source = st.segmented_control(
        _("Where are the images?"),
        _SOURCES,
        default="folder",
        format_func={"folder": _("On the server"), "zip": _("Upload a ZIP")}.get,
        key=shared.FT_SOURCE_KEY,
    )
    if source == "zip":
        _take_zip(settings)
    places = find_data(settings)
    if not places:
        st.info(
            _(
                "There is no data on the server yet. Put a folder with one subfolder per class "
                "into {folder}, or upload a ZIP."
            ).format(folder=f"`{settings.data_dir}`"),
            icon=":material/folder:",
        )
        return None
    if st.session_state.get(shared.FT_FOLDER_KEY) not in places:
        st.session_state.pop(shared.FT_FOLDER_KEY, None)
    uploads = uploads_dir(settings.checkpoints_dir)
    before = places.get(st.session_state.get(shared.FT_FOLDER_KEY, ""))
    is_upload = before is not None and before.is_relative_to(uploads)
    columns = st.columns([3, 1] if is_upload else 1, vertical_alignment="bottom")
    chosen = columns[0].selectbox(
        _("Data"),
        list(places),
        index=None,
        placeholder=_("Choose a data set"),
        key=shared.FT_FOLDER_KEY,
        help=_(
            "One subfolder per class, or train, val and test folders with one subfolder per "
            "class each."
        ),
    )
    if chosen is None:
        return None
    if is_upload and columns[1].button(
        _("Delete this upload"), icon=":material/delete:", key="finetune_delete_data"
    ):
        st.dialog(_("Please confirm"))(_confirm_deletion)(chosen, settings)
    return places[chosen]


def _confirm_deletion(name: str, settings: Settings) -> None:
    directory = settings.checkpoints_dir
    users = list_users(directory, name)
    if any(job.is_open for job in users):
        titles = ", ".join(job.title for job in users if job.is_open)
        st.error(
            _(
                "Jobs are using these images: {titles}. Wait for them to finish, or cancel them "
                "first."
            ).format(titles=plain(titles)),
            icon=":material/block:",
        )
        return
    st.markdown(_("Permanently delete the uploaded images of **{name}**?").format(name=plain(name)))
    models = list_models_of(directory, name)
    if models:
        st.markdown(
            _(
                "Models trained on them: {models}. They still work and keep thumbnails of the "
                "training images, but can no longer show them at full size."
            ).format(models=plain(", ".join(models)))
        )
    st.markdown(_("Checks, measurements and comparisons based on them are deleted too."))
    if st.button(_("Delete permanently"), type="primary", key="finetune_delete_yes"):
        with shared.show_errors():
            delete_upload(directory, name)
        st.rerun()


def _take_zip(settings: Settings) -> None:
    upload = st.file_uploader(
        _(
            "A ZIP with one folder per class, at most {mb} MB. It is unpacked and kept on this "
            "server, because the model shows its training images as evidence."
        ).format(mb=settings.max_zip_mb),
        max_upload_size=settings.max_zip_mb,
        key=shared.FT_ZIP_KEY,
    )
    known: dict[str, str] = st.session_state.setdefault(shared.FT_STORED_KEY, {})
    if upload is None or upload.file_id in known:
        return
    if upload.size > settings.max_zip_mb * 2**20:
        st.error(_("The ZIP is larger than {mb} MB.").format(mb=settings.max_zip_mb))
        return
    try:
        with st.spinner(_("Unpacking")):
            folder = store(upload, name=upload.name, checkpoints_dir=settings.checkpoints_dir)
    except CoreError as error:
        st.error(describe(error), icon=":material/block:")
        return
    places = find_data(settings)
    name = next(label for label, path in places.items() if path == folder)
    known[upload.file_id] = name
    st.session_state[shared.FT_FOLDER_KEY] = name
    st.success(_("Unpacked as {name}").format(name=plain(name)), icon=":material/folder_zip:")


def audit_params(data: Path, options: DataOptions) -> dict[str, Any]:
    """What identifies one check of one data set."""
    return {"data": write_path(data), "options": options.to_json(), "seeds": list(SEEDS)}


def chosen_seeds() -> list[int]:
    """The seeds that the recipe below asks for."""
    return sorted(st.session_state.get(shared.FT_SEEDS_KEY) or [SEEDS[0]])


def read_findings(result: dict[str, Any], seeds: Sequence[int]) -> tuple[Finding, ...]:
    """What a check found for the validation splits of these seeds."""
    found = result["findings"]
    return combine([read_finding(raw) for raw in found[str(seed)]] for seed in seeds)


def show_audit(data: Path, plan: Plan) -> dict[str, Any] | None:
    """The check of the data: ask for it, wait for it, show it. None until it is there."""
    settings = Settings.from_env()
    params = audit_params(data, plan.options)
    job = queue.find_latest(settings.checkpoints_dir, "audit", params)
    if job is not None and job.is_open:
        show_short_job(job)
        return None
    if job is None or job.status != "done":
        if job is not None and job.status == "failed":
            _show_failure(job)
        st.button(
            _("Check the data"),
            type="primary",
            icon=":material/fact_check:",
            on_click=_start_audit,
            args=(params, show_name(data.name), settings),
            disabled=bool(plan.questions),
            key="finetune_check",
            help=_("Reads all images once and compares them. Nothing is changed."),
        )
        return None
    result = queue.read_result(settings.checkpoints_dir, job.job_id)
    _show_result(result, queue.folder_of(settings.checkpoints_dir, job.job_id) / "pictures")
    st.button(
        _("Check again"),
        icon=":material/refresh:",
        on_click=_start_audit,
        args=(params, show_name(data.name), settings),
        key="finetune_recheck",
    )
    return result


def _start_audit(params: dict[str, Any], title: str, settings: Settings) -> None:
    forget_plans()
    with shared.show_errors():
        queue.start("audit", params, title=title, settings=settings)


def _show_failure(job: queue.Job) -> None:
    st.error(
        _("Training cannot start with this data.") + " " + describe_job(job),
        icon=":material/block:",
    )


def _show_result(result: dict[str, Any], folder: Path) -> None:
    seeds = chosen_seeds()
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("#### " + _("Images by class"))
        counts = result["counts"]
        by_split = counts[str(seeds[0])]
        table = pd.DataFrame({_(w): by_split[s] for s, w in SPLITS.items() if s in by_split})
        st.table(
            table.rename(index=lambda name: plain(class_label(name))).T,
            alt=_("Number of images by class and split"),
        )
        if len({str(counts[str(seed)]) for seed in seeds}) > 1:
            st.caption(
                _("For seed {seed}; each seed holds out different images for validation.").format(
                    seed=seeds[0]
                )
            )
        st.markdown(
            _("Disease class: **{name}**").format(name=plain(class_label(result["disease_class"])))
        )
    with right:
        st.markdown("#### " + _("Sample images by class"))
        for name, keys in result["samples"].items():
            st.caption(plain(class_label(name)))
            show_pictures(keys, result, folder, with_label=False)
    show_findings(read_findings(result, seeds), result, folder)
