"""TOML text as a tree that remembers where each key was written, and overlays of such trees."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mimkit.errors import RecipeError

Key = tuple[str | int, ...]

_ALTERNATIVES = (
    ("total_steps", "total_epochs"),
    ("warmup_steps", "warmup_epochs"),
)
"""Keys of which a table holds one: an overlay that gives one takes the other away."""

_DEEPEST: Final = 20
_TOLD: Final = 80
"""So many characters of a setting are repeated in messages."""

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

    def settings(self) -> dict[Key, Place]:
        """Returns the keys with values that options of the command line gave."""
        return {
            key: place
            for key, place in self.places.items()
            if key and place.source.startswith("--") and not isinstance(self.at(key), dict)
        }

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
        ``part = "none"`` takes the one below it away. A table whose keys are numbers changes the
        array below it, item by item.

        Raises: RecipeError if it changes an item that the array has not.
        """
        return self._laid_under(other, removes=True)

    def _laid_under(self, other: "Document", *, removes: bool) -> "Document":
        places = dict(self.places)
        tree = _merge(self.tree, _numbered(other, self.tree), (), places, removes)
        return Document(tree, places)

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
        found = re.search(r"at line (\d+)", str(error))
        number = int(found[1]) if found else text.count("\n") + 1
        raise RecipeError(
            f"{file}:{number}: this is not valid TOML: {error}.{_hint(text, number, str(error))} "
            "See: https://toml.io"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep brackets
        raise RecipeError(f"{file}: this TOML cannot be read: {error}.") from error
    _refuse_depth(tree, file)
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
        except (ValueError, RecursionError):
            key = ()
        if not (equals and key):
            told = f"--set {override[:_TOLD]}"
            raise RecipeError(f"{told}: must be KEY=VALUE, such as train.total_steps=40.")
        told = override if len(override) <= _TOLD else f"{override[:_TOLD]}..."
        setting = _single(key, _value(text.strip()), Place(f"--set {told}"))
        _refuse_depth(setting.tree, f"--set {told}")
        # What takes a table away must still be there when the settings meet the recipe.
        document = document._laid_under(setting, removes=False)
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
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _refuse_depth(value: object, where: str) -> None:
    """Refuses what is nested deeper than any recipe, before it is walked through.

    Raises: RecipeError if it is.
    """
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise RecipeError(f"{where}: must not be nested deeper than {_DEEPEST} tables or arrays.")


def _hint(text: str, number: int, error: str) -> str:
    """Says what is most often meant where a line is no TOML."""
    line = text.splitlines()[number - 1 : number]
    if "escape" in error or "hex value" in error or (line and re.search(r'= *"\w:\\', line[0])):
        path = "'C:\\Users'"
        return (
            f" A backslash in double quotes begins an escape; write paths in single quotes: {path}."
        )
    if "overwrite a value" in error or "twice" in error:
        return " A key or table may be written once only."
    return ""


def _numbered(over: Document, base: Mapping[str, Any]) -> Document:
    """Returns ``over`` with numbers for keys where its tables meet an array of ``base``.

    Raises: RecipeError if the array has no such item.
    """
    renamed: dict[Key, Key] = {}

    def table(value: Mapping[str, Any], below: Any, at: Key, new: Key) -> dict[Any, Any]:
        known = dict(enumerate(below)) if isinstance(below, list) else below
        found: dict[Any, Any] = {}
        for name, inner in value.items():
            key = _item(over, (*at, name), len(below)) if isinstance(below, list) else name
            old = known.get(key) if isinstance(known, dict) else None
            renamed[*at, name] = (*new, key)
            meets = isinstance(inner, dict) and isinstance(old, dict | list)
            found[key] = table(inner, old, (*at, name), (*new, key)) if meets else inner
        return found

    tree = table(over.tree, base, (), ())
    return Document(tree, {_renamed(key, renamed): place for key, place in over.places.items()})


def _renamed(key: Key, renamed: Mapping[Key, Key]) -> Key:
    """Returns a key of which the longest known beginning has another name."""
    for depth in range(len(key), 0, -1):
        if key[:depth] in renamed:
            return (*renamed[key[:depth]], *key[depth:])
    return key


def _item(over: Document, key: Key, length: int) -> int:
    name, array = str(key[-1]), ".".join(map(str, key[:-1]))
    if name.isdecimal() and name.isascii() and int(name[:9]) < length:
        return int(name)
    there = f"has {length}, numbered from 0" if length else "is empty"
    raise RecipeError(
        f"{over.place(key)}, {array}.{name}: must be the number of one of its items, but {array} "
        f"{there}. A new one is added by giving all: {array} = [...]."
    )


def _merge(base: Any, over: Document, at: Key, places: dict[Key, Place], removes: bool) -> Any:
    """Returns ``base`` with the table ``at`` of ``over`` laid over it; moves ``places`` along."""
    merged = dict(enumerate(base)) if isinstance(base, list) else dict(base)
    table = over.at(at)
    for pair in _ALTERNATIVES:
        if len(new := [name for name in pair if name in table]) == 1:
            merged.pop(next(name for name in pair if name not in new), None)
    for name, value in table.items():
        key, old = (*at, name), merged.get(name)
        if isinstance(value, dict) and (
            isinstance(old, list) or (isinstance(old, dict) and _same_part(old, value))
        ):
            merged[name] = _merge(old, over, key, places, removes)
            continue
        for stale in [known for known in places if known[: len(key)] == key]:
            del places[stale]
        if removes and isinstance(value, dict) and value.get("part") == "none" and name in merged:
            del merged[name]
            continue
        merged[name] = value
        places.update({k: p for k, p in over.places.items() if k[: len(key)] == key})
    return _closed_up(merged, at, places) if isinstance(base, list) else merged


def _closed_up(items: Mapping[int, Any], at: Key, places: dict[Key, Place]) -> list[Any]:
    """Returns the items that are left of an array; moves ``places`` to their new numbers."""
    depth = len(at)
    for new, old in enumerate(items):
        moved = {k: p for k, p in places.items() if k[: depth + 1] == (*at, old)}
        for key in moved:
            del places[key]
        places |= {(*at, new, *key[depth + 1 :]): place for key, place in moved.items()}
    return list(items.values())


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
