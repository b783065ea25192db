"""Reading a recipe, with its presets and the settings of the command line."""

import codecs
import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mimkit.errors import RecipeError, nearest
from mimkit.recipe import registry
from mimkit.recipe.document import Document, given, parse, parse_sets, plain
from mimkit.recipe.problems import Problems, cut, shown
from mimkit.recipe.read.resolve import resolved
from mimkit.recipe.read.validate import validate
from mimkit.recipe.sections import AugmentSection, DataSection, TrainSection
from mimkit.recipe.tables import PartTable, Recipe, TermTable

__all__ = [
    "AugmentSection",
    "DataSection",
    "PartTable",
    "Recipe",
    "TermTable",
    "TrainSection",
    "check",
    "load",
    "resolved",
]

_LARGEST: Final = 1_000_000
"""Bytes of a recipe: reading many more would take minutes."""


def load(
    reference: str,
    *,
    preset: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    data_path: str | None = None,
) -> Recipe:
    """Reads a recipe.

    Args:
        reference: a file, or the name of a registered recipe.
        preset: which of its ``[presets.NAME]`` to lay over it.
        fixed: tables that follow from a checkpoint, laid over that.
        overrides: ``a.b=VALUE`` settings, laid over that.
        seed: if given, replaces ``seed``.
        data_path: if given, replaces ``data.path``.

    Raises: RecipeError with all of its problems, one a line; PluginError if no recipe of this
        name is registered.
    """
    documents, file = _read(reference)
    settings = parse_sets(overrides)
    if seed is not None:
        settings = settings.overlay(given(("seed",), seed, "--seed"))
    if data_path is not None:
        settings = settings.overlay(given(("data", "path"), data_path, "--data"))
    problems = Problems()
    chosen = _choose(documents, preset, problems)
    if fixed is not None:
        chosen = chosen.overlay(plain(dict(fixed), "the checkpoint"))
    return _finished(validate(chosen.overlay(settings), file, problems), problems)


def check(reference: str, *, preset: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe like `load`, and also reports the problems of the presets not chosen."""
    documents, file = _read(reference)
    problems = Problems()
    chosen = _choose(documents, preset, problems).overlay(parse_sets(overrides))
    recipe = validate(chosen, file, problems)
    for name in _preset_names(documents, problems):
        validate(_choose(documents, name, problems), file, problems)
    return _finished(recipe, problems)


def presets(reference: str) -> dict[str, frozenset[str]]:
    """Names the presets of a recipe, each with the keys of ``[data]`` that it changes.

    Raises: RecipeError if the recipe cannot be read.
    """
    documents, _ = _read(reference)
    found: dict[str, frozenset[str]] = {}
    for document in documents:
        for name, table in document.tree.get("presets", {}).items():
            data = Document(table, {}).tree.get("data", {})
            found[name] = found.get(name, frozenset()) | frozenset(data)
    return found


def _finished(recipe: Recipe | None, problems: Problems) -> Recipe:
    problems.raise_if_any()
    assert recipe is not None  # it is None only where there are problems
    return recipe


def _read(reference: str) -> tuple[list[Document], Path]:
    """Reads a recipe and those it is laid over: ``base`` names the one below; lowest first."""
    document, file = _parse(reference)
    documents, files = [document.without("base")], [file]
    while "base" in document.tree:
        base = document.tree["base"]
        if not isinstance(base, str):
            place = document.place(("base",))
            raise RecipeError(
                f"{place}, base: must be a recipe's name or file, but is {shown(base)}."
            )
        beside = files[0].parent / base
        document, below = _parse(str(beside) if base.endswith(".toml") else base)
        if below.resolve() in [each.resolve() for each in files]:
            chain = " -> ".join(str(each) for each in (*reversed(files), below))
            raise RecipeError(f"{file}, base: must not lead back to itself, but does: {chain}.")
        documents.insert(0, document.without("base"))
        files.insert(0, below)
    return documents, file


def _parse(reference: str) -> tuple[Document, Path]:
    try:
        file = _find(reference)
        text = _text(file)
    except (OSError, ValueError) as error:  # too long a name, a NUL in it, no permission, a folder
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(
            f"recipe '{cut(reference)}' cannot be read: {reason}. It must be a TOML file, or one "
            "of: mimkit list recipes"
        ) from error
    return parse(text, str(file)), file


def _find(reference: str) -> Path:
    """Returns the file of a recipe.

    Raises: RecipeError if there is none; OSError if the system refuses the name.
    """
    file = Path(reference)
    if file.is_file():
        return file
    if file.is_dir() and reference not in registry.recipe_files():
        raise IsADirectoryError(errno.EISDIR, "it is a folder without a recipe.toml")
    if file.suffix == ".toml" or len(file.parts) > 1:
        registered = registry.recipe_files()
        name = f" Without a path: '{file.stem}'." if file.stem in registered else ""
        known = [path.name for path in file.parent.glob("*.toml")] + list(registered)
        raise RecipeError(
            f"{file}: there is no such recipe file.{name or nearest(file.name, known)} "
            "For recipes that need no path, see: mimkit list recipes"
        )
    return Path(registry.find("recipes", reference).value)


def _text(file: Path) -> str:
    """Reads a recipe's text, with or without a byte-order mark.

    Raises: RecipeError if it is no text in UTF-8, or too large to be a recipe.
    """
    size = file.stat().st_size
    if size > _LARGEST:
        raise RecipeError(
            f"{file}: a recipe must have at most {_LARGEST:,} bytes, but this file has {size:,}."
        )
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RecipeError(f"{file}: must be text in UTF-8, but is in UTF-16. Save it as UTF-8.")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{file}:{line}: must be text in UTF-8, but has the byte {content[error.start]:#04x} "
            "in it. Save it as UTF-8."
        ) from error


def _preset_names(documents: Sequence[Document], problems: Problems) -> list[str]:
    names: dict[str, None] = {}
    for document in documents:
        presets = document.tree.get("presets", {})
        if not isinstance(presets, dict):
            problems.add(document, ("presets",), "must hold tables, such as [presets.demo].")
            continue
        for name, table in presets.items():
            if isinstance(table, dict):
                names[name] = None
            else:
                problems.add(document, ("presets", name), f"must be a table [presets.{name}].")
    return list(names)


def _choose(documents: Sequence[Document], preset: str | None, problems: Problems) -> Document:
    """Returns one document of all, each with its ``preset`` laid over it, but without presets.

    A recipe is laid over its base with the base's preset already chosen: what it changes, such
    as a part, it changes of that preset too.
    """
    known = _preset_names(documents, problems)
    chosen = documents[0].without("presets")
    for number, document in enumerate(documents):
        if number:
            chosen = chosen.overlay(document.without("presets"))
        if preset in known and preset in document.tree.get("presets", {}):
            chosen = chosen.overlay(document.preset(preset))
    if preset is not None and preset not in known:
        problems.add(
            documents[-1],
            ("presets",),
            f"--preset must be one of this recipe's presets ({', '.join(known) or 'it has none'}), "
            f"but is '{preset}'.{nearest(preset, known)}",
        )
    return chosen
