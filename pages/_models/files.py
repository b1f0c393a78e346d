"""Models page: build an ensemble from ticked models; export and import."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from core.config import EnsembleConfig, Settings
from core.errors import CoreError
from core.models import exchange
from core.models.ensemble import build_ensemble
from core.models.registry import ModelSummary
from pages import _shared as shared
from pages._text import N_, _, describe, percent, plain

_CORRECTIONS = {
    "added": N_("The corrections of its gallery came with it (version {here})."),
    "same": N_("The corrections of its gallery came with it (version {here})."),
    "newer": N_(
        "The model came with version {there} of the corrections of its gallery and answers here "
        "with version {here}, which continues it."
    ),
    "differs": N_(
        "The corrections of its gallery in the file (version {there}) differ from those here "
        "(version {here}) and were not taken: the model answers with the ones here."
    ),
}
_MIME = "application/octet-stream"


def show_ensemble(models: Sequence[ModelSummary]) -> None:
    """Tick two or more models; the gate on weak members is core's."""
    directory = Settings.from_env().checkpoints_dir
    single = [m for m in models if m.problem is None and not m.members]
    gate = EnsembleConfig().min_val_accuracy
    st.caption(
        _(
            "The members vote together, each weighted by its validation accuracy. A model below "
            "the minimum validation accuracy of {gate} is refused: it would add noise."
        ).format(gate=percent(gate))
    )
    ticked = [
        model.model_id
        for model in single
        if st.checkbox(
            _("{name}, validation accuracy {accuracy}").format(
                name=plain(model.model_id), accuracy=f"{model.val_accuracy or 0:.3f}"
            ),
            key=f"{shared.MODELS_MEMBERS_KEY}_{model.model_id}",
        )
    ]
    name = st.text_input(_("Name of the ensemble"), key=shared.MODELS_NAME_KEY, max_chars=60)
    if st.button(
        _("Build the ensemble"),
        type="primary",
        icon=":material/group_work:",
        disabled=len(ticked) < 2 or not name.strip(),
        key="models_build",
    ):
        try:
            build_ensemble(directory, name.strip(), ticked, min_val_accuracy=gate)
        except CoreError as error:
            st.error(describe(error), icon=":material/block:")
        else:
            st.rerun()


def show_files(models: Sequence[ModelSummary]) -> None:
    """Download a model as one file, upload one."""
    left, right = st.columns(2, gap="large")
    with left:
        _show_export([m.model_id for m in models if m.problem is None])
    with right:
        _show_import()


def _show_export(ids: list[str]) -> None:
    st.markdown("#### " + _("Export"))
    if not ids:
        st.caption(_("There is no model yet."))
        return
    chosen = st.selectbox(_("Model to export"), ids, key=f"{shared.MODELS_FILE_KEY}_export")
    st.caption(
        _(
            "One file with parameters, training embeddings and thumbnails of the training "
            "images, and the corrections of its gallery with their authors and notes. It contains "
            "no program code. Note that the thumbnails may show patients."
        )
    )

    def write() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = exchange.export_model(
                Settings.from_env().checkpoints_dir, chosen, Path(folder) / "model"
            )
            return path.read_bytes()

    st.download_button(
        _("Download"),
        write,
        f"{chosen}{exchange.SUFFIX}",
        _MIME,
        on_click="ignore",
        icon=":material/download:",
        key="models_download",
    )


def _show_import() -> None:
    settings = Settings.from_env()
    st.markdown("#### " + _("Import"))
    upload = st.file_uploader(
        _("A file exported here or elsewhere. All of it is checked before it is imported."),
        max_upload_size=settings.max_zip_mb,
        key=shared.MODELS_FILE_KEY,
    )
    name = st.text_input(
        _("Import under another name (optional)"), key=shared.MODELS_IMPORT_NAME_KEY, max_chars=60
    )
    if upload is None or not st.button(
        _("Import"), type="primary", icon=":material/upload:", key="models_import"
    ):
        return
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, st.spinner(_("Checking the file")):
        path = Path(folder) / "upload"
        path.write_bytes(upload.getvalue())
        try:
            added = exchange.import_model(
                settings.checkpoints_dir, path, settings=settings, name=name.strip()
            )
        except CoreError as error:
            st.error(describe(error), icon=":material/block:")
            return
    st.success(_("{name} was added.").format(name=plain(added.name)), icon=":material/check:")
    for told in added.corrections:
        text = _CORRECTIONS[told.outcome]
        there, here = told.n_versions, told.n_here
        st.caption(_(text).format(data=plain(told.data_id), there=there, here=here))
