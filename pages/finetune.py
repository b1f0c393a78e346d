"""The Fine-tune page: choose and check data, choose a recipe, train, watch."""

import streamlit as st

from core.config import Settings
from pages import _shared as shared
from pages._finetune.data import choose_data, show_audit
from pages._finetune.plan import choose_plan
from pages._finetune.recipe import choose_recipe, show_estimate, show_start
from pages._job import show_jobs
from pages._text import _


def main() -> None:
    """The page."""
    with shared.show_errors():
        show_jobs()
        st.subheader(_("Train a new model"), divider="gray")
        data = choose_data(Settings.from_env())
        if data is None:
            return
        plan = choose_plan(data)
        if plan is None:
            return
        audit = show_audit(data, plan)
        if audit is None:
            return
        params = choose_recipe(plan, audit)
        if params is None:
            return
        show_estimate(params)
        show_start(params, audit)


main()
