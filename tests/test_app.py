"""The server's start: nothing heavy before it answers, leftovers gone, failures said."""

import subprocess
import sys
from pathlib import Path

import pytest

import app
from core import registry

ROOT = Path(__file__).resolve().parents[1]


def test_the_server_starts_without_the_heavy_libraries() -> None:
    """app.py answers its health address before torch is imported: a page's first run needs it."""
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


def test_a_start_that_fails_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(registry, "clean_leftovers", fail)
    with pytest.raises(PermissionError):
        app.import_and_tidy(tmp_path)
    assert "the app cannot start its pages" in caplog.text
