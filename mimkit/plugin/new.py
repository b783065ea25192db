"""Writing a plugin package from templates."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import mimkit
from mimkit.errors import RecipeError, nearest
from mimkit.files import reading, write_text
from mimkit.recipe.registry import CONTRACT

KINDS: Final = ("masker", "encoder", "target", "head", "loss")
_TEMPLATES: Final = Path(__file__).parent / "templates"


def write_plugin(name: str, kinds: Sequence[str], folder: Path) -> Path:
    """Writes a package with one small working part of each kind, a recipe, tests and a CI file.

    Args:
        name: of the distribution, such as ``"mimkit-mine"``.
        kinds: of `KINDS`.
        folder: to make; must not exist, or be empty.

    Returns: the folder.
    Raises: RecipeError if the name or a kind is none, or if the folder holds anything; DataError
        if it cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise RecipeError(
            f"plugin new: NAME must be lower-case letters and digits, joined by '-', such as "
            f"mimkit-mine, but is '{name}'."
        )
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(
                f"plugin new, --with: must name kinds of {', '.join(KINDS)}, but has '{kind}'."
                f"{nearest(kind, KINDS)}"
            )
    with reading(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken:
        raise RecipeError(
            f"{folder}: exists already and is left as it is. Choose another with --out."
        )
    package = name.replace("-", "_")
    short = package.removeprefix("mimkit_")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    chosen = [kind for kind in KINDS if kind in kinds]
    words = {
        "name": name,
        "package": package,
        "short": short,
        "kinds": chosen,
        "version": ".".join(mimkit.__version__.split(".")[:2]),
        "contract": CONTRACT,
    }
    for template, file in _files(package, short, chosen).items():
        write_text(folder / file, environment.get_template(template).render(words))
    write_text(folder / package / "py.typed", "")
    return folder


def _files(package: str, short: str, kinds: Sequence[str]) -> dict[str, str]:
    """Template to the file that it becomes."""
    return {
        "pyproject.toml.j2": "pyproject.toml",
        "README.md.j2": "README.md",
        "gitignore.j2": ".gitignore",
        "ci.yml.j2": ".github/workflows/test.yml",
        "init.py.j2": f"{package}/__init__.py",
        "recipe.toml.j2": f"{package}/recipes/{short}_shapes.toml",
        "test_conformance.py.j2": "tests/test_conformance.py",
        **{f"{kind}.py.j2": f"{package}/{kind}.py" for kind in kinds},
        **{f"test_{kind}.py.j2": f"tests/test_{kind}.py" for kind in kinds},
    }
