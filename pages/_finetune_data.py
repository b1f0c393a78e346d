"""Fine-tune page, first part: which data, and what the check of it found, with pictures."""

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core import jobs
from core.config import Settings
from core.data_zip import find_data, store
from core.errors import CoreError
from pages import _shared as shared
from pages._jobs_view import show_short_job
from pages._text import N_, _, class_label, describe, describe_error, ngettext, plain

_FINDINGS = {
    "too_few": N_("Class “{class_name}” has {n} readable images in {split}; {needed} are needed."),
    "few": N_("Class “{class_name}” has only {n} images in {split}: figures will be rough."),
    "unbalanced": N_("The classes of {split} are unbalanced: {a} against {b}."),
    "no_test": N_("There is no test split: the model will have validation figures only."),
    "exact_labels": N_(
        "{n} groups of identical images carry different labels: at most one of them is right."
    ),
    "near_labels": N_(
        "{n} groups of nearly identical images carry different labels: look at them."
    ),
    "exact_leak": N_(
        "{n} groups of identical images lie in more than one split: figures will be too good."
    ),
    "near_leak": N_(
        "{n} groups of nearly identical images lie in more than one split: figures will be too "
        "good."
    ),
    "exact_repeats": N_("{n} groups of identical images."),
    "near_repeats": N_("{n} groups of nearly identical images."),
    "unreadable": N_("{n} files cannot be read and will be left out, first {key}: {reason}"),
    "patients": N_(
        "{n} patient names occur in more than one split, first {name}: if they are the same "
        "patients, figures will be too good."
    ),
}
_N_GROUPS = 6
_SOURCES = ("folder", "zip")


def choose_data(settings: Settings) -> Path | None:
    """A folder of the server, or an uploaded zip."""
    source = st.segmented_control(
        _("Where are the images?"),
        _SOURCES,
        default="folder",
        format_func={"folder": _("On the server"), "zip": _("Upload a zip")}.get,
        key=shared.FT_SOURCE_KEY,
    )
    if source == "zip":
        _take_zip(settings)
    places = find_data(settings)
    if not places:
        st.info(
            _(
                "No data is on the server yet. Put a folder with one subfolder per class into "
                "{folder}, or upload a zip."
            ).format(folder=f"`{settings.data_dir}`"),
            icon=":material/folder:",
        )
        return None
    if st.session_state.get(shared.FT_FOLDER_KEY) not in places:
        st.session_state.pop(shared.FT_FOLDER_KEY, None)
    chosen = st.selectbox(
        _("Data"),
        list(places),
        index=None,
        placeholder=_("Choose a data set"),
        key=shared.FT_FOLDER_KEY,
        help=_("One subfolder per class, or train, val and test with one subfolder per class."),
    )
    return places[chosen] if chosen else None


def _take_zip(settings: Settings) -> None:
    upload = st.file_uploader(
        _(
            "A zip with one folder per class. At most {mb} MB. It is unpacked and kept on this "
            "server, because a model shows its training images as evidence."
        ).format(mb=settings.max_zip_mb),
        max_upload_size=settings.max_zip_mb,
        key=shared.FT_ZIP_KEY,
    )
    known: dict[str, str] = st.session_state.setdefault(shared.FT_STORED_KEY, {})
    if upload is None or upload.file_id in known:
        return
    if upload.size > settings.max_zip_mb * 2**20:
        st.error(_("The zip is larger than {mb} MB.").format(mb=settings.max_zip_mb))
        return
    try:
        with st.spinner(_("Unpacking")):
            folder = store(upload, name=upload.name, checkpoints_dir=settings.checkpoints_dir)
    except CoreError as error:
        st.error(plain(describe(error)), icon=":material/block:")
        return
    places = find_data(settings)
    name = next(label for label, path in places.items() if path == folder)
    known[upload.file_id] = name
    st.session_state[shared.FT_FOLDER_KEY] = name
    st.success(_("Unpacked as {name}").format(name=plain(name)), icon=":material/folder_zip:")


def audit_params(data: Path, disease_class: str | None) -> dict[str, Any]:
    """What identifies one check of one data set."""
    return {"data": str(data.resolve()), "disease_class": disease_class}


