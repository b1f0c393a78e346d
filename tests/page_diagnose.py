"""The Diagnose page under Streamlit's AppTest, and the files that it is given."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.answers.diagnose import diagnose as answer
from core.answers.diagnosis import Diagnosis
from core.images import phantom
from core.images.decode import Image, encode_png
from core.models.ensemble import Model
from pages import _shared as shared

ROOT = Path(__file__).resolve().parents[1]
ROUTER = ROOT / "pages" / "_router.py"

File = tuple[str, bytes, str]


def run_app() -> AppTest:
    return AppTest.from_file(str(ROUTER), default_timeout=120).run()


def open_page(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """Render the page first time with the models of a folder."""
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(checkpoints))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")
    return run_app()


def upload(app: AppTest, *files: File) -> AppTest:
    app.file_uploader(key=shared.UPLOADS_KEY).set_value(list(files))
    return app.run()


def picture(seed: int = 950_000, name: str = "eye.png") -> File:
    drawn = phantom.draw(seed, is_diseased=True, size=96)
    return (name, encode_png(drawn.pixels), "image/png")


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.subheader]
    return "\n".join(str(element.value) for element in shown)


def worklist(app: AppTest) -> list[dict[str, object]]:
    return list(app.dataframe[0].value.to_dict("records"))


def alter(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let the real model answer, then change the record, for states a tiny model cannot reach."""
    real = answer

    def diagnose(bundle: Model, images: Sequence[Image], **options: bool) -> list[Diagnosis]:
        return [dataclasses.replace(d, **changes) for d in real(bundle, images, **options)]

    monkeypatch.setattr("pages._diagnose.intake.diagnose", diagnose)


def find(elements: Sequence[Any], label: str) -> Any:
    return next(element for element in elements if element.label == label)
