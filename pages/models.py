"""The Models page: list, compare, activate, roll back, export."""

import streamlit as st

from core.config import Settings
from core.models import registry
from pages import _shared as shared
from pages._models.compare import show_compare
from pages._models.files import show_ensemble, show_files
from pages._models.list import show_foreign, show_list, show_one
from pages._text import _

_VIEWS = ("use", "compare", "ensemble", "files")


def main() -> None:
    """The page."""
    with shared.show_errors():
        directory = Settings.from_env().checkpoints_dir
        models = registry.list_models(directory)
        st.subheader(_("Models"), divider="gray")
        if not models:
            st.info(
                _("There is no model yet. Train one on the Fine-tune page."),
                icon=":material/info:",
            )
            show_foreign()
            show_files(models)
            return
        show_list(models)
        show_foreign()
        view = st.segmented_control(
            _("Section"),
            list(_VIEWS),
            default="use",
            required=True,
            format_func={
                "use": _("Model card"),
                "compare": _("Compare two"),
                "ensemble": _("Build an ensemble"),
                "files": _("Export and import"),
            }.get,
            key=shared.MODELS_VIEW_KEY,
            label_visibility="collapsed",
        )
        if view == "compare":
            show_compare(models)
        elif view == "ensemble":
            show_ensemble(models)
        elif view == "files":
            show_files(models)
        else:
            show_one(models)


main()
