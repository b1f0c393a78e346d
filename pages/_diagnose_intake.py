"""Diagnose page, first half: files and samples in, one Diagnosis per case out.

Results are remembered per session by (content, frame, model id); originals are not. What is no
longer uploaded or picked is forgotten here too.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

import streamlit as st

from core import image_io, inference, phantom
from core.config import Settings
from core.diagnosis import Diagnosis
from core.ensemble import Model
from core.errors import CoreError, ImageError
from core.image_io import Image
from pages import _shared as shared
from pages._text import _, ngettext, plain

logger = logging.getLogger(__name__)

# Seeds far above those of any training set -> whether lesions are drawn.
SAMPLES = {900_001: True, 900_002: False, 900_003: True, 900_004: False}

# Name shown, what identifies the content, and how to read one frame of it.
Source = tuple[str, str, Callable[[int], Image]]
ResultKey = tuple[str, int, str]  # content (sha256 or sample), frame, model id


def show_intake(model: Model) -> list[Any]:
    """Draw the uploader and the samples; return the uploads within the limit on their number."""
    settings = Settings.from_env()
    left, right = st.columns([1, 1], gap="medium")
    with left:
        uploads = st.file_uploader(
            _(
                "Images to read: PNG, JPEG, TIFF or DICOM. At most {n} files of {mb} MB each."
            ).format(n=settings.max_files, mb=settings.max_upload_mb),
            accept_multiple_files=True,
            max_upload_size=settings.max_upload_mb,
            key=shared.UPLOADS_KEY,
            help=_(
                "The content decides, not the file name: DICOM files without a suffix are read "
                "too. Images stay on this server and are forgotten when you close the page."
            ),
        )
        # Streamlit has no translation for the word on its own button.
        word = json.dumps(_("Choose files"), ensure_ascii=False)
        st.html(f"<style>.st-key-{shared.UPLOADS_KEY} {{ --upload-word: {word}; }}</style>")
    with right:
        _show_samples(model)
    n_over = len(uploads) - settings.max_files
    if n_over > 0:
        st.warning(
            ngettext(
                "{n} file over the limit was left out. Remove some files to make room.",
                "{n} files over the limit were left out. Remove some files to make room.",
                n_over,
            ).format(n=n_over),
            icon=":material/warning:",
        )
    return list(uploads[: settings.max_files])


def _show_samples(model: Model) -> None:
    if not model.is_synthetic:
        st.session_state.pop(shared.SAMPLES_KEY, None)
        st.caption(_("Sample images exist only for the demo model."))
        return
    st.pills(
        _("No image at hand? Try a sample"),
        list(SAMPLES),
        selection_mode="multi",
        format_func=_name_sample,
        key=shared.SAMPLES_KEY,
        help=_("Drawn by the computer for this demo and used in no training."),
        wrap=True,
    )
    st.markdown(_(":violet-badge[SYNTHETIC] Drawn images, no patients."))


def _name_sample(seed: int) -> str:
    return _("Sample {n}").format(n=list(SAMPLES).index(seed) + 1)


def sample_truth(case_id: str) -> bool | None:
    """Whether a sample was drawn with lesions; None for an upload."""
    return {f"sample-{seed}": truth for seed, truth in SAMPLES.items()}.get(case_id)


def collect_cases(model: Model, uploads: list[Any]) -> dict[str, Diagnosis]:
    """Case id -> Diagnosis for all that is uploaded or picked; reads what is not known yet."""
    sources = {upload.file_id: _source_of_upload(upload) for upload in uploads}
    seeds = st.session_state.get(shared.SAMPLES_KEY) or []
    sources |= {f"sample-{seed}": _source_of_sample(seed) for seed in seeds if seed in SAMPLES}
    frames: dict[str, int] = st.session_state.setdefault(shared.FRAMES_KEY, {})
    keys = {
        case_id: (content, frames.get(case_id, 0), model.model_id)
        for case_id, (_name, content, _read) in sources.items()
    }
    results = _forget_removed(keys)
    _read_missing(model, sources, keys, results)
    return {
        case_id: dataclasses.replace(results[keys[case_id]], file=name)
        for case_id, (name, _content, _read) in sources.items()
    }


def n_frames_of(case_id: str) -> int:
    """Frames in the file behind a case; 1 when unknown."""
    content = st.session_state.get(shared.HASHES_KEY, {}).get(case_id, "")
    return int(st.session_state.get(shared.N_FRAMES_KEY, {}).get(content, 1))


def _source_of_upload(upload: Any) -> Source:
    hashes: dict[str, str] = st.session_state.setdefault(shared.HASHES_KEY, {})
    if upload.file_id not in hashes:  # once per file, not on every rerun
        hashes[upload.file_id] = hashlib.sha256(upload.getbuffer()).hexdigest()

    def read(frame: int) -> Image:
        limit_mb = Settings.from_env().max_upload_mb
        if upload.size > limit_mb * 2**20:  # the browser's check is no check
            size_mb = f"{upload.size / 2**20:.0f}"
            raise ImageError(
                f"the file has {size_mb} MB; the limit is {limit_mb} MB.",
                code="upload.too_big",
                params={"size_mb": size_mb, "limit_mb": limit_mb},
            )
        return image_io.decode(upload.getvalue(), name=upload.name, frame=frame)

    return upload.name, hashes[upload.file_id], read


def _source_of_sample(seed: int) -> Source:
    name = f"sample-{list(SAMPLES).index(seed) + 1}.png"

    def read(_frame: int) -> Image:
        drawn = phantom.draw(seed, is_diseased=SAMPLES[seed])
        return image_io.decode(image_io.encode_png(drawn.pixels), name=name)

    return name, f"sample-{seed}", read


def _forget_removed(keys: dict[str, ResultKey]) -> dict[ResultKey, Diagnosis]:
    """Drop from the session what belongs to no case any more; return the results that are left."""
    contents = {content for content, _frame, _model in keys.values()}
    state = st.session_state
    for name, kept in (
        (shared.RESULTS_KEY, set(keys.values())),
        (shared.HASHES_KEY, set(keys)),
        (shared.FRAMES_KEY, set(keys)),
        (shared.N_FRAMES_KEY, contents),
    ):
        state[name] = {k: v for k, v in state.get(name, {}).items() if k in kept}
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
    if st.session_state.get(shared.CASE_KEY) not in todo:  # a new file comes on view
        st.session_state[shared.CASE_KEY] = todo[0]


def _read_one(model: Model, source: Source, *, key: ResultKey) -> Diagnosis:
    name, content, read = source
    try:
        image = read(key[1])
        st.session_state[shared.N_FRAMES_KEY][content] = image.n_frames
        return inference.diagnose(model, [image])[0]
    except CoreError as error:
        return inference.reject(name, error, model=model)
    except Exception:  # one bad file must not take the good results with it
        logger.exception("unexpected error while one image was read")
        error = CoreError(
            "something went wrong with this file; the server log has the details.",
            code="unexpected",
        )
        return inference.reject(name, error, model=model)
