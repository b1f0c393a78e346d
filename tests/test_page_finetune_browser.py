"""The whole workflow in a browser: upload, train, restart, activate, diagnose, roll back."""

import io
import json
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_page_browser import browser, open_page, serve, settle, snap  # noqa: F401

from core.assessment.activation_gate import read_history
from core.images.phantom import write_dataset
from core.jobs import queue
from core.models import registry

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
NAME = "eyes"


@pytest.fixture(scope="module")
def phantoms_zip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Forty drawn eyes inside a wrapping folder, one of them twice."""
    folder = tmp_path_factory.mktemp("zip") / "my eyes"
    write_dataset(folder, n_train=40, n_test=12, size=96)
    first = sorted((folder / "train" / "normal").iterdir())[0]
    shutil.copy(first, folder / "train" / "normal" / "copy of it.png")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, str(path.relative_to(folder.parent)))
    return buffer.getvalue()


@pytest.fixture
def checkpoints(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the demo, so that there is a model to replace and to roll back to."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(tiny_checkpoints, folder)
    return folder


def click(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()
    page.wait_for_timeout(500)
    settle(page)


def wait_for_text(page: Any, text: str, *, seconds: float = 240) -> None:
    page.get_by_text(text).first.wait_for(timeout=seconds * 1000)
    settle(page)


def fill(page: Any, label: str, text: str) -> None:
    field = page.get_by_role("textbox", name=label).first  # not the help button of that name
    field.fill(text)
    field.press("Tab")
    page.wait_for_timeout(300)
    settle(page)


def upload(page: Any, name: str, data: bytes) -> None:
    page.get_by_test_id("stFileUploader").locator("input[type=file]").first.set_input_files(
        [{"name": name, "mimeType": "application/zip", "buffer": data}]
    )
    page.wait_for_timeout(1500)
    settle(page)


def test_the_whole_way_from_a_zip_to_a_rolled_back_model(
    checkpoints: Path,
    phantoms_zip: bytes,
    open_page: OpenPage,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shots = tmp_path_factory.mktemp("shots")
    with serve(checkpoints) as base:
        page = open_page(base + "/finetune")
        page.get_by_text("Upload a ZIP", exact=True).wait_for(timeout=120_000)
        page.get_by_text("Upload a ZIP", exact=True).click()
        settle(page)
        evil = io.BytesIO()
        with zipfile.ZipFile(evil, "w") as archive:
            archive.writestr("../evil.png", b"x")
        upload(page, "evil.zip", evil.getvalue())
        assert "points out of its folder" in page.get_by_test_id("stMain").inner_text()
        page.reload()
        settle(page)
        page.get_by_text("Upload a ZIP", exact=True).click()
        settle(page)
        upload(page, "my eyes.zip", phantoms_zip)
        wait_for_text(page, "Unpacked as")
        click(page, "Check the data")
        wait_for_text(page, "Images by class")
        text = page.get_by_test_id("stMain").inner_text()
        assert "group of identical images" in text
        assert page.locator("img:not([alt])").count() == 0
        fill(page, "Name of the new model", NAME)
        page.get_by_text("More settings").click()
        settle(page)
        fill(page, "Other settings, one per line", "\n".join(quick_settings()))
        click(page, "Measure")
        wait_for_text(page, "Measured on cpu for one run", seconds=1500)
        assert "no GPU" in page.get_by_test_id("stMain").inner_text()
        snap(page, shots / "finetune-1440.png")
        click(page, "Start training")
        wait_for_text(page, "Jobs run one at a time")
        click(page, "Delete this upload")
        wait_for_text(page, "Jobs are using these images")
        page.reload()  # the job is found again
        settle(page)
        other = open_page(base + "/finetune")  # another user sees it too
        for one in (page, other):
            assert NAME in one.get_by_test_id("stMain").inner_text()
            one.context.close()
    # The server dies in the middle of the run; the job does not.
    running = queue.list_jobs(checkpoints)
    (job,) = [j for j in running if j.kind == "train"]
    assert job.is_open
    with serve(checkpoints) as base:
        page = open_page(base + "/finetune")
        end = time.monotonic() + 500
        while queue.find(checkpoints, job.job_id).is_open:
            assert time.monotonic() < end
            time.sleep(1)
        assert queue.find(checkpoints, job.job_id).status == "done"
        page.wait_for_timeout(4000)
        settle(page)
        click(page, "View")
        wait_for_text(page, "Active triplets")
        assert page.locator(".js-plotly-plot").count() >= 4
        snap(page, shots / "live-1440.png")
        use_and_roll_back(page, base, checkpoints, shots)
        compare(page, base, shots)
        delete_upload(page, base, checkpoints)
        page.context.close()
    print(shots)  # noqa: T201 - where to look with pytest -s


def quick_settings() -> list[str]:
    return ["train.n_views=1", "preprocess.input_size=96"]


def use_and_roll_back(page: Any, base: str, checkpoints: Path, shots: Path) -> None:
    page.goto(base + "/models")
    settle(page)
    box = page.get_by_test_id("stSelectbox").filter(has_text="Selected model")
    box.locator("input").click()
    page.get_by_role("option", name=NAME, exact=True).click()
    page.wait_for_timeout(500)
    settle(page)
    assert "no measurement on the same images" in page.get_by_test_id("stMain").inner_text()
    assert page.get_by_role("button", name="Activate despite the gate").is_disabled()
    fill(page, "Why should it be activated anyway?", "A test of the whole way in a browser.")
    snap(page, shots / "models-1440.png")
    click(page, "Activate despite the gate")
    assert registry.active_model_id(checkpoints) == NAME
    (entry,) = read_history(checkpoints)
    assert (entry.action, entry.reason) == ("override", "A test of the whole way in a browser.")
    page.goto(base)
    settle(page)
    eye = sorted((checkpoints / ".data").rglob("test/disease/*.png"))[0]
    upload(page, "eye.png", eye.read_bytes())
    page.get_by_text("Research use, not a diagnosis.").last.wait_for(timeout=120_000)
    assert re.search(rf"\b{NAME}\b", page.get_by_test_id("stMain").inner_text())
    page.goto(base + "/models")
    settle(page)
    click(page, "Roll back to demo")
    assert registry.active_model_id(checkpoints) == "demo"
    assert [e.action for e in read_history(checkpoints)] == ["override", "roll-back"]
    assert json.loads((checkpoints / "activations.json").read_text(encoding="utf-8"))


def choose(page: Any, label: str, option: str | re.Pattern[str]) -> None:
    box = page.get_by_test_id("stSelectbox").filter(has_text=label)
    box.locator("input").click()
    page.get_by_role("option", name=option).first.click()
    page.wait_for_timeout(500)
    settle(page)


def compare(page: Any, base: str, shots: Path) -> None:
    page.goto(base + "/models")
    settle(page)
    page.get_by_text("Compare two", exact=True).click()
    settle(page)
    choose(page, "Candidate", NAME)
    choose(page, "Data", re.compile("^my-eyes"))
    click(page, "Compare")
    wait_for_text(page, "Could the difference be chance?", seconds=600)
    assert "Images with a changed answer" in page.get_by_test_id("stMain").inner_text()
    snap(page, shots / "compare-1440.png")


def delete_upload(page: Any, base: str, checkpoints: Path) -> None:
    (upload_folder,) = (checkpoints / ".data").glob("my-eyes*")
    page.goto(base + "/finetune")
    settle(page)
    choose(page, "Data", re.compile("^my-eyes"))
    click(page, "Delete this upload")
    wait_for_text(page, f"Models trained on them: {NAME}")
    click(page, "Delete permanently")
    page.wait_for_timeout(1000)
    settle(page)
    assert not upload_folder.exists()
    kinds = {job.kind for job in queue.list_jobs(checkpoints)}
    assert kinds == {"train"}  # its audit, evaluation and comparison were deleted with it


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800])
def test_both_pages_fit_their_window(
    checkpoints: Path,
    open_page: OpenPage,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    scheme: str,
) -> None:
    shots = tmp_path_factory.mktemp("shots")
    with serve(checkpoints) as base:
        for name in ("finetune", "models"):
            page = open_page(f"{base}/{name}", width=width, scheme=scheme)
            snap(page, shots / f"{name}-{width}-{scheme}.png")
            main = page.get_by_test_id("stMain")
            assert main.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
            page.context.close()
    print(shots)  # noqa: T201