def show_audit(data: Path) -> dict[str, Any] | None:
    """The check of the data: ask for it, wait for it, show it. None until it is there."""
    settings = Settings.from_env()
    disease_class = st.session_state.get(f"{shared.FT_CLASS_KEY}_{data}")
    params = audit_params(data, disease_class)
    job = jobs.find_latest(settings.checkpoints_dir, "audit", params)
    if job is not None and job.is_open:
        show_short_job(job)
        return None
    if job is None or job.status != "done":
        if job is not None and job.status == "failed":
            _show_failure(data, job)
        st.button(
            _("Check the data"),
            type="primary",
            icon=":material/fact_check:",
            on_click=_start_audit,
            args=(params, data.name, settings),
            key="finetune_check",
            help=_("Reads every image once and compares all of them. Changes nothing."),
        )
        return None
    result = jobs.read_result(settings.checkpoints_dir, job.job_id)
    _show_result(result, jobs.folder_of(settings.checkpoints_dir, job.job_id) / "pictures")
    st.button(
        _("Check again"),
        icon=":material/refresh:",
        on_click=_start_audit,
        args=(params, data.name, settings),
        key="finetune_recheck",
    )
    return result


def _start_audit(params: dict[str, Any], title: str, settings: Settings) -> None:
    with shared.show_errors():
        jobs.start("audit", params, title=title, settings=settings)


def _show_failure(data: Path, job: jobs.Job) -> None:
    st.error(
        _("Training cannot start with this data.")
        + " "
        + plain(describe_error(job.error_code, job.error, job.error_params)),
        icon=":material/block:",
    )
    if job.error_code == "data.disease_class":
        names = [name.strip() for name in str(job.error_params.get("found", "")).split(",")]
        st.selectbox(
            _("Which class is the disease?"),
            names,
            index=None,
            key=f"{shared.FT_CLASS_KEY}_{data}",
        )


def _show_result(result: dict[str, Any], folder: Path) -> None:
    report = result["report"]
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.markdown("#### " + _("Images by class"))
        table = pd.DataFrame(report["counts"]).rename(index=class_label)
        st.dataframe(table, alt=_("Number of images by class and split"), width="stretch")
        st.markdown(
            _("Disease is **{name}**.").format(name=plain(class_label(result["disease_class"])))
        )
    with right:
        st.markdown("#### " + _("What the images look like"))
        for name, keys in result["samples"].items():
            st.caption(plain(class_label(name)))
            _show_pictures(keys, result, folder, with_label=False)
    blockers = [f for f in result["findings"] if f["severity"] == "blocker"]
    if blockers:
        st.error(
            _("**Training cannot start.**")
            + "\n\n"
            + "\n".join(f"- {_say(finding)}" for finding in blockers),
            icon=":material/block:",
        )
    elif not result["findings"]:
        st.success(_("Nothing suspicious was found."), icon=":material/check:")
    for finding in result["findings"]:
        if finding["severity"] == "warning":
            _show_warning(finding, result, folder)


def _say(finding: dict[str, Any]) -> str:
    params = {key: plain(str(value)) for key, value in finding["params"].items()}
    template = _FINDINGS[finding["code"]]
    return _(template).format(**params)


def _show_warning(finding: dict[str, Any], result: dict[str, Any], folder: Path) -> None:
    groups = [g for g in finding["keys"] if any(key in result["pictures"] for key in g)]
    if not groups:
        st.warning(_say(finding), icon=":material/warning:")
        return
    with st.expander(_say(finding), icon=":material/warning:"):
        for group in groups[:_N_GROUPS]:
            _show_pictures(group, result, folder, with_label=True)
        n_more = len(finding["keys"]) - _N_GROUPS
        if n_more > 0:
            st.caption(ngettext("{n} more group", "{n} more groups", n_more).format(n=n_more))


def _show_pictures(
    keys: list[str], result: dict[str, Any], folder: Path, *, with_label: bool
) -> None:
    shown = [key for key in keys if key in result["pictures"]][:6]
    for column, key in zip(st.columns(6), shown, strict=False):
        with column:
            st.image(
                str(folder / result["pictures"][key]),
                width="stretch",
                alt=_("Image {name}").format(name=key),
            )
            if with_label:
                st.caption(f"{plain(result['labels'][key])}  \n{plain(key.rsplit('/', 1)[-1])}")
