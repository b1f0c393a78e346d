"""What people, files and tables say is never markup, a formula, a path or an option.

One model is trained on data whose class names, file names, columns and patients are hostile; then
every command, page, export and log is read for traces of obedience.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pypdf
import pytest
from page_diagnose import run_app, upload
from PIL import Image as PILImage
from streamlit.testing.v1 import AppTest

from core import __main__ as cli
from core.config import Settings
from core.files.names import escape_markdown, printable, show_name
from core.models.registry import load_bundle

ROOT = Path(__file__).resolve().parents[1]
NORMAL = "[red]no[/dr] **n** <b>$x$</b> :smile:"
DISEASE = "=1+1 [l](http://evil.example) ![i](x) `c` \u202ed"
FOLDER = "-rf [bold]x[bold] <i> $y$ :fire:"
REASON = "agreed [/dr x] **b** <script>alert(1)</script> $z$ :smile: \x1b[31mred"
COLUMN = "=cmd|' /C calc'!A0"
# Markup that would be seen as such: none of it may come out unescaped.
RAW = re.compile(
    r"(?<!\\)(\*\*n\*\*|\*\*b\*\*|\[l\]\(http|!\[i\]|<script|:smile:|:fire:|\$[xyz]\$)"
)
CONTROL = re.compile("[\x1b\u202e\x07]")


def build_data(root: Path) -> Path:
    rows = []
    rng = np.random.default_rng(0)
    (root / FOLDER).mkdir(parents=True)
    for i in range(48):
        name = f"{FOLDER}/{'=HYPERLINK(1)' if i % 3 else '[red]f[bold]'} {i}.png"
        label = DISEASE if i % 2 else NORMAL
        pixels = rng.integers(0, 120, (64, 64, 3), dtype=np.uint8)
        if i % 2:
            pixels[16:48, 16:48] += 120
        PILImage.fromarray(pixels).save(root / name)
        split = "test" if i >= 40 else ""
        rows.append([name, split, label, f"[p] {i // 2}", f"@{i}"])
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["file", "split", "label", "group", COLUMN], *rows])
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and a checkpoints folder with a model of them."""
    root = tmp_path_factory.mktemp("hostile")
    data, checkpoints = build_data(root / "places" / FOLDER), root / "ck"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEIGHBORDX_CHECKPOINTS", str(checkpoints))
        patch.setenv("NEIGHBORDX_DEVICE", "cpu")
        command = ["train", "--data", str(data), "--name", "m", "--preset", "tiny-random"]
        command += ["--set", "train.epochs=2", "--disease-class", DISEASE, "--no-check"]
        patch.setattr("sys.argv", ["core", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    return data, checkpoints


@pytest.fixture
def call(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    monkeypatch.setenv("NEIGHBORDX_CHECKPOINTS", str(places[1]))
    monkeypatch.setenv("NEIGHBORDX_DATA", str(places[0].parent))
    monkeypatch.setenv("NEIGHBORDX_DEVICE", "cpu")

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["core", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        assert int(ended.value.code or 0) == code, shown.err
        assert not CONTROL.search(shown.out + shown.err), arguments
        return shown.out + shown.err

    return run


@pytest.mark.slow
def test_commands_print_foreign_text_as_it_is(
    places: tuple[Path, Path], call: Callable[..., str], tmp_path: Path
) -> None:
    data, _checkpoints = places
    eyes = [str(path) for path in sorted(data.rglob("*.png"))[:3]]
    asked = ("--data", str(data), "--disease-class", DISEASE)
    assert "[red]no[/dr] **n**" in call("audit", *asked)
    assert "[red]f[bold]" in call("predict", "--model", "m", "--", *eyes)
    call("evaluate", "--model", "m", "--data", str(data))
    call("activate", "--model", "m", "--reason", REASON)
    assert "[/dr" in call("history")
    assert "m" in call("models")
    call("card", "--model", "m")
    call("findings", "--model", "m", "--csv", str(tmp_path / "f.csv"))
    call("fit-map", "--model", "m", "--method", "pca")
    key = next(iter(load_bundle(places[1], "m", settings=Settings.from_env()).gallery.keys))
    call("gallery", "--model", "m", "--exclude", key, "--author", REASON)
    assert "[/dr x]" in call("gallery", "--model", "m", "--undo", "--author", REASON)
    report = ("report", "--model", "m", "--html", str(tmp_path / "r.html"))
    call(*report, "--pdf", str(tmp_path / "r.pdf"))
    call("export", "--model", "m", str(tmp_path / "m.neighbordx"))
    call("import", str(tmp_path / "m.neighbordx"), "--name", "copy")
    call("delete", "--model", "copy", "--yes")
    job = call("jobs", "evaluate", "--model", "m", "--data", str(data), "--wait").splitlines()
    call("jobs", "list")
    call("jobs", "show", next(line for line in job if re.fullmatch(r"[\d-]+", line)))
    wrongs = [("card", "--model"), ("unpack",), ("audit", "--data"), ("jobs", "show")]
    wrongs += [
        ("predict", "--model", "m", eyes[0], f"--{option}")
        for option in ("export", "heatmap-method")
    ]
    wrongs += [
        ("audit", "--data", str(data), f"--{o}") for o in ("layout", "folder", "class", "seed")
    ]
    for wrong in wrongs:
        assert "Error" in call(*wrong, f"{REASON}", code=2)
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b>$x$</b>" not in html
    assert "<script>alert" not in html
    pdf = "".join(page.extract_text() for page in pypdf.PdfReader(tmp_path / "r.pdf").pages)
    assert "[red]no[/dr]" in pdf.replace("\n", " ")
    for row in csv.reader(io.StringIO((tmp_path / "f.csv").read_text(encoding="utf-8"))):
        assert not any(cell[:1] in ("=", "@", "+") for cell in row), row


@pytest.mark.slow
def test_exports_hold_foreign_text_as_text(
    places: tuple[Path, Path], call: Callable[..., str], tmp_path: Path
) -> None:
    eye = sorted(places[0].rglob("*.png"))[0]
    out, table, cases = tmp_path / "o.json", tmp_path / "o.csv", tmp_path / "cases"
    call(
        "predict", "--model", "m", "--json", str(out), "--csv", str(table), "--to", str(cases),
        "--export", "pdf", "--export", "sc", "--export", "sr", "--", str(eye),
    )  # fmt: skip
    (row,) = json.loads(out.read_text(encoding="utf-8"))
    assert set(row["probabilities"]) == {NORMAL, DISEASE}
    cells = list(csv.reader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert not any(cell[:1] in ("=", "@", "+") for line in cells for cell in line)
    assert {path.suffix for path in cases.iterdir()} == {".pdf", ".dcm"}
    text = pypdf.PdfReader(next(cases.glob("*.pdf"))).pages[0].extract_text()
    assert "**n**" in text or "**d**" in text or "[l](http" in text.replace("\n", "")
    for path in cases.glob("*.dcm"):
        for element in pydicom.dcmread(path).iterall():
            if element.VR in ("LO", "SH", "CS", "PN") and not isinstance(element.value, bytes):
                values = element.value if element.VM > 1 else [element.value]
                limit = 64 if element.VR in ("LO", "PN") else 16
                assert all(len(str(value)) <= limit for value in values), element
                assert not any(CONTROL.search(str(value)) for value in values), element


def list_texts(app: AppTest) -> Iterator[tuple[str, str]]:
    """Every text of a page that Streamlit reads as Markdown."""
    for kind in (
        *("markdown", "caption", "info", "warning", "error", "success", "title", "header"),
        *("subheader", "expander", "button", "checkbox", "toggle", "radio", "metric", "table"),
    ):
        for element in app.get(kind):
            for name in ("value", "label", "help", "body"):
                text = getattr(element, name, None)
                if isinstance(text, str):
                    yield kind, text


@pytest.mark.slow
@pytest.mark.parametrize("page", ["finetune", "models", "explore", "evaluate", "diagnose"])
@pytest.mark.usefixtures("call")
def test_pages_show_foreign_text_as_it_is(
    page: str, places: tuple[Path, Path], call: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    call("evaluate", "--model", "m", "--data", str(places[0]))
    call("activate", "--model", "m", "--reason", REASON)
    caplog.set_level(logging.INFO)
    if page == "diagnose":
        eye = sorted(places[0].rglob("*.png"))[1]
        app = upload(run_app(), (eye.name, eye.read_bytes(), "image/png"))
        app = upload(app, (f"{REASON}.png", b"no picture", "image/png"))
    else:
        app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=120).run()
    if page == "finetune":
        app.selectbox[0].select(FOLDER).run()
    assert not app.exception
    shown = list(list_texts(app))
    assert shown
    for kind, text in shown:
        assert not RAW.search(text), (kind, text)
    for record in caplog.records:
        assert FOLDER not in record.getMessage()
        assert NORMAL not in record.getMessage()


@pytest.mark.parametrize(
    "text",
    ["**b**", "[a](http://x)", "![i](y)", "<script>", "$x$", ":smile:", "# h", "1. x", "- x",
     "a\n\n    code", "www.evil.example", "a@b.example", "`c`", "~s~", "|t|"],
)  # fmt: skip
def test_escaped_text_is_one_paragraph_of_the_same_words(text: str) -> None:
    from markdown_it import MarkdownIt

    (opening, inline, _closing) = MarkdownIt("commonmark").parse(escape_markdown(text))
    assert opening.type == "paragraph_open"
    assert {child.type for child in inline.children or ()} <= {"text", "text_special"}
    said = "".join(child.content for child in inline.children or ())
    assert said == " ".join(text.split("\n"))


def test_a_terminal_obeys_nothing() -> None:
    assert printable("a\x1b[31m\u202eb\x9bc\nd\udcfc") == "a\\x1b[31m\\u202eb\\x9bc\nd\\xfc"
    assert show_name("M\udcfcller") == "M\\xfcller"
