"""The core imports only downwards, and knows no method."""

import ast
import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "mimkit").rglob("*.py"))
METHODS = re.compile(r"(?<![a-z])(selfie|beit|cae|mae|simmim|i_?jepa)(?![a-z])", re.IGNORECASE)


def code_words(path: Path) -> list[str]:
    """Names and strings of a file, without its docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    words = []
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                words.append(value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words.append(node.value)
    return words


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_core_names_a_method(path):
    assert not [word for word in code_words(path) if METHODS.search(word)]


def test_the_search_for_names_finds_one(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text('"""BEiT is fine here."""\nif head == "beit_linear":\n    pass  # CAE too\n')
    assert [word for word in code_words(file) if METHODS.search(word)] == ["beit_linear"]


def test_a_file_imports_only_lower_layers(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").glob("*/mimkit_*/*.py")), ids=lambda p: p.stem
)
def test_plugins_import_only_public_names_of_the_core(path):
    own = path.parent.name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for module in modules:
            assert not module.startswith("mimkit.")
            assert not module.startswith("mimkit_") or module.split(".")[0] == own
