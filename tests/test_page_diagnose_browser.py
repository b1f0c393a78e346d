"""The Diagnose page in a browser: every part of a case, light and dark, wide and narrow."""

import io
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from test_page_browser import (  # noqa: F401 - fixtures
    OpenPage,
    base,
    browser,
    known_image,
    open_page,
    serve,
    settle,
    snap,
    upload,
)

from core.images import phantom
from core.images.decode import encode_png

pytestmark = pytest.mark.slow
SCREENS = [(width, scheme) for scheme in ("light", "dark") for width in (800, 1440)]
SHADES = {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 17, 22)"}  # .streamlit/config.toml


def click(page: Any, name: str) -> None:
    page.get_by_role("button", name=name).first.click()
    page.wait_for_timeout(800)
    settle(page)


def flip(page: Any, label: str) -> None:
    page.get_by_text(label).first.click()
    page.wait_for_timeout(800)
    settle(page)


def download(page: Any, name: str) -> bytes:
    with page.expect_download(timeout=120_000) as caught:
        page.get_by_role("button", name=name).click()
    return Path(caught.value.path()).read_bytes()


def ct() -> bytes:
    return Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()


def snap_every_way(page: Any, folder: Path, name: str) -> None:
    """Take screenshots light and dark, wide and narrow; check that nothing overflows."""
    for width, scheme in SCREENS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        settle(page)
        snap(page, folder / f"{name}-{width}-{scheme}.png")
        main = page.get_by_test_id("stMain")
        assert main.evaluate("e => e.scrollWidth - e.clientWidth") <= 0, (name, width)
        shade = page.get_by_test_id("stApp").evaluate("e => getComputedStyle(e).backgroundColor")
        assert shade == SHADES[scheme]


