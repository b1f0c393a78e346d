"""What the pages share: the loaded model, page-state keys, error display."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from core.config import Settings
from core.errors import CoreError, locate
from core.explanations.methods import METHODS
from core.gallery.corrections_db import CurationStore, default_url
from core.models import registry
from core.models.corrected import curate
from core.models.ensemble import Model
from pages._text import _, describe, language

logger = logging.getLogger(__name__)

MODEL_KEY = "model"  # sidebar: the chosen model id; also the query parameter

# Page state of the Diagnose page.
UPLOADS_KEY = "diagnose_uploads"
KEPT_KEY = "diagnose_kept"  # upload id -> upload, those of earlier visits to the page included
LIVE_KEY = "diagnose_live"  # ids of the uploads that the uploader itself shows
SAMPLES_KEY = "diagnose_samples"
CASE_KEY = "diagnose_case"  # id of the case on view
PICKER_KEY = "diagnose_picker"  # prefix, one widget per set of labels
WORKLIST_KEY = "diagnose_worklist"
OPACITY_KEY = "diagnose_opacity"
CONTOUR_KEY = "diagnose_contour"
HEATMAP_CLASS_KEY = "diagnose_heatmap_class"  # prefix, one widget per case
METHOD_KEY = "diagnose_method"  # how the heatmaps are drawn
SCRUTINY_KEY = "diagnose_scrutiny"  # (file, reading, model id, class, method) -> Scrutiny
COMPARE_KEY = "diagnose_compare"  # (file, album place) shown side by side
FRAME_KEY = "diagnose_frame"  # prefix, one widget per case; the next four too
PRESET_KEY = "diagnose_preset"
CENTRE_KEY = "diagnose_centre"
WIDTH_KEY = "diagnose_width"
INVERT_KEY = "diagnose_invert"
TAGS_KEY = "diagnose_tags"  # prefix: patient tags were asked for
OVERLAY_KEY = "diagnose_overlay"  # + file and frame: its graphics are drawn
EXPORT_FAILED_KEY = "diagnose_export_failed"  # case -> why its last download failed
READER_FIRST_KEY = "diagnose_reader_first"
HASHES_KEY = "diagnose_hashes"  # upload id -> sha256
CONTENTS_KEY = "diagnose_contents"  # case id -> what identifies its content
DISPLAY_KEY = "diagnose_display"  # case id -> (frame, window, inverted) asked for
FILES_KEY = "diagnose_files"  # content -> Image without its pixels
READS_KEY = "diagnose_reads"  # (content, frame, class names) -> ReaderRead
SEEN_KEY = "diagnose_seen"  # (content, frame, class names) whose answer was on view
RESULTS_KEY = "diagnose_results"  # (content, display, model id) -> Diagnosis

# Page state of the Fine-tune page.
FT_SOURCE_KEY = "finetune_source"
FT_FOLDER_KEY = "finetune_folder"
FT_ZIP_KEY = "finetune_zip"
FT_STORED_KEY = "finetune_stored"  # upload id -> name of the unpacked data
FT_OPTIONS_KEY = "finetune_options"  # prefix, one set of widgets per data set
FT_NAME_KEY = "finetune_name"
FT_PRESET_KEY = "finetune_preset"
FT_RECIPE_KEY = "finetune_recipe"
FT_ENSEMBLE_KEY = "finetune_ensemble"
FT_OBJECTIVE_KEY = "finetune_objective"
FT_EPOCHS_KEY = "finetune_epochs"  # prefix, one widget per preset and recipe
FT_SEEDS_KEY = "finetune_seeds"
FT_SIZE_KEY = "finetune_size"  # prefix, one widget per preset
FT_MORE_KEY = "finetune_more"
FT_CACHE_KEY = "finetune_cache"
FT_JOB_KEY = "finetune_job"  # the job on view; also the query parameter

# Page state of the Models page.
MODELS_VIEW_KEY = "models_view"
MODELS_ONE_KEY = "models_one"
MODELS_REASON_KEY = "models_reason"
MODELS_LIMIT_KEY = "models_limit"
MODELS_FIRST_KEY = "models_first"
MODELS_SECOND_KEY = "models_second"
MODELS_DATA_KEY = "models_data"
MODELS_SPLIT_KEY = "models_split"
MODELS_MEMBERS_KEY = "models_members"
MODELS_NAME_KEY = "models_name"
MODELS_FILE_KEY = "models_file"
MODELS_IMPORT_NAME_KEY = "models_import_name"

# Page state of the Explore page.
SELECTED_KEY = "explore_selected"  # rows that were lassoed; None: all that pass the filter
OPENED_KEY = "explore_opened"  # row of the image on view
MARKED_KEY = "explore_marked"  # prefix, one checkbox per card
LIST_KEY = "explore_list"  # which list the grid shows
AUTHOR_KEY = "explore_author"
GUESTS_KEY = "explore_guests"  # prefix, one widget per model: evaluations whose images are shown


# Page state of the Evaluate page.
EVALUATION_KEY = "evaluate_shown"  # name of the evaluation on view
PART_KEY = "evaluate_part"
CELL_KEY = "evaluate_cell"  # cell of the confusion matrix whose images are shown


def keep_choice(key: str) -> str:
    """The key of a selectbox, radio or multiselect whose options are shown in translated words.

    The browser knows what is chosen by its words alone (Streamlit 1.67), so a change of language
    would lose it on the run after. Said again in that run, the choice is sent in the new words.
    """
    drawn_in = f"{key}_drawn_in"
    if st.session_state.get(drawn_in, language()) != language() and key in st.session_state:
        st.session_state[key] = st.session_state[key]
    st.session_state[drawn_in] = language()
    return key


def outlive_page(key: str) -> None:
    """Let a widget's value come back with its page: Streamlit drops it when the page is left.

    Call it before the widget is drawn.
    """
    kept = f"{key}_kept"
    if key in st.session_state:
        st.session_state[kept] = st.session_state[key]
    elif kept in st.session_state:
        st.session_state[key] = st.session_state[kept]


@st.cache_resource(max_entries=2, show_spinner=False)
def _load_model(model_id: str, identity: str) -> Model:  # noqa: ARG001 - cache key
    settings = Settings.from_env()
    return registry.load_bundle(settings.checkpoints_dir, model_id, settings=settings)


@st.cache_resource(max_entries=2, show_spinner=False)
def open_curation(url: str) -> CurationStore:
    """The curation database, one connection pool per server."""
    return CurationStore(url)


def curation_store() -> CurationStore:
    """The database that the settings name."""
    settings = Settings.from_env()
    return open_curation(settings.database_url or default_url(settings.checkpoints_dir))


@st.cache_resource(max_entries=4, show_spinner=False)
def _vote_with(
    _model: Model,
    identity: tuple[str, ...],  # noqa: ARG001 - cache key
    versions: tuple[tuple[str, int], ...],
) -> Model:
    store = curation_store()
    return curate(_model, {scope: store.read_state(scope) for scope, _version in versions})


def vote_with_current(model: Model, identity: str) -> Model:
    """The loaded model with the gallery as it is now; nothing but labels changes hands."""
    store = curation_store()
    scopes = sorted({member.bundle.config.data_id for member in model.members})
    versions = tuple((scope, store.read_version(scope)) for scope in scopes)
    return _vote_with(model, (str(store.url), model.model_id, identity), versions)


def list_usable_models() -> list[registry.ModelSummary]:
    """Models that say nothing is wrong with them."""
    models = registry.list_models(Settings.from_env().checkpoints_dir)
    return [m for m in models if m.problem is None]


def require_model() -> Model:
    """The chosen model, loaded once per server; the page ends here with a sentence without one."""
    summary = require_summary()
    with st.spinner(_("Loading the model …")):
        return load_current(summary)


def require_summary() -> registry.ModelSummary:
    """The chosen model's line in the list; the page ends here with a sentence without one."""
    models = {m.model_id: m for m in list_usable_models()}
    active = registry.active_model_id(Settings.from_env().checkpoints_dir)
    summary = models.get(st.session_state.get(MODEL_KEY, "")) or models.get(active or "")
    if summary is None:
        st.info(_("There is no model yet, so images cannot be read."), icon=":material/info:")
        st.markdown(_("Build the demo model on the server (a few minutes), then reload this page:"))
        st.code("make demo", language="bash")  # runs: python -m core demo
        st.caption(_("Without make: {command}").format(command="`python -m core demo`"))
        st.stop()
    return summary


def load_current(summary: registry.ModelSummary) -> Model:
    """A listed model, voting with the newest version of its gallery."""
    identity = summary.identity or summary.weights_sha256
    model = _load_model(summary.model_id, identity)
    return vote_with_current(model, identity)


@contextmanager
def show_errors() -> Iterator[None]:
    """Show a CoreError as it is; log anything else and apologise. Either way the run ends."""
    try:
        yield
    except CoreError as error:
        logger.info("shown to the user: %s", error.code)
        st.error(describe(error), icon=":material/error:")
        st.stop()
    except Exception as failure:  # noqa: BLE001 - shown as one sentence
        logger.error("unexpected error in a page: %s", locate(failure))
        st.error(
            _("Something went wrong on the server. Reload the page; details are in the log."),
            icon=":material/error:",
        )
        st.stop()


def heatmap_method_label(key: str) -> str:
    """The name of a heatmap method, translated where it is a phrase and not a proper name."""
    translated = {"integrated": _("integrated gradients of the vote")}
    return translated.get(key) or (METHODS[key].name if key in METHODS else key)
