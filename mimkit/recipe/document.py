"""TOML text as a tree that remembers where each key was written, and overlays of such trees."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mimkit.errors import RecipeError

Key = tuple[str | int, ...]

_ALTERNATIVES = (
    ("total_steps", "total_epochs"),
    ("warmup_steps", "warmup_epochs"),
)
"""Keys of which a table holds one: an overlay that gives one takes the other away."""

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}'''
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[^"'\#\[\]{}=\n]+|.|\n""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Place:
    """Where something was written.

    Args:
        source: a file, or an option of the command line.
        line: counted from 1; 0 on the command line.
        preset: the preset in whose table it stands.
    """

    source: str
    line: int = 0
    preset: str | None = None

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return f"{where} (preset {self.preset})" if self.preset else where


@dataclass(frozen=True)
class Document:
    """A tree of TOML values.

    Args:
        tree: as `tomllib` gives it.
        places: key to where it was written; what is missing here was written with its table.
    """

    tree: dict[str, Any]
    places: Mapping[Key, Place] = field(default_factory=dict)

    def place(self, key: Key) -> Place:
        """Returns where a key, or the innermost table that should hold it, was written."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places[key]

    def at(self, key: Key) -> Any:
        """Returns the value of a key."""
        value: Any = self.tree
        for name in key:
            value = value[name]
        return value

    def overlay(self, other: "Document") -> "Document":
        """Lays another document over this one.

        Tables are merged, key by key; all else is replaced, and so is a table whose ``part``
        becomes another one, since options of the old part mean nothing to the new. A table
        ``part = "none"`` takes the one below it away.
        """
        places = dict(self.places)
        return Document(_merge(self.tree, other, (), places), places)

    def without(self, *names: str) -> "Document":
        """Returns this document less some of its top-level tables."""
        tree = {name: value for name, value in self.tree.items() if name not in names}
        return Document(tree, {k: p for k, p in self.places.items() if not (k and k[0] in names)})

    def preset(self, name: str) -> "Document":
        """Returns the table ``[presets.NAME]`` as a document of its own."""
        places = {
            key[2:]: Place(place.source, place.line, name)
            for key, place in self.places.items()
            if key[:2] == ("presets", name)
        }
        return Document(self.tree["presets"][name], places)


def parse(text: str, file: str) -> Document:
    """Reads TOML text.

    Raises: RecipeError with the line of the first syntax error.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        number = line.group(1) if line else text.count("\n") + 1
        raise RecipeError(
            f"{file}:{number}: this is not valid TOML: {error}. See: https://toml.io"
        ) from error
    first_lines = dict(reversed(list(_lines(text))))
    return Document(tree, {key: Place(file, line) for key, line in first_lines.items()})


def parse_sets(overrides: Iterable[str]) -> Document:
    """Reads ``a.b=VALUE`` options, where VALUE is TOML, or else a bare string.

    Raises: RecipeError if one is not of this form.
    """
    document = Document({}, {(): Place("--set")})
    for override in overrides:
        name, equals, text = override.partition("=")
        try:
            key = _split(name)
        except tomllib.TOMLDecodeError:
            key = ()
        if not (equals and key):
            raise RecipeError(f"--set {override}: must be KEY=VALUE, such as train.total_steps=40.")
        document = document.overlay(_single(key, _value(text.strip()), Place(f"--set {override}")))
    return document


def given(key: Key, value: object, option: str) -> Document:
    """Returns the document of one value that an option of the command line stands for."""
    return _single(key, value, Place(f"{option} {value}"))


def plain(tree: dict[str, Any], source: str) -> Document:
    """Returns a document that no recipe holds, such as what a checkpoint says of its model."""
    return Document(tree, {(): Place(source)})


def _single(key: Key, value: object, place: Place) -> Document:
    tree: Any = value
    for name in reversed(key):
        tree = {name: tree}
    return Document(tree, {key[:depth]: place for depth in range(len(key) + 1)})


def _value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _merge(base: Mapping[str, Any], over: Document, at: Key, places: dict[Key, Place]) -> Any:
    """Returns ``base`` with the table ``at`` of ``over`` laid over it; moves ``places`` along."""
    merged = dict(base)
    table = over.at(at)
    for pair in _ALTERNATIVES:
        if len(new := [name for name in pair if name in table]) == 1:
            merged.pop(next(name for name in pair if name not in new), None)
    for name, value in table.items():
        key, old = (*at, name), base.get(name)
        if isinstance(value, dict) and isinstance(old, dict) and _same_part(old, value):
            merged[name] = _merge(old, over, key, places)
            continue
        for stale in [known for known in places if known[: len(key)] == key]:
            del places[stale]
        if isinstance(value, dict) and value.get("part") == "none" and name in base:
            del merged[name]
            continue
        merged[name] = value
        places.update({k: p for k, p in over.places.items() if k[: len(key)] == key})
    return merged


def _same_part(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "part" not in old or "part" not in new or old["part"] == new["part"]


def _lines(text: str) -> Iterator[tuple[Key, int]]:
    """Yields the keys of valid TOML text with their lines; inner keys of values are left out."""
    yield (), 1
    table: Key = ()
    sizes: dict[Key, int] = {}  # of arrays of tables
    for line, statement in _statements(text):
        if statement.startswith("["):
            is_array = statement.startswith("[[")
            table = ()
            names = _split(statement.strip("[] \t\r"))
            for depth, name in enumerate(names, 1):
                table = (*table, name)
                if depth == len(names) and is_array:
                    sizes[table] = sizes.get(table, 0) + 1
                    yield table, line
                if table in sizes:
                    table = (*table, sizes[table] - 1)
                yield table, line
        else:
            key = table
            for name in _split(statement):
                key = (*key, name)
                yield key, line


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yields each statement's first line and text: a table's header, or what stands before "="."""
    line, first_line, depth, kept, at_value = 1, 1, 0, "", False
    for token in _TOKEN.findall(text + "\n"):
        if token == "\n" and depth == 0:
            if kept.strip():
                yield first_line, kept.strip()
            first_line, kept, at_value = line + 1, "", False
        elif token == "=" and depth == 0:
            at_value = True
        elif not at_value and not token.startswith("#"):
            kept += token
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        line += token.count("\n")


def _split(name: str) -> Key:
    """Splits a dotted key, in which names may be quoted."""
    tree: Any = tomllib.loads(f"{name} = 0")
    key: Key = ()
    while isinstance(tree, dict):
        ((part, tree),) = tree.items()
        key = (*key, part)
    return key
