"""The router: what an address can request, on every page."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]


def test_the_address_chooses_the_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    app = AppTest.from_file(ROOT / "pages" / "_router.py", default_timeout=20)
    app.query_params["lang"] = "zh_CN"
    app.run()
    assert not app.exception
    assert "仅供研究" in app.markdown[0].value


def test_the_sidebar_names_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    app = AppTest.from_file(ROOT / "pages" / "_router.py", default_timeout=20).run()
    assert any("Version 0." in text.value for text in app.sidebar.markdown)


def test_a_read_only_folder_of_models_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(tmp_path))
    router = ROOT / "pages" / "_router.py"
    app = AppTest.from_file(router, default_timeout=20).run()
    assert not any("read-only" in text.value for text in app.sidebar.caption)
    monkeypatch.setattr("os.access", lambda *_: False)
    app = AppTest.from_file(router, default_timeout=20).run()
    assert not app.exception
    assert any("is read-only" in text.value for text in app.sidebar.caption)
