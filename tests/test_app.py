"""Server start-up: no heavy imports before it responds, leftovers removed, failures logged."""

import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import app
from core.models import registry

ROOT = Path(__file__).resolve().parents[1]


def test_the_server_starts_without_the_heavy_libraries() -> None:
    """app.py answers its health check before torch is imported; only pages need it."""
    heavy = {"torch", "timm", "sklearn", "umap", "faiss", "openvino", "lightning"}
    code = f"import sys, app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_a_killed_writer_left_is_dropped(tmp_path: Path) -> None:
    left = tmp_path / ".writing-demo-999999999"
    left.mkdir()
    app.import_and_tidy(tmp_path)
    assert not left.exists()
    app.import_and_tidy(tmp_path / "not there yet")


def test_libraries_do_not_chat_in_the_log() -> None:
    app.set_up_logging()
    for name in ("faiss.loader", "highdicom.sr.content"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)


def test_a_start_that_fails_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(registry, "clean_leftovers", fail)
    with pytest.raises(PermissionError):
        app.import_and_tidy(tmp_path)
    assert "the app cannot start its pages" in caplog.text


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("shade", ["light", "dark"])
def test_buttons_can_be_read_and_seen_in_either_theme(shade: str) -> None:
    """Streamlit draws white text on the primary colour."""
    theme = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))[
        "theme"
    ]
    for colours in (theme[shade], theme[shade]["sidebar"]):
        assert contrast("#ffffff", colours["primaryColor"]) >= 4.5
        for background in ("backgroundColor", "secondaryBackgroundColor"):
            assert contrast(colours["primaryColor"], colours[background]) >= 3.0
