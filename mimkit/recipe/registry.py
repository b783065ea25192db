"""What is registered: parts, data sets, evaluators and recipes of all installed distributions.

Listing reads the metadata of installed distributions and imports nothing, so that it is fast and
that a broken plugin harms only the recipes that name it.
"""

import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import importlib_metadata

from mimkit.errors import PluginError, nearest

CONTRACT: Final = 1
"""Version of what parts and core expect of each other; it rises when plugins must change.

A plugin says which one it is made for by an entry point of the group ``mimkit.contract``, whose
name is the number; one that says nothing is taken to be made for this one.
"""


@dataclass(frozen=True)
class Kind:
    """One group of entry points.

    Args:
        singular: what one of them is called in messages.
        base: ``module:name`` of the class that each must extend, or None.
    """

    singular: str
    base: str | None = None


KINDS = {
    "maskers": Kind("masker", "mimkit.parts.masker:Masker"),
    "encoders": Kind("encoder", "mimkit.parts.encoder:Encoder"),
    "targets": Kind("target", "mimkit.parts.target:Target"),
    "heads": Kind("head", "mimkit.parts.head:Head"),
    "losses": Kind("loss", "mimkit.parts.loss:Loss"),
    "datasets": Kind("data set"),
    # By name: this layer stands below the evaluators.
    "evaluators": Kind("evaluator", "mimkit.evaluate.base:Evaluator"),
    "importers": Kind("importer", "mimkit.parts.importer:Importer"),
    "exporters": Kind("exporter", "mimkit.export.base:Exporter"),
    "launchers": Kind("launcher", "mimkit.launch.base:Launcher"),
    "trackers": Kind("tracker", "mimkit.track.base:Tracker"),
    "recipes": Kind("recipe"),
}


class Point(NamedTuple):
    """An entry point, with what is asked of its distribution."""

    name: str
    value: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Args:
        kind: a key of `KINDS`.
        name: the registered name, which recipes use.
        distribution: the installed distribution that offers it.
        version: of that distribution.
        value: ``module:object``; for a recipe the path of its file.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str

    def __str__(self) -> str:
        return f"{KINDS[self.kind].singular} '{self.name}' ({self.distribution} {self.version})"


def entries(kind: str) -> list[Entry]:
    """Lists what is registered under a kind, by name; nothing is imported.

    Raises: PluginError if there is no such kind.
    """
    if kind not in KINDS:
        raise PluginError(
            f"'{kind}' is not a kind of part; the kinds are {', '.join(KINDS)}."
            f"{nearest(kind, KINDS)} See: mimkit list"
        )
    found = [
        Entry(kind, point.name, point.distribution, point.version, point.value)
        for point in _entry_points(f"mimkit.{kind}")
    ]
    if kind == "recipes":
        found = [recipe for package in found for recipe in _recipes_of(package)]
    return sorted(found, key=lambda entry: (entry.name, entry.distribution))


def is_distribution(name: str) -> bool:
    """Whether an installed distribution of this name registers anything."""
    return any(
        same_distribution(point.distribution, name)
        for kind in KINDS
        for point in _entry_points(f"mimkit.{kind}")
    )


def same_distribution(one: str, other: str) -> bool:
    """Whether two spellings name one distribution, as ``mimkit_mine`` and ``mimkit-mine`` do."""
    return one.lower().replace("_", "-") == other.lower().replace("_", "-")


def find(kind: str, name: str) -> Entry:
    """Finds a registered name, or ``distribution:name`` where several offer it.

    Raises: PluginError if nothing or more than one distribution answers to it.
    """
    known = entries(kind)
    wanted, _, short = name.rpartition(":")
    matches = [
        entry for entry in known if entry.name == short and wanted in ("", entry.distribution)
    ]
    if len(matches) == 1:
        return matches[0]
    singular = KINDS[kind].singular
    if matches:
        choices = " or ".join(f"'{entry.distribution}:{entry.name}'" for entry in matches)
        raise PluginError(
            f"{singular} '{name}' must be one, but {len(matches)} distributions offer it. "
            f"Write {choices}. See: mimkit list {kind}"
        )
    full_names = (f"{entry.distribution}:{entry.name}" for entry in known)
    names = full_names if wanted else (entry.name for entry in known)
    raise PluginError(
        f"{singular} '{name}' is offered by no installed distribution.{nearest(name, names)} "
        f"See: mimkit list {kind}"
    )


def load(entry: Entry) -> object:
    """Imports what an entry names.

    Raises: PluginError if that fails, if it is not of the class that its kind demands, or if its
        distribution is made for another version of the contract.
    """
    made_for = _contract_of(entry.distribution)
    if made_for != CONTRACT:
        newer, name = made_for > CONTRACT, entry.distribution
        raise PluginError(
            f"{entry} must be made for version {CONTRACT} of mimkit's contract with plugins, but "
            f"{name} is made for version {made_for}. "
            + (
                f"Update mimkit (pip install -U mimkit), or install an earlier {name}."
                if newer
                else f"Update it: pip install -U {name}"
            )
        )
    try:
        loaded = pkgutil.resolve_name(entry.value)
    except Exception as error:  # a plugin's import may raise anything
        raise PluginError(
            f"{entry} cannot be loaded from {entry.value}: {type(error).__name__}: {error}. "
            f"Mend or update {entry.distribution}; --debug shows where it fails."
        ) from error
    base = KINDS[entry.kind].base
    if base is None:
        return loaded
    expected = pkgutil.resolve_name(base)
    if not (inspect.isclass(loaded) and issubclass(loaded, expected)):
        raise PluginError(
            f"{entry} must be a subclass of mimkit.{expected.__name__}, but {entry.value} is "
            f"{loaded!r}. Tell the authors of {entry.distribution}."
        )
    return loaded


def recipe_files() -> dict[str, Path]:
    """Returns the files of all registered recipes that one name stands for, by name."""
    known = entries("recipes")
    names = [entry.name for entry in known]
    return {entry.name: Path(entry.value) for entry in known if names.count(entry.name) == 1}


def _contract_of(distribution: str) -> int:
    stated = [
        int(point.name)
        for point in _entry_points("mimkit.contract")
        if point.distribution == distribution and point.name.isdecimal()
    ]
    return stated[0] if stated else CONTRACT


def _entry_points(group: str) -> Sequence[Point]:
    return _installed(tuple(sys.path)).get(group, ())


@cache
def _installed(path: tuple[str, ...]) -> Mapping[str, Sequence[Point]]:
    """Reads the metadata of all that is installed on ``path``, the path of imports, by group.

    Once, since a recipe asks for its parts one by one, and each reading takes a tenth of a second.
    """
    found: dict[str, list[Point]] = {}
    points = (p for p in importlib_metadata.entry_points() if p.group.startswith("mimkit."))
    for distribution, offered in groupby(points, key=lambda point: point.dist):
        if distribution is not None:
            name, version = distribution.name, distribution.version
            for point in offered:
                one = Point(point.name, point.value, name, version)
                found.setdefault(point.group, []).append(one)
    return found


def _recipes_of(package: Entry) -> list[Entry]:
    """Lists the recipes of an entry whose value is a package.

    They are in the package's folder ``recipes`` and below, or, in a source checkout, in that
    beside it. The package must be a top-level one: finding an inner one would import what is
    around it.
    """
    spec = importlib.util.find_spec(package.value.partition(".")[0])
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    if (folder.parent / "pyproject.toml").is_file() and not (folder / "recipes").is_dir():
        folder = folder.parent
    return [
        Entry("recipes", file.stem, package.distribution, package.version, str(file))
        for file in (folder / "recipes").rglob("*.toml")
    ]
