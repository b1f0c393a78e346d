"""Explore: the training images as the model sees them; find what is wrong, and mend it."""

import numpy as np
import streamlit as st

from pages import _explore_data as data
from pages import _shared as shared
from pages._explore_case import show_case
from pages._explore_grid import choose_list, collect_rows, show_grid
from pages._explore_history import show_history, show_state
from pages._explore_map import show_filters, show_map
from pages._text import _, plain


def _explain_columns(status: str, root: str) -> None:
    if status == "moved":
        st.caption(
            _(
                "The training data are no longer at {root}: their other columns cannot be shown."
            ).format(root=plain(root))
        )


def main() -> None:
    """The page."""
    model = shared.require_model()
    data.forget_other_model(model)
    tables = data.require_tables(model)
    table, status = data.read_table(model, tables)
    if model.is_synthetic:
        st.markdown(_(":violet-badge[SYNTHETIC] Drawn images, no patients."))
    if not any(member.bundle.has_vote for member in model.members):
        st.info(
            _("This model is a plain classifier: nobody votes, so corrections do not change it.")
        )
    show_state(model)
    passes = show_filters(model, table)
    _explain_columns(status, model.lead.config.data_root)
    chosen = st.session_state.get(shared.SELECTED_KEY)
    highlighted = np.empty(0, np.int64) if chosen is None else chosen[chosen < len(table)]
    left, right = st.columns([3, 2], gap="large")
    with left:
        show_map(model, tables, table, passes, highlighted=highlighted)
    with right:
        show_case(model, tables, table)
    kind = choose_list()
    if kind == "history":
        show_history(model)
    else:
        found = collect_rows(model, tables, table, passes, kind)
        show_grid(model, tables, table, found, kind=kind)


main()
