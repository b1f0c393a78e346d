"""The Explore page in a real browser on galleries of any size; used by bench_explore.py.

Galleries consist of imaginary images: random embeddings around two centres, with drawn thumbnails.
The server, the page and the browser (headless Chromium, no GPU) are real.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import Page, sync_playwright

from core.config import Settings, build_preset
from core.exploring import map_store
from core.gallery import novelty
from core.gallery.projection import MapSettings, compute_cache_key, fit_map
from core.gallery.search import Gallery
from core.images import phantom
from core.images.decode import encode_jpeg, thumbnail
from core.models.bundle import ModelBundle
from core.models.bundle_files import save_bundle
from core.models.registry import load_bundle
from core.training.demo import build_demo
from tests.test_page_browser import ARGUMENTS, CHROMIUM, serve, settle

SEED = 0
N_PICTURES = 64  # distinct thumbnails, shared by the images
N_REPEATS = 7
_SELECTED = "Clear the selection"
_SHOWN = """() => {
  const app = document.querySelector("[data-testid='stApp']");
  const images = [...document.querySelectorAll("[class*='st-key-card-'] img")];
  return app.dataset.testScriptState === "notRunning" && images.length > 0
    && images.every(image => image.complete)
    && WANTED === [...document.querySelectorAll("button")]
      .some(button => button.textContent.includes("Clear the selection"));
}"""


def make_home(work: Path, n: int) -> Path:
    """Create a checkpoints folder with one model and n gallery images, ready to explore."""
    home = work / f"page-{n}"
    name = f"synthetic-{n}"
    if (home / name / "config.json").is_file():
        return home
    settings = Settings(checkpoints_dir=work / "tiny", device="cpu")
    build_demo(settings, config=build_preset("tiny-random"), n_train=48, n_test=16, size=96)
    base = load_bundle(work / "tiny", "demo-triplet", settings=settings)
    assert isinstance(base, ModelBundle)
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 2, n)
    centres = rng.normal(size=(2, 128))
    points = centres[labels] + rng.normal(scale=1.5, size=(n, 128))
    embeddings = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    seen = rng.normal(size=(n, 8)).astype(np.float32)
    pictures = [
        encode_jpeg(thumbnail(phantom.draw(i, is_diseased=i % 2 == 0, size=256).pixels))
        for i in range(N_PICTURES)
    ]
    classes = base.class_names
    gallery = Gallery(
        embeddings=embeddings,
        labels=labels,
        keys=tuple(f"train/{classes[label]}/image{i:06d}.png" for i, label in enumerate(labels)),
        splits=("train",) * n,
        groups=("",) * n,
        sha256=tuple(f"{i:064d}" for i in range(n)),
    )
    plain = MapSettings("pca", seed=base.config.run.train.seed)
    xy = fit_map(embeddings, plain)
    contents = dataclasses.replace(
        base.contents,
        gallery=gallery,
        novelty=novelty.fit(seen / np.linalg.norm(seen, axis=1, keepdims=True)),
        gallery_xy=xy,
        projection_key=compute_cache_key(embeddings, seed=plain.seed),
        thumbnails=tuple(pictures[i % N_PICTURES] for i in range(n)),
    )
    config = dataclasses.replace(base.config, model_id=name, data_id=name, data_root="/nowhere")
    save_bundle(home, config, base.embedder, contents)
    model = load_bundle(home, name, settings=Settings(checkpoints_dir=home, device="cpu"))
    _write_neighbours(home, model.lead, rng)
    map_store.load_map(home, model.lead, MapSettings(seed=plain.seed))
    return home


def _write_neighbours(home: Path, bundle: ModelBundle, rng: np.random.Generator) -> None:
    """Write random neighbours, because the page's one-time search is not timed."""
    n, m = len(bundle.gallery), bundle.n_shown + map_store.N_SPARE
    path = map_store.neighbours_path(home, bundle)
    path.parent.mkdir(exist_ok=True)
    distances = np.sort(rng.uniform(0.1, 1.0, (1, n, m)).astype(np.float32), axis=2)
    np.savez(path, rows=rng.integers(0, n, (1, n, m)).astype(np.int32), distances=distances)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Open headless Chromium as the tests do."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), headless=True, args=ARGUMENTS
        )
        yield browser
        browser.close()


def measure_page(work: Path, n: int) -> dict[str, float]:
    """Measure seconds until the map and until a box selection's result are shown in the browser.

    The first visit (which loads the model and its tables) is not counted; ``draw_s`` is for the
    next tab. ``select_s`` runs from the release of the mouse until the counts and the first 24
    images are on the page and the script has finished.
    """
    home = make_home(work, n)
    with serve(home) as base, open_browser() as browser:
        browser.new_context().new_page().goto(f"{base}/explore")
        first = browser.contexts[0].pages[0]
        first.locator(".st-key-explore_map .scatterlayer").first.wait_for(timeout=900_000)
        settle(first)
        first.context.close()
        received: list[int] = []
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.on(
            "websocket",
            lambda socket: socket.on("framereceived", lambda frame: received.append(len(frame))),
        )
        began = time.perf_counter()
        page.goto(f"{base}/explore")
        page.locator(".st-key-explore_map .scatterlayer path.point").first.wait_for(timeout=120_000)
        _wait(page, is_selected=False)
        draw_s = time.perf_counter() - began
        sent_mb = sum(received) / 2**20
        settle(page)
        selections = [_select(page, number) for number in range(N_REPEATS)]
        seconds, cpu_seconds = zip(*selections, strict=True)
        n_points = page.locator(".st-key-explore_map .scatterlayer path.point").count()
    return {
        "draw_s": draw_s,
        "select_s": median(seconds),
        "select_least_s": min(seconds),
        "select_most_s": max(seconds),
        "select_cpu_s": median(cpu_seconds),
        "n_repeats": N_REPEATS,
        "n_points_drawn": n_points,
        "sent_mb": sent_mb,
    }


def _read_cpu_s() -> float:
    """CPU seconds used by the server and the browser so far."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def _select(page: Page, number: int) -> tuple[float, float]:
    """Draw one box over about a quarter of the map; clear it afterwards, untimed.

    Returns:
        Wall-clock seconds, and CPU seconds of server and browser together. The latter is an upper
        bound of the former on an otherwise idle machine, apart from a few short waits.
    """
    plot = page.locator(".st-key-explore_map .js-plotly-plot")
    plot.hover()
    page.locator(".st-key-explore_map .modebar-btn[data-val='select']").click()
    box = page.locator(".st-key-explore_map .nsewdrag").bounding_box()
    assert box is not None
    page.wait_for_timeout(800)
    left, top = box["x"] + box["width"] * (0.25 + 0.02 * number), box["y"] + box["height"] * 0.3
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + box["width"] * 0.3, top + box["height"] * 0.4, steps=8)
    began, used = time.perf_counter(), _read_cpu_s()
    page.mouse.up()
    _wait(page, is_selected=True)
    seconds, cpu_s = time.perf_counter() - began, _read_cpu_s() - used
    page.get_by_role("button", name=_SELECTED).click()
    _wait(page, is_selected=False)
    settle(page)
    return seconds, cpu_s


def _wait(page: Page, *, is_selected: bool) -> None:
    wanted = "true" if is_selected else "false"
    page.wait_for_function(_SHOWN.replace("WANTED", wanted), timeout=120_000, polling=50)
