"""What distributions require, as their metadata say it."""

from collections.abc import Iterable, Mapping
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ALONE: Final = frozenset({"dall-e"})
"""DALL-E declares test tools that nothing we import of it needs; `machine.txt` has the rest."""


def needs(name: str, requires: Iterable[str], environment: Mapping[str, str]) -> list[Requirement]:
    """Returns what a distribution needs to be imported.

    Args:
        name: of the distribution.
        requires: its ``Requires-Dist`` lines.
        environment: values of markers that differ from those of this Python.
    """
    if canonicalize_name(name) in _ALONE:
        return []
    found = [Requirement(line) for line in requires]
    without_extra = {**environment, "extra": ""}
    return [each for each in found if each.marker is None or each.marker.evaluate(without_extra)]
