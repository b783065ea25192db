"""Where two recipes ask for different runs, key by key."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mimkit.recipe.read.resolve import resolved
from mimkit.recipe.tables import MEANS, Recipe, last_of

_SHOWN: Final = 8
_MISSING: Final = object()
_NEVER: Final = ("data.path", "train.start_sha256")
"""Keys that make no other run: what they stand for is compared when it is opened."""


@dataclass(frozen=True)
class Difference:
    """One key whose values differ.

    Args:
        key: dotted, such as ``"train.lr"`` or ``"evaluate.0.k"``.
        held: what one recipe says, in words.
        asked: what the other one says.
    """

    key: str
    held: str
    asked: str

    def __str__(self) -> str:
        return f"{self.key}: {self.held} there, {self.asked} here"

    @property
    def is_option(self) -> bool:
        """Whether it is an option of a part, on which that part may yet decide (`Part.settle`)."""
        table = self.key.partition(".")[0]
        fixed = ("name", "seed", "data", "augment", "train")
        return table not in fixed and not self.key.endswith(".part")


def differences(held: Recipe, asked: Recipe) -> list[Difference]:
    """Compares two recipes, every default written out; not where the data lie, nor `MEANS`."""
    one, other = dict(_flat(held)), dict(_flat(asked))
    return [
        Difference(key, _words(one.get(key, _MISSING)), _words(other.get(key, _MISSING)))
        for key in dict.fromkeys((*one, *other))
        if _placeless(key, one.get(key, _MISSING)) != _placeless(key, other.get(key, _MISSING))
    ]


def same_data(held: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether two ``[data]`` of recipes written out in full name the same, wherever it lies."""

    def told(data: Mapping[str, Any]) -> dict[str, Any]:
        named = {name: _placeless(f"data.{name}", value) for name, value in data.items()}
        return {k: v for k, v in named.items() if v is not _MISSING and k != "workers"}

    return told(held) == told(asked)


def _placeless(key: str, value: Any) -> Any:
    if key in _NEVER or key in [f"train.{name}" for name in MEANS]:
        return _MISSING
    places = ("data.name", "data.labelled", "train.start_from")
    return last_of(value) if key in places and isinstance(value, str) else value


def listed(found: list[Difference]) -> str:
    """Names the first few differences, and says how many more there are."""
    more = len(found) - _SHOWN
    return "; ".join(map(str, found[:_SHOWN])) + (f"; and {more} more" if more > 0 else "")


def _flat(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    tree = tomllib.loads(resolved(recipe))
    del tree["origin"]
    return _leaves("", tree)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what stands in tables and in lists of tables; other lists are values."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}" if key else str(name), inner)


def _words(value: Any) -> str:
    if value is _MISSING:
        return "not given"
    return str(value).lower() if isinstance(value, bool) else repr(value)
