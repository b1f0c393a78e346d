"""Diagnose page: from uploads and samples to one Diagnosis per case.

Results are remembered per session by (content, frame, model id); originals are not. What is no
longer uploaded or picked is forgotten here too; uploads outlive a visit to another page (Streamlit
drops the uploader's value), as the uploader's own objects.
"""

import dataclasses
import json
import logging
from typing import Any

import streamlit as st

from core.answers.diagnose import diagnose, reject
from core.answers.diagnosis import Diagnosis, ReaderRead
from core.config import Settings
from core.errors import CoreError, locate
from core.images import decode
from core.images.decode import Image
from core.models.ensemble import Model
from pages import _shared as shared
from pages._diagnose.sources import SAMPLES, Source, list_sources
from pages._text import _, ngettext, plain

logger = logging.getLogger(__name__)

Display = tuple[int, tuple[float, float] | None, bool]  # frame, window, inverted
ResultKey = tuple[str, Display, str]  # content (sha256 or sample), how it is shown, model id
ReadKey = tuple[str, int, tuple[str, ...]]  # content, frame, class names that were to choose from

AS_STORED: Display = (0, None, False)
_N_NAMED = 8  # uploads of an earlier visit that are named


def show_intake(model: Model) -> list[Any]:
    """Draw the uploader and the samples; return the uploads."""
    settings = Settings.from_env()
    was_left = shared.UPLOADS_KEY not in st.session_state
    left, right = st.columns([1, 1], gap="medium")
    with left:
        st.file_uploader(
            _(
                "Images: PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM, or a ZIP of them (at most {n}"
                " files of {mb} MB each)"
            ).format(n=settings.max_files, mb=settings.max_upload_mb),
            accept_multiple_files=True,
            max_upload_size=settings.max_upload_mb,
            key=shared.UPLOADS_KEY,
            help=_(
                "Files are recognised by content, not by name; DICOM files without an extension "
                "are read too. Images stay on this server and are discarded when you remove them"
                " or close this browser tab."
            ),
        )
        # Streamlit has no translation for the word on its own button.
        word = json.dumps(_("Choose files"), ensure_ascii=False)
        st.html(f"<style>.st-key-{shared.UPLOADS_KEY} {{ --upload-word: {word}; }}</style>")
        uploads = list(st.session_state[shared.UPLOADS_KEY] or ())  # the call returns copies
        kept = _keep_uploads(uploads, was_left=was_left, limit=settings.max_files)
        _show_kept(kept)
    with right:
        _show_samples(model)
    return list(kept.values())


def _keep_uploads(uploads: list[Any], *, was_left: bool, limit: int) -> dict[str, Any]:
    """Id -> upload, with those that the uploader lost because its page was left.

    What a person removed from the uploader while it was on view is forgotten, and of earlier
    visits all but the newest ``limit``.
    """
    state = st.session_state
    before: dict[str, Any] = state.get(shared.KEPT_KEY, {})
    shown = () if was_left else state.get(shared.LIVE_KEY, ())
    if was_left:  # another visit may bring as many again, and no more
        before = dict(list(before.items())[-limit:])
    now = {upload.file_id: upload for upload in uploads}
    kept = {k: v for k, v in before.items() if k not in shown or k in now} | now
    state[shared.KEPT_KEY], state[shared.LIVE_KEY] = kept, tuple(now)
    return kept


