"""The Evaluate page in a browser: every part, wide and narrow, light and dark, a complete job."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader
from test_page_browser import (  # noqa: F401 - fixtures
    OpenPage,
    browser,
    open_page,
    serve,
    settle,
    snap,
)

from core.assessment.assess import assess
from core.assessment.store import list_evaluations
from core.config import Settings

pytestmark = pytest.mark.slow
PARTS = (
    "Overview", "Operating point", "Probabilities", "Models and K", "Subgroups", "Robustness",
    "Heatmaps", "External test", "Report",
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("evaluated") / "checkpoints"
    shutil.copytree(tiny_checkpoints, copy, ignore=shutil.ignore_patterns("evaluations"))
    settings = Settings(checkpoints_dir=copy, device="cpu")
    data = copy / ".demo-data"
    assess("demo", data, split="test", settings=settings, parts=("explanations",))
    return copy


@pytest.fixture(scope="module")
def address(directory: Path) -> Iterator[str]:
    with serve(directory) as base:
        yield base + "/evaluate"


def open_part(page: Any, name: str) -> None:
    page.get_by_test_id("stButtonGroup").get_by_text(name, exact=True).click()
    page.wait_for_timeout(800)
    settle(page)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (800, "dark")])
def test_every_part_fits_its_window(
    address: str,
    open_page: OpenPage,  # noqa: F811 - the fixture
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    scheme: str,
) -> None:
    folder = tmp_path_factory.mktemp("screenshots")
    page = open_page(address, width=width, scheme=scheme)
    for number, part in enumerate(PARTS):
        open_part(page, part)
        snap(page, folder / f"{number}-{width}-{scheme}.png")
        overflow = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
        assert overflow <= 0, part
    print(folder)  # noqa: T201 - where to look with pytest -s


def test_a_cell_opens_images_and_the_report_comes_down(
    address: str,
    open_page: OpenPage,  # noqa: F811 - the fixture
) -> None:
    page = open_page(address)
    for cell in ("tp", "fn", "fp", "tn"):
        button = page.locator(f".st-key-evaluate_cell_{cell} button")
        n_images = int("".join(c for c in button.inner_text().split()[1] if c.isdigit()))
        if n_images:
            button.click()
            settle(page)
            assert page.locator("[class*='st-key-card-'] img").count() == n_images
            break
    open_part(page, "Report")
    page.get_by_role("button", name="Create the report").click()
    page.get_by_role("button", name="Download as PDF").wait_for(timeout=120_000)
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download as PDF").click()
    text = PdfReader(io.BytesIO(Path(caught.value.path()).read_bytes())).pages[0].extract_text()
    assert "Evaluation of demo" in text


def test_a_job_runs_beside_the_page_and_its_answers_appear(
    address: str,
    open_page: OpenPage,  # noqa: F811 - the fixture
    directory: Path,
) -> None:
    page = open_page(address)
    page.get_by_text("New evaluation").click()
    field = page.get_by_role("textbox", name="Folder or file with the images")
    field.fill(str(directory / ".demo-data"))
    field.press("Tab")
    settle(page)
    page.locator(".st-key-evaluate_split").get_by_role("combobox").click()
    page.get_by_role("option", name="validation").click()
    settle(page)
    page.get_by_role("button", name="Start the evaluation").click()
    said = page.get_by_text("Evaluating").or_(page.get_by_text("Starting: "))
    said.or_(page.get_by_text("Waiting for")).first.wait_for(timeout=60_000)
    page.reload()  # the job does not depend on the page
    for _ in range(120):
        page.wait_for_timeout(1000)
        if len(list_evaluations(directory, "demo")) == 2:
            break
    assert {s.split for s in list_evaluations(directory, "demo")} == {"test", "val"}
