"""Thumbnails on hover: found only under the address that a page was given."""

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from core.models.ensemble import Ensemble
from core.models.thumbnail_links import Albums
from pages import _thumbnails as thumbnails


def test_a_model_keeps_its_token_and_old_ones_are_forgotten(tiny_ensemble: Ensemble) -> None:
    albums = Albums()
    token = albums.publish(tiny_ensemble)
    assert albums.publish(tiny_ensemble) == token
    assert albums.find(token, 3) == tiny_ensemble.lead.contents.thumbnails[3]
    assert albums.find(token, 10_000) is None
    assert albums.find(token, -1) is None
    assert albums.find("guessed", 3) is None
    others: list[Any] = [object() for _ in range(8)]
    assert len({albums.publish(other) for other in others} | {token}) == 9
    assert albums.find(token, 3) is None


def test_the_address_answers_with_the_picture_or_404(
    tiny_ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    albums = Albums()
    monkeypatch.setattr(thumbnails, "_albums", lambda: albums)
    token = albums.publish(tiny_ensemble)
    path = f"/{thumbnails.ADDRESS}/{{token}}/{{row:int}}"
    client = TestClient(Starlette(routes=[Route(path, thumbnails.answer)]))
    found = client.get(f"/{thumbnails.ADDRESS}/{token}/3")
    assert found.status_code == 200
    assert found.headers["content-type"] in ("image/png", "image/jpeg")
    assert found.headers["cache-control"].startswith("private")
    assert found.content == tiny_ensemble.lead.contents.thumbnails[3]
    assert client.get(f"/{thumbnails.ADDRESS}/{token}/999999").status_code == 404
    assert client.get(f"/{thumbnails.ADDRESS}/guessed/3").status_code == 404


def test_the_script_asks_no_other_host_and_is_no_page_text() -> None:
    script = (Path(thumbnails.__file__).parents[1] / "assets" / "thumbnails.js").read_text(
        encoding="utf-8"
    )
    assert "http" not in script
    assert "</script" not in script
