"""Fills marker lines of the pages from what is installed, so that no option is written down twice.

`mkdocs` calls `on_page_markdown` for every page (`hooks` in ``.mkdocs.yml``). The markers:

- ``<!-- options: maskers random -->``: what a registered part does, its options, its source
- ``<!-- keys: data -->``: the keys of a recipe's table that belongs to no part
- ``<!-- datasets -->`` and ``<!-- recipes -->``: what is registered
- ``<!-- include: CHANGELOG.md -->``: a file of the repository, its first heading left out
"""

import inspect
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mimkit.recipe.document import parse
from mimkit.recipe.options import annotation_of, describe, options
from mimkit.recipe.problems import written
from mimkit.recipe.registry import KINDS, Entry, entries, find, load
from mimkit.recipe.sections import AugmentSection, DataSection, TrainSection

ROOT: Final = Path(__file__).parents[2]
MARKER: Final = re.compile(r"^<!-- (options|keys|datasets|recipes|include)(?:: (.+))? -->$", re.M)
_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "data": DataSection,
    "augment": AugmentSection,
    "train": TrainSection,
}
_TITLE: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Shape|Source):", re.M)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replaces the markers of one page."""
    return MARKER.sub(lambda match: fill(match[1], match[2]), markdown)


def fill(marker: str, argument: str | None) -> str:
    """Returns the text that stands for a marker.

    Raises: PluginError if it names what is not registered; KeyError if it is no known marker.
    """
    makers: dict[str, Callable[..., str]] = {
        "options": part,
        "keys": keys,
        "datasets": datasets,
        "recipes": recipes,
        "include": include,
    }
    return makers[marker](*([] if argument is None else argument.split()))


def part(kind: str, name: str) -> str:
    """Returns what a registered part does, its options and its source."""
    entry = find(kind, name)
    cls = load(entry)
    assert isinstance(cls, type)
    about, sections = split_docstring(inspect.getdoc(cls) or "")
    blocks = [about, _table_of_options(entry, cls, sections), *_declared(kind, cls)]
    blocks += [
        f"*{title}:* {' '.join(sections[title].split())}"
        for title in ("Raises", "Source")
        if title in sections
    ]
    module, _, qualified = entry.value.partition(":")
    blocks.append(f"*From:* `{entry.distribution}`, class `{module}.{qualified}`")
    return "\n\n".join(block for block in blocks if block)


def split_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Splits a docstring into what stands before its sections, and these by title."""
    pieces = _TITLE.split(doc)
    return pieces[0].strip(), dict(zip(pieces[1::2], pieces[2::2], strict=True))


def keys(section: str) -> str:
    """Returns a table of the keys of ``[data]``, ``[augment]`` or ``[train]``."""
    rows = []
    for name, field in _SECTIONS[section].model_fields.items():
        default = "required" if field.default is PydanticUndefined else value(field.default)
        rows.append((f"`{name}`", describe(annotation_of(field)), default, field.description or ""))
    return _table(("key", "value", "default", "meaning"), rows)


def datasets() -> str:
    """Returns a table of the registered data sets."""
    rows = []
    for entry in entries("datasets"):
        found: Any = load(entry)
        size = " x ".join(map(str, found.image_size)) if found.image_size else "any"
        hub = f"`{found.hub}`" if found.hub else "nothing: drawn"
        rows.append((f"`{entry.name}`", size, found.num_classes, hub))
    return _table(("name", "pixels", "classes", "downloaded from the Hugging Face Hub"), rows)


def recipes() -> str:
    """Returns a table of the registered recipes, by the first line of their comment."""
    rows = []
    for entry in entries("recipes"):
        text = Path(entry.value).read_text(encoding="utf-8")
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        lines = itertools.takewhile(lambda line: not re.match(r"(run|cost):", line), (
            line.lstrip("# ") for line in comment
        ))  # fmt: skip
        presets = ", ".join(f"`{name}`" for name in parse(text, "").tree.get("presets", {}))
        rows.append((f"`{entry.name}`", " ".join(lines), presets))
    return _table(("name", "what it is", "presets of its own"), rows)


def include(path: str) -> str:
    """Returns a file of the repository without its first heading."""
    return re.sub(r"\A# .*\n", "", (ROOT / path).read_text(encoding="utf-8"))


def value(default: object) -> str:
    """Writes a default about as it stands in a recipe; None is what a recipe leaves out."""
    if default is None:
        return "not given"
    if isinstance(default, tuple):
        return f"`[{', '.join(value(item).strip('`') for item in default)}]`"
    return f"`{default:.6g}`" if isinstance(default, float) else f"`{written(default)}`"


def _table_of_options(entry: Entry, cls: type, sections: dict[str, str]) -> str:
    if entry.kind in ("importers", "exporters"):
        return ""
    pairs = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", sections.get("Args", ""), re.MULTILINE)
    meanings = {name: " ".join(text.split()) for name, text in pairs}
    rows = [
        (
            f"`{option.name}`",
            describe(option.annotation),
            "required" if option.default is ... else value(option.default),
            meanings.get(option.name, ""),
        )
        for option in options(entry, cls)
    ]
    if not rows:
        return f"This {KINDS[entry.kind].singular} has no options."
    return _table(("option", "value", "default", "meaning"), rows)


def _declared(kind: str, cls: Any) -> Iterable[str]:
    """Says what the class declares of itself, where that decides what it goes together with."""
    if kind == "losses":
        yield f"*Compares:* targets of kind {' or '.join(sorted(cls.kinds))}."
    if kind == "heads":
        hidden = cls.needs_hidden or cls.only_targets
        yield (
            f"*Maskers:* {'only those that hide patches inside the context' if hidden else 'any'}; "
            f"counts {'may' if cls.ragged else 'must not'} differ between images."
        )
    if kind == "evaluators":
        yield f"*Labels:* {'needed' if cls.needs_labels else 'not needed'}."


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(str(c).replace('|', '&#124;') for c in row)} |" for row in lines
    )
