"""Under ``server.baseUrlPath`` every address of the app lies below the prefix: a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("playwright.sync_api", reason="see requirements-dev.txt")
from test_page_browser import PAGES, browser, fetch, open_page, serve

__all__ = ["browser", "open_page"]  # fixtures
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tiny_checkpoints: Path) -> Iterator[str]:
    with serve(tiny_checkpoints, "--server.baseUrlPath=nbx", health="/nbx") as address:
        yield address + "/nbx"


def test_readiness_is_told_below_the_prefix_and_without_it(base: str) -> None:
    for address in (base, base.removesuffix("/nbx")):
        status, body, headers = fetch(address + "/ready")
        assert (status, json.loads(body)) == (200, {"ready": True, "reason": None})
        assert headers["content-type"] == "application/json"
        assert headers["x-content-type-options"] == "nosniff"


def test_the_first_pages_name_leads_to_the_first_page(base: str) -> None:
    with urlopen(Request(base + "/diagnose?lang=zh_CN"), timeout=20) as response:
        assert response.url == base + "/?lang=zh_CN"
        assert b"<title>" in response.read()


def test_a_picture_of_nobody_is_not_found_rather_than_a_page(base: str) -> None:
    status, body, _ = fetch(base + "/thumbnails/nobody/0")
    assert (status, body) == (404, b"")


@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens_by_its_address(base: str, path: str, open_page: Any) -> None:
    page = open_page(base + path)
    assert "Research use" in page.locator(".st-key-banner").inner_text()
    assert page.get_by_test_id("stException").count() == 0


def test_pictures_at_the_pointer_are_found_from_every_spelling_of_the_address(
    base: str, open_page: Any
) -> None:
    for path in ("/explore", "/explore/"):
        page = open_page(base + path)
        span = page.locator("[data-thumbnails-of]").first
        span.wait_for(state="attached")
        address = page.evaluate(
            "span => new URL(span.dataset.address + '0', document.baseURI).href",
            span.element_handle(),
        )
        status, body, headers = fetch(address)
        assert (status, headers["content-type"].partition("/")[0]) == (200, "image")
        assert body[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