def test_a_case_from_upload_to_export(
    base: str,  # noqa: F811
    open_page: OpenPage,  # noqa: F811
    known_image: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("screenshots")
    print(folder)  # noqa: T201 - where to look with pytest -s
    page = open_page(base)
    snap_every_way(page, folder, "empty")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("series/ct", ct())
        archive.writestr("notes.txt", b"hello")
    echo = Path(str(get_testdata_file("examples_ybr_color.dcm"))).read_bytes()
    upload(
        page, ("eye.png", known_image.read_bytes()), ("all.zip", packed.getvalue()), ("echo", echo)
    )
    assert page.get_by_text("chance").count() > 0
    assert page.get_by_text("This exact image is among the training images").count() == 1
    reason = page.get_by_test_id("stExpander").first.get_by_role("listitem")
    assert "notes.txt: Expected PNG, JPEG, TIFF" in reason.inner_text()
    assert reason.evaluate("e => e.scrollWidth - e.clientWidth") <= 0  # in full, not cut
    click(page, "Compare")
    assert page.locator(".st-key-side-by-side img").count() == 2
    left, right = page.locator(".st-key-side-by-side img").all()
    assert left.bounding_box()["width"] == pytest.approx(right.bounding_box()["width"], abs=1)
    assert left.bounding_box()["height"] == pytest.approx(right.bounding_box()["height"], abs=1)
    before = page.locator("img[alt^='Heatmap of']").first.get_attribute("src")
    flip(page, "integrated gradients of the vote")
    flip(page, "Contour at half the peak")
    assert page.locator("img[alt^='Heatmap of']").first.get_attribute("src") != before
    assert page.get_by_text("chance").count() > 0
    snap_every_way(page, folder, "case")
    assert download(page, "Report (PDF)").startswith(b"%PDF-")
    assert len(json.loads(download(page, "(JSON)"))) == 4
    assert download(page, "(CSV)").count(b"Research use") == 4
    click(page, "Next Shortcut N")
    flip(page, "Invert")
    flip(page, "Show patient tags")
    assert page.get_by_text("1CT1").count() == 1
    page.get_by_role("combobox", name="Window").click()
    page.get_by_role("option", name="Custom").click()
    settle(page)
    page.get_by_role("slider", name="Window width").press("ArrowLeft")
    page.wait_for_timeout(800)
    settle(page)
    snap_every_way(page, folder, "dicom")
    report = pydicom.dcmread(io.BytesIO(download(page, "Structured report (DICOM SR)")))
    assert report.PatientID == "1CT1"
    assert "Answer of the model" in str(report)
    capture = pydicom.dcmread(io.BytesIO(download(page, "Image with heatmap (DICOM SC)")))
    assert capture.StudyInstanceUID == report.StudyInstanceUID
    assert capture.pixel_array.ndim == 3
    click(page, "Next Shortcut N")
    click(page, "Next Shortcut N")
    assert page.get_by_role("heading", name="echo").count() == 1
    first = page.locator("img[alt^='Image that was read']").first.get_attribute("src")
    page.get_by_role("slider", name="Frame (1 to 30)").press("End")
    page.wait_for_timeout(800)
    settle(page)
    second = page.locator("img[alt^='Image that was read']").first.get_attribute("src")
    assert first != second
    flip(page, "First read: hide answers")
    assert page.get_by_text("What do you see?").count() == 1
    snap_every_way(page, folder, "reader")
    page.get_by_test_id("stRadio").get_by_text("normal", exact=True).click()
    click(page, "Commit and show the answer")
    assert page.get_by_text("Your read:").count() == 1


def mixed_files() -> Iterator[tuple[str, bytes]]:
    """Fifty files: forty-eight of seven kinds in turn, and a zip with two more."""
    rng = np.random.default_rng(0)
    eye = phantom.draw(970_000, is_diseased=True).pixels
    large = np.asarray(Image.fromarray(eye).resize((1600, 1600)))
    noise = rng.integers(0, 255, (1800, 2400, 3), dtype=np.uint8)
    for index in range(48):
        buffer = io.BytesIO()
        kind = index % 7
        if kind == 0:
            yield f"{index}.png", encode_png(np.roll(large, index, axis=0))
        elif kind == 1:
            Image.fromarray(np.roll(noise, index, axis=0)).save(buffer, "JPEG", quality=90)
            yield f"{index}.jpg", buffer.getvalue()
        elif kind == 2:
            deep = large.mean(axis=2).astype(np.uint16) * 200 + np.uint16(index)
            Image.fromarray(deep).save(buffer, "TIFF")
            yield f"{index}.tif", buffer.getvalue()
        elif kind == 3:
            yield f"IM{index:06d}", ct() + bytes([index, 0])  # no suffix, trailing bytes
        elif kind == 4:
            yield f"{index}-broken.png", encode_png(eye)[: 900 + index]
        elif kind == 5:
            yield f"{index}-notes.png", f"Text, not a picture, {index}.".encode()
        else:
            yield f"{index}-blank.png", encode_png(np.full((64, 64, 3), index, np.uint8))
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr("a/in-zip.png", encode_png(phantom.draw(1, is_diseased=False).pixels))
        archive.writestr("a/readme.txt", b"hello")
    yield "all.zip", packed.getvalue()


def server_of(address: str) -> psutil.Process:
    port = address.rpartition(":")[2]
    return next(
        child
        for child in psutil.Process().children(recursive=True)
        if f"--server.port={port}" in child.cmdline()
    )


def wait_for_memory(server: psutil.Process, limit: float) -> int:
    """Resident bytes once they are below the limit, or after a minute."""
    for _ in range(60):
        if server.memory_info().rss <= limit:
            break
        time.sleep(1)
    return int(server.memory_info().rss)


def drop(page: Any, paths: Sequence[Path]) -> None:
    """Upload files and wait for all the answers."""
    field = page.get_by_test_id("stFileUploader").locator("input[type=file]")
    field.set_input_files([str(path) for path in paths])
    page.get_by_text("Download all results (JSON)").wait_for(timeout=420_000)
    page.wait_for_timeout(1000)
    settle(page)


def test_fifty_mixed_files_are_answered_or_refused_and_the_memory_comes_back(
    tiny_checkpoints: Path,
    open_page: OpenPage,  # noqa: F811
    tmp_path: Path,
) -> None:
    paths = []
    for name, data in mixed_files():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    with serve(tiny_checkpoints, "--server.disconnectedSessionTTL=4") as address:
        server = server_of(address)
        page = open_page(address)
        drop(page, paths[:21])  # a first visit, to warm up libraries, model and heap
        page.context.close()
        time.sleep(12)  # the session is kept for 4 s; within 3 s more it is removed and trimmed
        before = server.memory_info().rss
        page = open_page(address)
        drop(page, paths)
        during = server.memory_info().rss
        rows = json.loads(download(page, "(JSON)"))
        page.get_by_text("files could not be read: reasons").click()
        listed = page.get_by_test_id("stExpander").first.get_by_role("listitem").all_inner_texts()
        page.context.close()
        allowed = before + min(0.10 * before, 0.5 * (during - before))
        after = wait_for_memory(server, allowed)
    figures = f"{before / 2**20:.0f} -> {during / 2**20:.0f} -> {after / 2**20:.0f} MiB"
    print(figures)  # noqa: T201 - for the report
    assert len(rows) == 50
    refused = [row for row in rows if row["status"] == "rejected"]
    assert all(row["error"] for row in refused)
    assert len(refused) == len(listed)
    assert all(row["probabilities"] for row in rows if row["status"] != "rejected")
    kinds = {row["file"].partition("-")[2] for row in refused if "-" in row["file"]}
    assert kinds == {"broken.png", "notes.png", "blank.png"}
    assert during > 1.05 * before, figures  # else there is nothing to release
    assert after <= allowed, figures
