"""The page router: page configuration, banner, sidebar, guards, navigation."""

from pathlib import Path

import streamlit as st
from PIL import Image

from core.config import Settings, describe_software
from core.files.read_only import is_read_only
from core.models import registry
from pages._shared import MODEL_KEY, show_errors
from pages._text import (
    LANGUAGE_KEY,
    LANGUAGES,
    _,
    class_label,
    default_language,
    find_language,
    percent,
    plain,
)

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"


def _choose_language() -> None:
    # The widget writes the language's name into the address; a link may also give its code.
    asked = find_language(st.query_params.get(LANGUAGE_KEY, ""))
    if asked and LANGUAGE_KEY not in st.session_state:
        st.session_state[LANGUAGE_KEY] = asked
    st.sidebar.segmented_control(
        "Language / 语言",
        list(LANGUAGES),
        default=default_language(),
        required=True,
        format_func=LANGUAGES.get,
        key=LANGUAGE_KEY,
        bind="query-params",
        label_visibility="collapsed",
        width="stretch",
    )


def _choose_model() -> None:
    directory = Settings.from_env().checkpoints_dir
    models = registry.list_models(directory)
    usable = {m.model_id: m for m in models if m.problem is None}
    if usable:
        active = registry.active_model_id(directory)
        if st.session_state.get(MODEL_KEY) not in usable:
            st.session_state.pop(MODEL_KEY, None)
        ids = list(usable)
        chosen = ids[0]
        if len(ids) > 1:
            chosen = st.sidebar.selectbox(
                _("Model"), ids, index=ids.index(active) if active in ids else 0, key=MODEL_KEY
            )
        _show_model(usable[chosen], with_name=len(ids) == 1)
    if is_read_only(directory):
        st.sidebar.caption(
            _(
                "The folder of the models is read-only: nothing can be trained, activated, "
                "imported or deleted here, and evaluations are not kept."
            )
        )
    broken = [m for m in models if m.problem is not None]
    if broken:
        with st.sidebar.expander(_("Models that cannot be loaded"), icon=":material/warning:"):
            for model in broken:
                st.markdown(f"**{plain(model.model_id)}**: {plain(model.problem or '')}")


def _show_model(model: registry.ModelSummary, *, with_name: bool) -> None:
    lines = [
        _("Classes: {classes}").format(
            classes=" / ".join(plain(class_label(c)) for c in model.class_names)
        ),
        _("Training images it compares with: {n}").format(n=model.n_gallery),
    ]
    if with_name:
        lines.insert(0, _("Model: {model}").format(model=f"**{plain(model.model_id)}**"))
    if model.val_accuracy is not None:
        lines.append(_("Validation accuracy: {share}").format(share=percent(model.val_accuracy)))
    st.sidebar.markdown("  \n".join(lines))


def main() -> None:
    """Set the page up and run the one that was asked for."""
    st.set_page_config(
        page_title="NeighborDx",
        page_icon=Image.open(ASSETS / "icon.png"),
        layout="wide",
        initial_sidebar_state=240,
    )
    st.html(ASSETS / "style.css")
    st.logo(ASSETS / "logo.svg", size="large")
    _choose_language()
    with st.container(key="banner"):
        st.markdown(_("**Research use, not a diagnosis.** Every answer comes with its evidence."))
    with show_errors():
        _choose_model()
        st.sidebar.markdown(
            ":small[" + _("Version {version}").format(version=plain(describe_software())) + "]"
        )
        screens = {
            "diagnose": (_("Diagnose"), "radiology"),
            "explore": (_("Explore"), "scatter_plot"),
            "evaluate": (_("Evaluate"), "analytics"),
            "finetune": (_("Fine-tune"), "model_training"),
            "models": (_("Models"), "deployed_code"),
        }
        page = st.navigation(
            [
                st.Page(
                    ROOT / "pages" / f"{name}.py",
                    title=title,
                    icon=f":material/{icon}:",
                    url_path=name,
                    default=name == "diagnose",
                )
                for name, (title, icon) in screens.items()
            ]
        )
        page.run()


main()
