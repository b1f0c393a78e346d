"""The catalogues are complete and match the source; no text is shown untranslated."""

import ast
import re
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_file
from babel.messages.pofile import read_po

from core.errors import ImageError
from core.images import decode
from pages._text import ERRORS, find_language

ROOT = Path(__file__).resolve().parents[1]
LOCALE_DIR = ROOT / "assets" / "locale"
POT = LOCALE_DIR / "neighbordx.pot"
LANGUAGES = ("en", "zh_CN")
PAGES = sorted((ROOT / "pages").rglob("*.py"))

MessageId = str | tuple[str, ...]

# Calls that display text: all their positional strings and these keyword strings.
DISPLAY = {
    "title", "header", "subheader", "markdown", "caption", "text", "write", "info", "warning",
    "error", "success", "toast", "badge", "button", "download_button", "link_button", "selectbox",
    "multiselect", "radio", "pills", "segmented_control", "slider", "select_slider", "number_input",
    "text_input", "text_area", "toggle", "checkbox", "file_uploader", "expander", "popover", "tabs",
    "metric", "progress", "spinner", "status", "Page", "Column", "TextColumn", "NumberColumn",
    "ImageColumn", "ProgressColumn", "CheckboxColumn", "image", "dataframe", "plotly_chart",
    "add_annotation", "add_scatter", "add_bar", "_add_points", "_add_query", "_add_lines",
}  # fmt: skip
TEXT_KEYWORDS = {
    "label", "help", "caption", "alt", "placeholder", "text", "body", "title", "name", "delta",
    "hovertemplate",
}  # fmt: skip
TRANSLATORS = {"_", "ngettext", "N_"}
# The switch shows each language in its own name; downloads name a file and its type.
ALLOWED = {
    "Language / 语言",
    "neighbordx.json",
    "application/json",
    "neighbordx.csv",
    "text/csv",
    "selection.csv",
    "selection.txt",
    "text/plain",
}
# Streamlit identifies these widgets' options by text; pills and segments recover by themselves.
KEYED_BY_WORDS = {"selectbox", "radio", "multiselect"}
# Labels in either language; one widget per set of labels.
MENDED_OTHERWISE = {"'evaluate_other'", "picker"}
_MARKUP = re.compile(r":[a-z-]+/?[a-z_]*[:\[]|%\{[^}]*\}|<[^>]*>|\{[^}]*\}")


def load(path: Path) -> Catalog:
    with path.open("rb") as handle:
        return read_po(handle)


def messages(catalogue: Catalog) -> dict[MessageId, Message]:
    return {as_key(m.id): m for m in catalogue if m.id}


def as_key(message_id: str | list[str] | tuple[str, ...]) -> MessageId:
    return message_id if isinstance(message_id, str) else tuple(message_id)


def catalogue_path(language: str) -> Path:
    return LOCALE_DIR / language / "LC_MESSAGES" / "neighbordx.po"


def extract() -> set[MessageId]:
    return {
        as_key(message)
        for path in (*PAGES, ROOT / "core" / "data" / "decisions.py")
        for _line, message, *_rest in extract_from_file(
            "python", str(path), keywords=DEFAULT_KEYWORDS
        )
    }


def test_the_template_equals_a_fresh_extraction() -> None:
    assert set(messages(load(POT))) == extract()


