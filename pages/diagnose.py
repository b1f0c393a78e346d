"""The Diagnose page: upload images, get answers with their evidence."""

import streamlit as st

from core.models.ensemble import Model
from pages import _shared as shared
from pages._diagnose.case import show_case
from pages._diagnose.export import show_downloads
from pages._diagnose.intake import collect_cases, note_seen, show_intake
from pages._diagnose.reader import has_answer_on_view, is_hidden, show_switch
from pages._diagnose.sources import list_sources
from pages._diagnose.worklist import choose_case, show_case_picker, show_refusals, show_worklist
from pages._text import _


def main() -> None:
    """The page."""
    model: Model = shared.require_model()
    show_switch()  # above all that draws an answer
    uploads = show_intake(model)
    cases = collect_cases(model, uploads)
    if not cases:
        st.info(
            _(
                "Upload one or more images. Each answer comes with the training images behind it, "
                "heatmaps and a map."
            ),
            icon=":material/upload_file:",
        )
        return
    note_seen(model, [k for k, d in cases.items() if has_answer_on_view(d)])
    choose_case(list(cases))
    if len(cases) > 1:
        show_worklist(cases)
        show_case_picker(cases)
        show_refusals(cases)
    case_id = st.session_state[shared.CASE_KEY]
    show_case(model, case_id, cases[case_id], list_sources(uploads)[0][case_id])
    ready = [d for d in cases.values() if not is_hidden(d)]
    show_downloads(ready, n_hidden=len(cases) - len(ready))


main()
