"""The Explore page: the training images as the model sees them; find and correct errors."""

import numpy as np
import streamlit as st

from pages import _shared as shared
from pages._explore import data
from pages._explore.case import show_case
from pages._explore.filters import choose_guests, show_filters
from pages._explore.grid import choose_list, collect_rows, show_grid
from pages._explore.history import show_history, show_state
from pages._explore.map import show_map
from pages._text import _, plain


def _explain_columns(status: str, root: str) -> None:
    if status == "moved":
        st.caption(
            _(
                "The training data is no longer at {root}, so its additional columns cannot be "
                "shown."
            ).format(root=plain(root))
        )


def main() -> None:
    """The page."""
    model = shared.require_model()
    tables = data.require_tables(model)
    if model.is_synthetic:
        st.markdown(_(":violet-badge[SYNTHETIC] Computer-generated images, no patients."))
    if not any(member.bundle.has_vote for member in model.members):
        st.info(
            _("This model is a plain classifier: no images vote, so corrections do not change it.")
        )
    show_state(model)
    guests = choose_guests(model)
    wide, tables = data.widen(model, tables, guests)
    data.forget_other_rows(wide)
    table, status = data.read_table(wide, tables)
    passes = show_filters(wide, table)
    _explain_columns(status, model.lead.config.data_root)
    chosen = st.session_state.get(shared.SELECTED_KEY)
    highlighted = np.empty(0, np.int64) if chosen is None else chosen[chosen < len(table)]
    with st.container(key="explore-sides"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        show_map(model, wide, tables, table, passes, highlighted=highlighted)
    with right:
        show_case(wide, tables, table)
    kind = choose_list()
    if kind == "history":
        show_history(model)
    else:
        found = collect_rows(wide, tables, table, passes, kind)
        show_grid(wide, tables, table, found, kind=kind)


main()
