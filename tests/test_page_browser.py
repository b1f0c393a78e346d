"""The app as a person meets it: a real server, a real browser, nothing from another host."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

playwright = pytest.importorskip("playwright.sync_api", reason="see requirements-dev.txt")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = Path("/usr/bin/chromium")
PAGES = (
    "/",
    "/diagnose",
    "/explore",
    "/evaluate",
    "/finetune",
    "/models",
)  # grows with st.navigation; every one is opened on a fresh server
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]

OpenPage = Callable[..., Any]


@contextmanager
def serve(checkpoints: Path, *options: str, health: str = "") -> Iterator[str]:
    """A server of its own on a free port; ended by its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.address=127.0.0.1"]
    environment = {
        **os.environ,
        "NEIGHBORDX_CHECKPOINTS": str(checkpoints),
        "NEIGHBORDX_DEVICE": "cpu",
    }
    with subprocess.Popen(
        [*command, f"--server.port={port}", *options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            base = f"http://127.0.0.1:{port}"
            wait_until_healthy(base + health, server)
            yield base
        finally:
            os.kill(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def wait_until_healthy(base: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(240):
        assert server.poll() is None, "the server ended by itself"
        try:
            if fetch(f"{base}/_stcore/health")[1] == b"ok":
                return
        except OSError:
            pass
        time.sleep(0.25)
    raise AssertionError("the server did not become healthy in 60 s")


def fetch(url: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


@pytest.fixture(scope="module")
def base(tiny_checkpoints: Path) -> Iterator[str]:
    with serve(tiny_checkpoints) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed; see STREAMLIT.md")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=str(CHROMIUM), headless=True, args=ARGUMENTS
        )
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open an address; afterwards fail on any console error or request to another host."""
    contexts, errors, hosts = [], [], set()

    def open_it(address: str, *, width: int = 1440, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if is_error(m) else None)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("websocket", lambda ws: hosts.add(urlsplit(ws.url).hostname))
        page.goto(address)
        settle(page)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []
    assert hosts - {None} == {"127.0.0.1"}  # None: data and blob addresses


def is_error(message: Any) -> bool:
    """Streamlit looks for its server below a page's address first, and is told 404 there."""
    is_probe = str(message.location.get("url", "")).endswith(
        ("/_stcore/host-config", "/_stcore/health")
    )
    return message.type == "error" and not (is_probe and "404" in message.text)


def settle(page: Any) -> None:
    """Wait until the script has run and nothing went wrong in it."""
    page.wait_for_selector(
        "[data-testid='stApp'][data-test-script-state='notRunning']", timeout=120_000
    )
    page.wait_for_timeout(700)
    page.wait_for_selector(
        "[data-testid='stApp'][data-test-script-state='notRunning']", timeout=120_000
    )
    assert page.get_by_test_id("stException").count() == 0


def upload(page: Any, *files: tuple[str, bytes]) -> None:
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(
        [{"name": n, "mimeType": "application/octet-stream", "buffer": data} for n, data in files]
    )
    page.get_by_text("Research use, not a diagnosis.").last.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    settle(page)


def snap(page: Any, path: Path) -> None:
    """The whole page: Streamlit scrolls inside, so the window is made as tall as its content."""
    width = page.viewport_size["width"]
    height = page.get_by_test_id("stMain").evaluate("element => element.scrollHeight")
    page.set_viewport_size({"width": width, "height": min(height + 60, 6000)})
    page.wait_for_timeout(700)
    page.screenshot(path=str(path))
    page.set_viewport_size({"width": width, "height": 900})


@pytest.fixture(scope="module")
def known_image(tiny_checkpoints: Path) -> Path:
    """A training image: surely of the kind the model knows."""
    return sorted((tiny_checkpoints / ".demo-data").rglob("train/disease/*.png"))[0]


@pytest.fixture(scope="module")
def dicom(known_image: Path) -> bytes:
    """The same pixels as a colour DICOM of no patient, and with other bytes: it may vote."""
    pixels = np.asarray(Image.open(known_image).convert("RGB"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def test_every_page_of_a_fresh_server_passes_the_router(
    tiny_checkpoints: Path, open_page: OpenPage
) -> None:
    for address in PAGES:
        with serve(tiny_checkpoints) as fresh:
            page = open_page(fresh + address)
            assert page.locator(".st-key-banner").inner_text().startswith("Research use")
            assert page.get_by_text("Page not found").count() == 0
            page.context.close()


def test_an_upload_shows_class_neighbours_heatmap_and_map(
    base: str, open_page: OpenPage, known_image: Path, dicom: bytes
) -> None:
    page = open_page(base)
    upload(page, ("eye.png", known_image.read_bytes()), ("IM000001", dicom), ("x.pdf", b"%PDF-"))
    for name in ("eye.png", "IM000001"):
        assert page.get_by_role("heading", name=name).count() == 1
        headings = page.locator("[class*='st-key-answer-'] h2").all_inner_texts()
        assert len(headings) == 1
        assert "Answer: " in headings[0] or "No answer: too close to call" in headings[0]
        cards = page.locator("[class*='st-key-card-'] img")
        # pictures arrive one by one after the run has ended
        page.locator("img[alt^='Training image, rank 1,']").first.wait_for(timeout=30_000)
        assert cards.count() >= 2
        assert "Training image, rank 1, labelled" in cards.first.get_attribute("alt")
        assert page.locator("img[alt^='Heatmap of']").count() == 2
        assert page.locator("img:not([alt])").count() == 0
        map_svg = page.locator(".js-plotly-plot", has=page.locator(".legend")).first
        assert "this image" in map_svg.inner_text()
        assert map_svg.locator(".scatterlayer path.point").count() >= 36
        page.get_by_role("button", name="Next Shortcut N", exact=True).click()
        settle(page)
    assert page.get_by_role("heading", name="Could not be read: no answer").count() == 1


def test_the_heatmap_follows_its_slider_and_the_page_its_language(
    base: str, open_page: OpenPage, known_image: Path
) -> None:
    page = open_page(base)
    upload(page, ("eye.png", known_image.read_bytes()))
    heatmap = page.locator("img[alt^='Heatmap of']").first
    before = heatmap.get_attribute("src")
    page.get_by_role("slider").press("ArrowLeft")
    page.wait_for_timeout(500)
    settle(page)
    assert heatmap.get_attribute("src") != before
    page.get_by_text("简体中文").click()
    settle(page)
    assert "仅供研究" in page.locator(".st-key-banner").inner_text()
    assert "本图像" in page.locator(".js-plotly-plot").last.inner_text()
    page.reload()
    settle(page)
    assert "仅供研究" in page.locator(".st-key-banner").inner_text()  # kept in the address


def test_the_language_of_the_browser_is_the_first_choice(base: str, open_page: OpenPage) -> None:
    page = open_page(base, locale="zh-CN")
    assert "仅供研究" in page.locator(".st-key-banner").inner_text()


def test_the_downloads_hold_the_results(base: str, open_page: OpenPage, known_image: Path) -> None:
    page = open_page(base)
    upload(page, ("eye.png", known_image.read_bytes()), ("x.pdf", b"%PDF-"))
    with page.expect_download() as caught:
        page.get_by_role("button", name="(JSON)").click()
    results = json.loads(Path(caught.value.path()).read_text(encoding="utf-8"))
    assert [r["file"] for r in results] == ["eye.png", "x.pdf"]
    assert sum(n["share"] for n in results[0]["neighbours"]) == pytest.approx(1, abs=1e-4)
    with page.expect_download() as caught:
        page.get_by_role("button", name="(CSV)").click()
    assert "Research use" in Path(caught.value.path()).read_text(encoding="utf-8-sig")


def test_headers_and_readiness(base: str, tmp_path: Path) -> None:
    status, body, headers = fetch(base + "/")
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'self'" in headers["content-security-policy"]
    status, body, _ = fetch(base + "/ready")
    assert (status, json.loads(body)) == (200, {"ready": True, "reason": None})
    with serve(tmp_path) as without_model:
        status, body, _ = fetch(without_model + "/ready")
        assert (status, json.loads(body)["reason"]) == (503, "no model can be loaded")
