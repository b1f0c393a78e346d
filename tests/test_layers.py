"""The architecture: what each package of core owns, and that imports go one way.

CONTRIBUTING.md has the only list of packages (number, name, sentence). It is read from there, and
the folders, the packages' docstrings and every import are checked against it.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core"
_ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", re.MULTILINE)

MAY_IMPORT_TORCH = {"network", "models", "explanations", "training"}
# Tests of things other than packages of core.
OTHER_TESTS = {"app", "layers", "locale", "page"}


def read_packages() -> dict[str, tuple[int, str]]:
    """name -> (number, sentence), as listed in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {name: (int(number), sentence) for number, name, sentence in _ROW.findall(text)}


PACKAGES = read_packages()


def find_imports(source: str) -> set[str]:
    """Every name imported anywhere in a file, also lazily; ``from core import x`` is core.x."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            module = node.module or ""
            found.add(module)
            if module.split(".")[0] in ("core", "pages"):
                found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def list_modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_package(path: Path) -> str:
    """The package of core that a file belongs to; for core/x.py, x."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")


def test_the_list_names_every_package_once_and_in_order() -> None:
    numbers = [number for number, _ in PACKAGES.values()]
    assert numbers == list(range(len(PACKAGES)))
    assert set(PACKAGES) == {name_package(p) for p in list_modules("core")} - {"__init__"}


@pytest.mark.parametrize("name", [n for n in PACKAGES if n not in ("errors", "__main__")])
def test_a_package_says_the_sentence_of_the_list(name: str) -> None:
    text = (CORE / name / "__init__.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    said = " ".join(docstring.split("\n\n")[0].split())
    sentence = PACKAGES[name][1]
    assert said == sentence[0].upper() + sentence[1:] + "."


@pytest.mark.parametrize("path", list_modules("core"), ids=label)
def test_core_imports_only_lower_packages_and_no_private_module(path: Path) -> None:
    mine = name_package(path)
    number = PACKAGES[mine][0] if mine != "__init__" else -1
    for imported in find_imports(path.read_text(encoding="utf-8")):
        parts = imported.split(".")
        assert parts[0] not in ("pages", "app", "streamlit"), f"{mine} imports {imported}"
        if parts[0] == "core" and len(parts) > 1 and parts[1] != mine:
            assert PACKAGES[parts[1]][0] < number, f"{mine} imports {imported}"
            private = [p for p in parts[2:] if p.startswith("_")]
            assert not private, f"{mine} imports {imported}"
        if parts[0] in ("torch", "torchvision"):
            assert mine in MAY_IMPORT_TORCH, f"{mine} imports torch"
        if parts[0] == "faiss":
            assert mine == "gallery", f"{mine} imports faiss"


@pytest.mark.parametrize("path", list_modules("pages"), ids=label)
def test_pages_import_no_network_library_nor_another_screens_parts(path: Path) -> None:
    imports = find_imports(path.read_text(encoding="utf-8"))
    roots = {name.split(".")[0] for name in imports}
    assert not roots & {"torch", "torchvision", "timm", "app", "faiss"}
    screen = path.relative_to(ROOT / "pages").parts[0].removesuffix(".py").lstrip("_")
    for imported in imports:
        parts = imported.split(".")
        if parts[0] == "core":
            assert not [p for p in parts if p.startswith("_")], imported
        if parts[0] == "pages" and len(parts) > 1 and (ROOT / "pages" / parts[1]).is_dir():
            assert parts[1] in (f"_{screen}", "_charts"), f"{screen} imports {imported}"


def test_importing_a_package_loads_no_torch() -> None:
    """Packages themselves are light; torch (seconds) is imported by the modules that need it."""
    names = [n for n in PACKAGES if n != "__main__"]
    code = f"import sys, {', '.join(f'core.{n}' for n in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_finder_sees_lazy_imports() -> None:
    source = "def f():\n    import streamlit.web\n    from core import gallery\n"
    assert find_imports(source) == {"streamlit.web", "core", "core.gallery"}


def test_no_module_has_a_name_without_meaning() -> None:
    stems = {path.stem for folder in ("core", "pages", "tests") for path in list_modules(folder)}
    assert not stems & {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=lambda p: p.stem)
def test_a_test_module_is_named_after_its_package(path: Path) -> None:
    assert path.stem.split("_")[1] in {*PACKAGES, *OTHER_TESTS}