def _show_kept(kept: dict[str, Any]) -> None:
    """The uploads that the uploader does not list, and the way to be rid of them."""
    lost = [upload.name for k, upload in kept.items() if k not in st.session_state[shared.LIVE_KEY]]
    if not lost:
        return
    names = ", ".join(plain(name) for name in lost[:_N_NAMED]) + (
        " …" if len(lost) > _N_NAMED else ""
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(_("Kept from your last visit to this page: {names}").format(names=names))
        st.button(
            _("Remove all"),
            key="diagnose_remove_kept",
            on_click=_remove_kept,
            type="tertiary",
            icon=":material/delete:",
        )


def _remove_kept() -> None:
    live = st.session_state[shared.LIVE_KEY]
    kept = st.session_state[shared.KEPT_KEY]
    st.session_state[shared.KEPT_KEY] = {k: v for k, v in kept.items() if k in live}


def _warn_of_surplus(n_over: int) -> None:
    if n_over <= 0:
        return
    st.warning(
        ngettext(
            "{n} file over the limit was left out. Remove some files to make room.",
            "{n} files over the limit were left out. Remove some files to make room.",
            n_over,
        ).format(n=n_over),
        icon=":material/warning:",
    )


def _show_samples(model: Model) -> None:
    if not model.is_synthetic:
        st.session_state.pop(shared.SAMPLES_KEY, None)
        st.caption(_("Sample images are only available for the demo model."))
        return
    shared.outlive_page(shared.SAMPLES_KEY)
    st.pills(
        _("No image at hand? Try a sample:"),
        list(SAMPLES),
        selection_mode="multi",
        format_func=_name_sample,
        key=shared.SAMPLES_KEY,
        help=_("Synthetic images drawn for this demo; none was used for training."),
        wrap=True,
    )
    st.markdown(_(":violet-badge[SYNTHETIC] Computer-generated images, no patients."))


def _name_sample(seed: int) -> str:
    return _("Sample {n}").format(n=list(SAMPLES).index(seed) + 1)


def collect_cases(model: Model, uploads: list[Any]) -> dict[str, Diagnosis]:
    """Case id -> Diagnosis for all that is uploaded or picked; reads what is not known yet."""
    sources, n_over = list_sources(uploads)
    _warn_of_surplus(n_over)
    shown: dict[str, Display] = st.session_state.setdefault(shared.DISPLAY_KEY, {})
    keys = {
        case_id: (content, shown.get(case_id, AS_STORED), f"{model.model_id} {model.data_id}")
        for case_id, (_name, content, _read) in sources.items()
    }
    results = _forget_removed(sources, keys)
    _read_missing(model, sources, keys, results)
    reads: dict[ReadKey, ReaderRead] = st.session_state[shared.READS_KEY]
    return {
        case_id: dataclasses.replace(
            results[keys[case_id]], file=name, reader=reads.get(_find_read_key(model, case_id))
        )
        for case_id, (name, _content, _read) in sources.items()
    }


def describe_file(case_id: str) -> Image | None:
    """What is known of the file behind a case, without its pixels; None if it was not read."""
    content = st.session_state.get(shared.CONTENTS_KEY, {}).get(case_id, "")
    known: Image | None = st.session_state.get(shared.FILES_KEY, {}).get(content)
    return known


def _find_read_key(model: Model, case_id: str) -> ReadKey:
    """What a read is of: another frame, or other classes to choose from, ask for another."""
    content = st.session_state[shared.CONTENTS_KEY][case_id]
    frame = st.session_state[shared.DISPLAY_KEY].get(case_id, AS_STORED)[0]
    return content, frame, tuple(model.class_names)


def commit_read(model: Model, case_id: str, read: ReaderRead) -> None:
    """Keep what the reader said of a case; the first word stands."""
    st.session_state[shared.READS_KEY].setdefault(_find_read_key(model, case_id), read)


def note_seen(model: Model, case_ids: list[str]) -> None:
    """Remember whose answer is on view, for as long as the session: taking a file away and
    bringing it again does not make a reader forget it.
    """
    seen: set[ReadKey] = st.session_state.setdefault(shared.SEEN_KEY, set())
    seen.update(_find_read_key(model, case_id) for case_id in case_ids)


def was_seen(model: Model, case_id: str) -> bool:
    """Whether an answer on this case was ever on view."""
    return _find_read_key(model, case_id) in st.session_state.get(shared.SEEN_KEY, ())


def _forget_removed(
    sources: dict[str, Source], keys: dict[str, ResultKey]
) -> dict[ResultKey, Diagnosis]:
    """Drop from the session what belongs to no case any more; return the results that are left.

    The first of new cases comes on view.
    """
    contents = {content for content, _shown, _model in keys.values()}
    uploads = {case_id.partition("/")[0] for case_id in keys}
    state = st.session_state
    known = state.get(shared.CONTENTS_KEY, {})
    if new := [case_id for case_id in sources if case_id not in known]:
        state[shared.CASE_KEY] = new[0]
    state[shared.CONTENTS_KEY] = {case_id: source[1] for case_id, source in sources.items()}
    for name, kept in (
        (shared.RESULTS_KEY, set(keys.values())),
        (shared.HASHES_KEY, uploads),
        (shared.DISPLAY_KEY, set(keys)),
        (shared.FILES_KEY, contents),
    ):
        state[name] = {k: v for k, v in state.get(name, {}).items() if k in kept}
    reads = state.get(shared.READS_KEY, {})
    state[shared.READS_KEY] = {key: read for key, read in reads.items() if key[0] in contents}
    if not state[shared.RESULTS_KEY]:
        state[shared.SCRUTINY_KEY] = {}
    results: dict[ResultKey, Diagnosis] = state[shared.RESULTS_KEY]
    return results


def _read_missing(
    model: Model,
    sources: dict[str, Source],
    keys: dict[str, ResultKey],
    results: dict[ResultKey, Diagnosis],
) -> None:
    todo = [case_id for case_id in sources if keys[case_id] not in results]
    if not todo:
        return
    bar = st.progress(0.0)
    for done, case_id in enumerate(todo):
        name = sources[case_id][0]
        text = _("Reading image {i} of {n}: {name}").format(
            i=done + 1, n=len(todo), name=plain(name)
        )
        bar.progress(done / len(todo), text=text)
        if keys[case_id] not in results:  # the same file may be there twice
            results[keys[case_id]] = _read_one(model, sources[case_id], key=keys[case_id])
    bar.empty()


def _read_one(model: Model, source: Source, *, key: ResultKey) -> Diagnosis:
    name, content, read = source
    frame, window, invert = key[1]
    try:
        image = decode.decode(read(), name=name, frame=frame, window=window, invert=invert)
        # one pixel: the rest of the record says what can be set about the file
        stub = dataclasses.replace(image, pixels=image.pixels[:1, :1].copy(), overlay=None)
        st.session_state[shared.FILES_KEY][content] = stub
        return diagnose(model, [image])[0]
    except CoreError as error:
        return reject(name, error, model=model)
    except Exception as failure:  # noqa: BLE001 - one bad file must not take the good results with it
        logger.error("one image could not be read: %s", locate(failure))
        error = CoreError(
            "something went wrong with this file; the server log has the details.",
            code="unexpected",
        )
        return reject(name, error, model=model)
