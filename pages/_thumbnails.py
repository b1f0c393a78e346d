"""Thumbnails of training images, in cards and at the pointer on maps.

Plotly cannot show a picture in a hover label, and pictures must not be sent with the figure: the
script asks for the one under the pointer. A figure takes part when its points carry the gallery
row as ``customdata``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from starlette.requests import Request
from starlette.responses import Response

from core.models.thumbnail_links import Albums

if TYPE_CHECKING:  # app.py imports this module before torch
    from core.models.ensemble import Model

ADDRESS = "thumbnails"
_SCRIPT = Path(__file__).parents[1] / "assets" / "thumbnails.js"
_HEADERS = {"cache-control": "private, max-age=3600"}
_PNG = b"\x89PNG"


@st.cache_resource(show_spinner=False)
def _albums() -> Albums:
    return Albums()


def find_prefix() -> str:
    """What comes before every address of this server (``server.baseUrlPath``): "" or "/nbx"."""
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}" if base else ""


def _make_address(token: str) -> str:
    """The address of a model's pictures, up to the row.

    Without a prefix it is relative, for a web server in front that adds one of its own; with one it
    is not, because the first page's own address may lack the slash at the end.
    """
    prefix = find_prefix()
    return f"{prefix}/{ADDRESS}/{token}/" if prefix else f"{ADDRESS}/{token}/"


def show_on_hover(model: "Model", *, key: str) -> None:
    """Let the map drawn under ``key`` show a model's pictures at the pointer."""
    token = _albums().publish(model)
    st.html(
        f'<span data-thumbnails-of="{key}" data-address="{_make_address(token)}"></span>'
        f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script>",
        unsafe_allow_javascript=True,
    )


def show_thumbnail(model: "Model", row: int, *, alt: str) -> None:
    """The kept picture of an album place as wide as its column: its own file, not made anew."""
    data = model.encoded_thumbnail(row)
    kind = "PNG" if data.startswith(_PNG) else "JPEG"
    st.image(data, width="stretch", output_format=kind, alt=alt)


def answer(request: Request) -> Response:
    """One picture; 404 for a token that this server did not give, or a row that is not there."""
    row = int(request.path_params["row"])
    data = _albums().find(request.path_params["token"], row)
    if data is None:
        return Response(status_code=404)
    kind = "image/png" if data.startswith(_PNG) else "image/jpeg"
    return Response(data, media_type=kind, headers=_HEADERS)
