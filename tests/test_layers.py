"""Imports run one way: app -> pages -> core, and inside core from high numbers to low."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {
    0: {"errors"},
    1: {"config", "files", "images", "stats"},
    2: {"data", "gallery", "network"},
    3: {"models"},
    4: {"explanations", "training"},
    5: {"answers"},
    6: {"assessment"},
    7: {"exploring", "export", "jobs"},
    8: {"cli"},
    9: {"__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
MAY_IMPORT_TORCH = {"explanations", "models", "network", "training"}


def find_imports(source: str) -> set[str]:
    """Every module imported anywhere in a file, lazily too; ``from core import x`` is core.x."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            module = node.module or ""
            found.add(module)
            if module in ("core", "pages"):
                found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def module_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")


def module_name(path: Path) -> str:
    return path.relative_to(ROOT / "core").parts[0].removesuffix(".py")


def test_every_core_module_has_a_layer() -> None:
    assert {module_name(path) for path in module_files("core")} == set(LAYER_OF)


@pytest.mark.parametrize("path", module_files("core"), ids=module_name)
def test_core_imports_only_lower_layers(path: Path) -> None:
    mine = module_name(path)
    imports = find_imports(path.read_text(encoding="utf-8"))
    for imported in imports:
        parts = imported.split(".")
        assert parts[0] not in ("pages", "app", "streamlit"), f"{mine} imports {imported}"
        if parts[0] == "core" and len(parts) > 1 and parts[1] != mine:
            assert LAYER_OF[parts[1]] < LAYER_OF[mine], f"{mine} imports {imported}"
        if parts[0] in ("torch", "torchvision"):
            assert mine in MAY_IMPORT_TORCH, f"{mine} imports torch"


@pytest.mark.parametrize("path", module_files("pages"), ids=lambda p: p.stem)
def test_pages_do_not_import_torch_or_the_app(path: Path) -> None:
    roots = {name.split(".")[0] for name in find_imports(path.read_text(encoding="utf-8"))}
    assert not roots & {"torch", "torchvision", "timm", "app", "faiss"}


def test_the_finder_sees_lazy_imports() -> None:
    source = "def f():\n    import streamlit.web\n    from core import knn\n"
    assert find_imports(source) == {"streamlit.web", "core", "core.knn"}


def test_no_module_has_a_name_without_meaning() -> None:
    stems = {path.stem for folder in ("core", "pages", "tests") for path in module_files(folder)}
    assert not stems & {"utils", "helpers", "common", "misc"}
