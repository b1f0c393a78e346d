"""The Explore page in a browser: outline, grid, one image, relabel, undo; a kill; no WebGL."""

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_page_browser import (  # noqa: F401 - fixtures
    ARGUMENTS,
    CHROMIUM,
    OpenPage,
    browser,
    open_page,
    serve,
    settle,
    snap,
)
from test_page_diagnose_browser import click, flip

from core.assessment.assess import assess
from core.config import Settings
from core.gallery.corrections_db import FILE_NAME, CurationStore, default_url
from core.models.bundle_files import read_bundle_config

pytestmark = pytest.mark.slow
MAP = ".st-key-explore_map"
POINTS = f"{MAP} .scatterlayer path.point"
NO_WEBGL = [
    *(a for a in ARGUMENTS if a != "--enable-unsafe-swiftshader"),
    "--disable-webgl",
    "--disable-3d-apis",
]


@pytest.fixture(scope="module")
def home(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that this module can change, with a saved evaluation."""
    copy = tmp_path_factory.mktemp("explored") / "checkpoints"
    ignored = shutil.ignore_patterns("evaluations", "maps")
    shutil.copytree(tiny_checkpoints, copy, ignore=ignored)
    settings = Settings(checkpoints_dir=copy, device="cpu")
    assess("demo", copy / ".demo-data", split="test", settings=settings, parts=())
    return copy


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with serve(home) as base:
        yield base + "/explore"


def scope(home: Path) -> str:
    return read_bundle_config(home / "demo-triplet").data_id


def outline(page: Any, tool: str) -> None:
    """Draw an outline around the left part of the map, about two thirds of the points."""
    page.wait_for_timeout(900)  # a gesture right after the chart appears is lost
    page.locator(f"{MAP} .js-plotly-plot").hover()
    page.locator(f"{MAP} .modebar-btn[data-val='{tool}']").click()
    box = page.locator(f"{MAP} .nsewdrag").bounding_box()
    left, top = box["x"] + 4, box["y"] + 4
    right, bottom = find_two_thirds(page), box["y"] + box["height"] - 4
    page.mouse.move(left, top)
    page.mouse.down()
    corners = [(right, bottom)] if tool == "select" else [(right, top), (right, bottom)]
    for x, y in [*corners, (left, bottom)] if tool == "lasso" else corners:
        page.mouse.move(x, y, steps=10)
    page.mouse.up()
    page.get_by_role("button", name="Clear the selection").wait_for(timeout=60_000)
    settle(page)


def find_two_thirds(page: Any) -> float:
    """Find an x with two thirds of the points to its left; the layout differs by machine."""
    middles = page.locator(POINTS).evaluate_all(
        "points => points.map(p => p.getBoundingClientRect()).map(r => (r.left + r.right) / 2)"
    )
    return float(sorted(middles)[2 * len(middles) // 3]) - 1.0


def count_points(page: Any) -> int:
    """Count the points on the map once it is drawn."""
    page.locator(POINTS).first.wait_for(timeout=60_000)
    page.wait_for_timeout(500)
    return int(page.locator(POINTS).count())


def await_text(page: Any, text: str) -> None:
    """Wait until the page shows a text and has finished its run."""
    page.get_by_text(text).first.wait_for(timeout=60_000)
    settle(page)


def read_counts(page: Any) -> tuple[int, list[int]]:
    """Read the number of images in the list, in total and per class."""
    line = page.get_by_text(re.compile(r"^\d+ images? · ")).inner_text()
    total, *classes = (int(n) for n in re.findall(r"\d+", line))
    return total, classes


def test_from_an_outline_to_a_correction_and_back(
    home: Path,
    address: str,
    open_page: OpenPage,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("screenshots")
    page = open_page(address)
    n_drawn = count_points(page)
    page.locator(POINTS).nth(4).hover(force=True)
    picture = page.locator(".thumbnail-at-pointer")
    picture.wait_for(state="visible", timeout=20_000)
    assert picture.evaluate("image => image.naturalWidth") == 96
    outline(page, "lasso")
    n_listed, by_class = read_counts(page)
    assert 0 < n_listed < n_drawn
    assert sum(by_class) == n_listed
    cards = page.locator("[class*='st-key-card-'] img")
    cards.nth(min(24, n_listed) - 1).wait_for(timeout=30_000)  # images arrive one by one
    assert cards.count() == min(24, n_listed)
    page.locator("[class*='st-key-explore_open_'] button").first.click()
    await_text(page, "Its neighbours say")
    voters = page.locator("[class*='st-key-card-'][class*='-n'] img[alt^='Training image']")
    voters.first.wait_for(timeout=30_000)  # K of the tiny model may be 1
    click(page, "Show the heatmap")
    await_text(page, "Bright areas support")
    assert page.locator("img[alt^='Heatmap of']").count() == 2
    snap(page, folder / "case-1440-light.png")
    labels = page.get_by_test_id("stRadio").locator("label")
    labels.filter(has_not=page.locator("input:checked")).last.click()
    await_text(page, "Leave-one-out accuracy")
    snap(page, folder / "effect-1440-light.png")
    click(page, "Apply")
    await_text(page, "Gallery version 1: 1 relabelled")
    store = CurationStore(default_url(home))
    assert len(store.read_state(scope(home)).labels) == 1
    assert read_counts(page)[1] != by_class  # the list follows at once
    click(page, "Undo last change")
    await_text(page, "Gallery version 2: 0 relabelled")
    assert store.read_state(scope(home)).labels == {}
    assert read_counts(page) == (n_listed, by_class)
    store.close()


def test_other_splits_and_a_narrow_dark_window(
    address: str,
    open_page: OpenPage,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("screenshots")
    page = open_page(address, width=800, scheme="dark")
    before = count_points(page)
    click(page, "test (16 images)")
    await_text(page, "Test images are shown")
    assert count_points(page) == before + 16
    page.locator(".st-key-explore_colour").click()
    page.get_by_role("option", name="Split", exact=True).click()
    page.wait_for_timeout(800)
    settle(page)
    assert page.locator(f"{MAP} .legend text").all_text_contents() == ["training", "test"]
    page.locator(f"{MAP} .legendtoggle").first.click()  # hides the training images
    page.wait_for_timeout(600)
    outline(page, "select")
    assert read_counts(page)[0] <= 16
    flip(page, "Duplicates")
    snap(page, folder / "splits-800-dark.png")
    overflow = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 0


def test_without_webgl_it_draws_turns_and_answers(address: str, browser: Any) -> None:  # noqa: F811
    plain = browser.browser_type.launch(executable_path=str(CHROMIUM), headless=True, args=NO_WEBGL)
    try:
        page = plain.new_page(viewport={"width": 1440, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        settle(page)
        webgl = "() => document.createElement('canvas').getContext('webgl')"
        assert page.evaluate(webgl) is None
        n_drawn = count_points(page)
        outline(page, "select")
        assert 0 < read_counts(page)[0] < n_drawn
        click(page, "Clear the selection")
        flip(page, "PCA")
        flip(page, "3-D")
        assert count_points(page) == n_drawn
        before = page.locator(POINTS).first.get_attribute("transform")
        page.get_by_role("slider", name="Rotation").press("ArrowRight")
        page.wait_for_timeout(800)
        settle(page)
        assert page.locator(POINTS).first.get_attribute("transform") != before
        assert errors == []
    finally:
        plain.close()


def test_a_server_killed_while_it_relabels_leaves_nothing_half(
    home: Path,
    browser: Any,  # noqa: F811
) -> None:
    """Another writer holds the database, so the kill comes while the page's change waits."""
    with serve(home) as base:
        page = browser.new_page()
        page.goto(base + "/explore")
        settle(page)
        relabel_two(page)
        click(page, "Apply")
        await_text(page, ": 2 relabelled")
        store = CurationStore(default_url(home))
        before = store.read_state(scope(home))
        assert len(before.labels) == 2
        relabel_two(page, start=4)
        rival = sqlite3.connect(home / FILE_NAME, isolation_level=None)
        rival.execute("BEGIN IMMEDIATE")
        page.get_by_role("button", name="Apply").click()
        page.locator("[data-test-script-state='running']").wait_for(timeout=30_000)
        page.wait_for_timeout(2500)
        (server,) = (
            p for p in psutil.Process().children() if f"--server.port={base[-5:]}" in p.cmdline()
        )
        os.kill(server.pid, signal.SIGKILL)
        page.close()
        rival.execute("ROLLBACK")
        rival.close()
    assert store.read_state(scope(home)) == before
    store.close()
    with serve(home) as base:
        page = browser.new_page()
        page.goto(base + "/explore")
        settle(page)
        await_text(page, f"Gallery version {before.version}: 2 relabelled")
        relabel_two(page, start=4)
        click(page, "Apply")
        await_text(page, f"Gallery version {before.version + 1}: 4 relabelled")
        page.close()


def relabel_two(page: Any, *, start: int = 0) -> None:
    """Mark two images in the grid and assign the other label."""
    cards = page.locator("[class*='st-key-card-disease-g']")
    for number in (start, start + 1):
        cards.nth(number).get_by_test_id("stCheckbox").locator("label").click()
        page.wait_for_timeout(800)
        settle(page)
    flip(page, "relabel as normal")
    await_text(page, "Leave-one-out accuracy")
