"""What there is to know of one registered name; unlike the listings, this imports it."""

import importlib.util
import inspect
import itertools
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mimkit.recipe.describe.listing import origin, plain_table
from mimkit.recipe.document import parse
from mimkit.recipe.options import annotation_of, describe, options
from mimkit.recipe.problems import written
from mimkit.recipe.registry import KINDS, Entry, find, load
from mimkit.recipe.sections import SECTIONS


def show(kind: str, name: str, console: Console) -> None:
    """Prints what a registered name is, which options it has, and where it comes from.

    Raises: PluginError if it is not registered, or cannot be loaded.
    """
    entry = find(kind, name)
    about, file = _recipe(entry) if kind == "recipes" else _object(entry)
    console.print(f"{KINDS[kind].singular} {entry.name}", style="bold")
    for item in about:
        console.print(item)
    console.print(f"From: {origin(entry)}, {file}", soft_wrap=True)


def show_section(name: str, console: Console) -> None:
    """Prints the keys of a table of recipes that belongs to no part, such as ``[train]``."""
    section = SECTIONS[name]
    table = plain_table("key", "value", "default", "meaning")
    for key, field in section.model_fields.items():
        default = _default(... if field.is_required() else field.default)
        table.add_row(key, describe(annotation_of(field)), default, field.description or "")
    console.print(f"[{name}]", style="bold")
    console.print(table)


def _recipe(entry: Entry) -> tuple[list[str | Table], str]:
    text = Path(entry.value).read_text(encoding="utf-8")
    comments = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    presets = parse(text, entry.value).tree.get("presets", {})
    about = [line.lstrip("# ") for line in comments]
    return [*about, f"Presets: {', '.join(presets) or 'none'}"], entry.value


def _object(entry: Entry) -> tuple[list[str | Table], str]:
    loaded = load(entry)
    spec = importlib.util.find_spec(entry.value.partition(":")[0])
    file = str(spec.origin) if spec else ""
    if not isinstance(loaded, type):
        return [f"{name}: {value}" for name, value in vars(loaded).items()], file
    doc = inspect.getdoc(loaded) or ""
    about: list[str | Table] = [doc.partition("\n")[0]]
    if entry.kind not in ("importers", "exporters", "launchers", "trackers"):
        about.append(_options(entry, loaded, doc))
    if source := re.search(r"^Source: *(.*(?:\n +.*)*)", doc, re.MULTILINE):
        about.append(f"Source: {' '.join(source[1].split())}")
    return about, file


def _options(entry: Entry, part: type, doc: str) -> Table:
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", doc, re.MULTILINE))
    table = plain_table("option", "value", "default", "meaning")
    for option in options(entry, part):
        meaning = " ".join(meanings.get(option.name, "").split())
        table.add_row(option.name, describe(option.annotation), _default(option.default), meaning)
    return table


def _default(value: object) -> str:
    """A default as a recipe would write it; what is None cannot be written there."""
    if value is ...:
        return "required"
    return "not given" if value is None else written(value)