def test_the_extractor_sees_every_translated_literal() -> None:
    """It does not look into f-strings, where a message would never be translated."""
    known = {part for m in extract() for part in ((m,) if isinstance(m, str) else m)}
    for path in PAGES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if is_translation(node):
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant):
                        assert argument.value in known, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_is_complete_both_ways(language: str) -> None:
    assert set(messages(load(catalogue_path(language)))) == set(messages(load(POT)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_fuzzy_or_empty_and_placeholders_agree(language: str) -> None:
    for key, message in messages(load(catalogue_path(language))).items():
        translations = [message.string] if isinstance(message.string, str) else message.string
        sources = [key] if isinstance(key, str) else list(key)
        assert not message.fuzzy, key
        for translation in translations:
            assert translation.strip(), key
            assert placeholders(translation) == placeholders(sources[-1]), key
            assert translation.count("**") == sources[-1].count("**"), key


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{[^}]*\}", text))


def test_english_is_the_source_itself() -> None:
    for key, message in messages(load(catalogue_path("en"))).items():
        assert as_key(message.string) == key


def test_chinese_is_chinese() -> None:
    for key, message in messages(load(catalogue_path("zh_CN"))).items():
        text = message.string if isinstance(message.string, str) else message.string[0]
        assert re.search(r"[\u4e00-\u9fff]", text), key


def is_translation(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in TRANSLATORS
    )


def find_bare_texts(source: str) -> list[tuple[int, str]]:
    """Text that is displayed without going through ``_``: (line, text)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and called_name(node.func) in DISPLAY:
            shown = [*node.args, *(k.value for k in node.keywords if k.arg in TEXT_KEYWORDS)]
            for value in shown:
                found += [(c.lineno, c.value) for c in literals(value) if has_words(c.value)]
    return found


def called_name(func: ast.expr) -> str:
    if isinstance(func, ast.Attribute):
        if isinstance(func.value, ast.Name) and func.value.id == "logger":
            return ""  # the log is not the screen
        return func.attr
    return func.id if isinstance(func, ast.Name) else ""


def literals(node: ast.AST) -> list[ast.Constant]:
    """String literals in an expression, but not those inside a call or a subscript."""
    if isinstance(node, ast.Constant):
        return [node] if isinstance(node.value, str) else []
    if isinstance(node, ast.Call):
        method = node.func
        if isinstance(method, ast.Attribute) and method.attr in ("format", "join"):
            return literals(method.value)  # "text {x}".format(...) is text
        return []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return []  # a path
    if isinstance(node, ast.Subscript | ast.Compare | ast.Lambda | ast.Attribute | ast.Dict):
        return []
    return [c for child in ast.iter_child_nodes(node) for c in literals(child)]


def has_words(text: str) -> bool:
    return text not in ALLOWED and bool(re.search(r"[^\W\d_]{2,}", _MARKUP.sub(" ", text)))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_text_on_a_page_is_translated(path: Path) -> None:
    assert find_bare_texts(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        'st.markdown("Hello there")',
        'st.sidebar.button("Press", help=_("ok"))',
        'st.image(x, alt="A picture")',
        'st.markdown(f"Model {name}")',
        'left.caption("Seen by {b}".format(b=b))',
        'st.markdown("## " + "Answer")',
        'figure.add_bar(name="disease")',
        'st.selectbox(_("Model"), ids, placeholder="Choose one")',
        'st.info(_("a") if x else "not translated")',
    ],
)
def test_the_detector_detects(source: str) -> None:
    assert len(find_bare_texts(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        'st.markdown(_("Hello there"))',
        'st.markdown("#### " + _("Hello"), unsafe_allow_html=False)',
        'st.markdown(f"**{plain(x)}** {_(y)}")',
        'st.markdown(":small[:material/link_off: " + _("moved") + "]")',
        'st.button(ngettext("{n} file", "{n} files", n).format(n=n), key="files")',
        'st.session_state.get("anything at all")',
        'logger.info("not on the screen")',
        'st.Page(ROOT / "pages" / "x.py", title=_("X"))',
        'figure.add_bar(hovertemplate=name + " %{x:.1%}<extra></extra>")',
    ],
)
def test_the_detector_spares_what_is_right(source: str) -> None:
    assert find_bare_texts(source) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_a_choice_in_translated_words_outlives_a_change_of_language(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or called_name(node.func) not in KEYED_BY_WORDS:
            continue
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if {"format_func", "key"} <= options.keys():
            kept = options["key"].startswith("shared.keep_choice(")
            assert kept or options["key"] in MENDED_OTHERWISE, f"{path.name}:{node.lineno}"


def test_the_sentence_on_what_is_no_image_names_what_core_reads() -> None:
    with pytest.raises(ImageError) as caught:
        decode.decode(b"no image at all", name="x")
    wanted = re.search(r"expected (.+?);", str(caught.value))
    assert wanted
    assert wanted[1].replace(" or ", " and ") in ERRORS["image.not_an_image"]


@pytest.mark.parametrize(
    ("tag", "code"),
    [("zh_CN", "zh_CN"), ("zh", "zh_CN"), ("zh-Hans-CN", "zh_CN"), ("简体中文", "zh_CN"),
     ("en-GB", "en"), ("English", "en"), ("de", None), ("", None)],
)  # fmt: skip
def test_a_language_is_known_by_its_tag_or_its_own_name(tag: str, code: str | None) -> None:
    assert find_language(tag) == code
