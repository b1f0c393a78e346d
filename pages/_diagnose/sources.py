"""Diagnose page: the images to read, from uploads, uploaded zips and samples.

A source is a name, what identifies its content, and its bytes on request: originals stay where
Streamlit keeps them and are not copied.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import streamlit as st

from core.config import Settings
from core.errors import CoreError, ImageError
from core.images import decode, phantom, zip_entries
from pages import _shared as shared

# Seeds far above those of any training set -> whether lesions are drawn.
SAMPLES = {900_001: True, 900_002: False, 900_003: True, 900_004: False}

# Name shown, what identifies the content, and its bytes.
Source = tuple[str, str, Callable[[], bytes]]


def list_sources(uploads: list[Any]) -> tuple[dict[str, Source], int]:
    """Case id -> source, within the limit on their number; and how many were over it."""
    sources: dict[str, Source] = {}
    for upload in uploads:
        sources |= _list_upload(upload)
    limit = Settings.from_env().max_files
    kept = dict(list(sources.items())[:limit])
    seeds = st.session_state.get(shared.SAMPLES_KEY) or []
    kept |= {f"sample-{seed}": _describe_sample(seed) for seed in seeds if seed in SAMPLES}
    return kept, max(0, len(sources) - limit)


def _list_upload(upload: Any) -> dict[str, Source]:
    """One upload as one source, or a zip as one per file in it."""
    content = _hash_once(upload)

    def read() -> bytes:
        _check_size(upload)
        data: bytes = upload.getvalue()
        return data

    whole = {upload.file_id: (upload.name, content, read)}
    if not zip_entries.is_zip(upload.getvalue()[:4]):  # getbuffer() would copy the whole file
        return whole
    try:
        _check_size(upload)
        entries = zip_entries.list_entries(upload.getvalue())
    except CoreError as error:
        return {upload.file_id: (upload.name, content, _failing(error))}
    return {
        f"{upload.file_id}/{entry.place}": (
            entry.name,
            f"{content}/{entry.place}",
            _entry_reader(upload, entry.place),
        )
        for entry in entries
    }


def _failing(error: CoreError) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


def _entry_reader(upload: Any, place: int) -> Callable[[], bytes]:
    def read() -> bytes:
        limit_mb = Settings.from_env().max_upload_mb
        return zip_entries.read_entry(upload.getvalue(), place, max_bytes=limit_mb * 2**20)

    return read


def _check_size(upload: Any) -> None:
    limit_mb = Settings.from_env().max_upload_mb
    if upload.size > limit_mb * 2**20:  # the browser's check is no check
        size_mb = f"{upload.size / 2**20:.0f}"
        raise ImageError(
            f"the file has {size_mb} MB; the limit is {limit_mb} MB.",
            code="upload.too_big",
            params={"size_mb": size_mb, "limit_mb": limit_mb},
        )


def _hash_once(upload: Any) -> str:
    hashes: dict[str, str] = st.session_state.setdefault(shared.HASHES_KEY, {})
    if upload.file_id not in hashes:  # once per file, not on every rerun
        hashes[upload.file_id] = hashlib.sha256(upload.getvalue()).hexdigest()
    return hashes[upload.file_id]


def _describe_sample(seed: int) -> Source:
    def read() -> bytes:
        drawn = phantom.draw(seed, is_diseased=SAMPLES[seed])
        return decode.encode_png(drawn.pixels)

    return f"sample-{list(SAMPLES).index(seed) + 1}.png", f"sample-{seed}", read


def sample_truth(case_id: str) -> bool | None:
    """Whether a sample was drawn with lesions; None for an upload."""
    return {f"sample-{seed}": truth for seed, truth in SAMPLES.items()}.get(case_id)
