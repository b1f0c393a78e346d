"""The Diagnose page in a browser: every part of a case, in light and dark, wide and narrow."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from test_page_browser import (  # noqa: F401 - fixtures
    OpenPage,
    base,
    browser,
    known_image,
    open_page,
    settle,
    snap,
    upload,
)

from core import dicom_export

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
