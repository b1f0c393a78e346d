"""The Diagnose page in a browser: every part of a case, in light and dark, wide and narrow."""

import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from test_page_browser import (  # noqa: F401 - fixtures
    CHROMIUM,
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

from core import dicom_export, phantom
from core.image_io import encode_png

pytestmark = pytest.mark.slow
SCREENS = [(1440, "light"), (800, "dark")]


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


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_case_from_upload_to_export(
    base: str,  # noqa: F811
    open_page: OpenPage,  # noqa: F811
    known_image: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    scheme: str,
) -> None:
    folder = tmp_path_factory.mktemp("screenshots")
    page = open_page(base, width=width, scheme=scheme)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("series/ct", ct())
        archive.writestr("notes.txt", b"hello")
    upload(page, ("eye.png", known_image.read_bytes()), ("all.zip", packed.getvalue()))
    assert page.get_by_text("chance").count() > 0
    click(page, "Compare")
    assert page.locator(".st-key-side-by-side img").count() == 2
    left, right = page.locator(".st-key-side-by-side img").all()
    assert left.bounding_box()["width"] == pytest.approx(right.bounding_box()["width"], abs=1)
    assert left.bounding_box()["height"] == pytest.approx(right.bounding_box()["height"], abs=1)
    flip(page, "Contour at half the peak")
    snap(page, folder / f"case-{width}-{scheme}.png")
    pdf = download(page, "Report (PDF)")
    assert pdf.startswith(b"%PDF-")
    click(page, "Next Shortcut N")
    flip(page, "Invert")
    flip(page, "Show patient tags")
    assert page.get_by_text("1CT1").count() == 1
    snap(page, folder / f"dicom-{width}-{scheme}.png")
    report = pydicom.dcmread(io.BytesIO(download(page, "Structured report (DICOM SR)")))
    assert report.PatientID == "1CT1"
    assert "Answer of the model" in dict(dicom_export.list_values(report))
    capture = pydicom.dcmread(io.BytesIO(download(page, "Picture with heatmap (DICOM SC)")))
    assert capture.StudyInstanceUID == report.StudyInstanceUID
    assert capture.pixel_array.ndim == 3
    flip(page, "I read first")
    assert page.get_by_text("What do you see?").count() == 1
    snap(page, folder / f"reader-{width}-{scheme}.png")
    overflow = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 0
    print(folder)  # noqa: T201 - where to look with pytest -s


def resident_bytes(port: int) -> int:
    """Memory of the server that listens on a port, from /proc."""
    inode = next(
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    )
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, inode):
            return int((process / "statm").read_text().split()[1]) * 4096
    raise AssertionError("no process listens on that port")


def _holds(process: Path, inode: str) -> bool:
    try:
        return any(str(fd.readlink()) == f"socket:[{inode}]" for fd in (process / "fd").iterdir())
    except OSError:
        return False


def mixed_files(n: int) -> Iterator[tuple[str, bytes]]:
    """Eyes, noise, DICOM, and files that are no image."""
    rng = np.random.default_rng(0)
    for index in range(n):
        kind = index % 5
        if kind == 0:
            yield f"{index}.png", encode_png(phantom.draw(970_000 + index, is_diseased=True).pixels)
        elif kind == 1:
            buffer = io.BytesIO()
            noise = rng.integers(0, 255, (900, 1200, 3), dtype=np.uint8)
            Image.fromarray(noise).save(buffer, "JPEG")
            yield f"{index}.jpg", buffer.getvalue()
        elif kind == 2:
            yield f"{index}", ct() + bytes([index, 0])
        elif kind == 3:
            yield f"{index}.pdf", b"%PDF-1.7 " + bytes([index])
        else:
            yield f"{index}.png", encode_png(np.full((64, 64, 3), index, np.uint8))


def test_mixed_files_and_the_memory_comes_back(
    tiny_checkpoints: Path,
    open_page: OpenPage,  # noqa: F811
) -> None:
    with serve(tiny_checkpoints, "--server.disconnectedSessionTTL=5") as address:
        port = int(address.rpartition(":")[2])
        page = open_page(address)
        upload(page, *list(mixed_files(5)))  # the libraries and the model are there
        page.context.close()
        time.sleep(15)  # a session is kept for a while after its page is closed: the option above
        before = resident_bytes(port)
        page = open_page(address)
        page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(
            [
                {"name": name, "mimeType": "application/octet-stream", "buffer": data}
                for name, data in mixed_files(20)
            ]
        )
        page.get_by_text("Download all results (JSON)").wait_for(timeout=420_000)
        page.wait_for_timeout(2000)
        settle(page)
        during = resident_bytes(port)
        rows = download(page, "(JSON)")
        page.context.close()
        time.sleep(15)
        after = resident_bytes(port)
    text = rows.decode()
    assert text.count('"status"') == 20
    assert text.count('"status": "rejected"') == 8
    figures = f"{before / 2**20:.0f} -> {during / 2**20:.0f} -> {after / 2**20:.0f} MiB"
    print(figures)  # noqa: T201 - for the report
    assert after <= 1.10 * before, figures
