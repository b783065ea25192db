"""What a tracker is: it shows somewhere else what a run writes into its folder.

A package adds one by an entry point of the group ``mimkit.trackers``, a subclass of `Tracker`.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from mimkit.errors import RecipeError
from mimkit.recipe import registry
from mimkit.recipe.registry import Entry

PROJECT: Final = "mimkit"
"""What runs are gathered under where the user names nothing else."""


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker is told of.

    >>> Tracked("mine", 0, {}, Path("trackers/x")).title
    'mine-0'

    Args:
        name: of its recipe, which runs of other seeds share.
        seed: of the run.
        recipe: with every default, as a tree.
        folder: for the tracker's own files; it has to be made.
        id: `Tracker.id` of the earlier call that this one goes on from; "" if there was none.
    """

    name: str
    seed: int
    recipe: Mapping[str, Any]
    folder: Path
    id: str = ""

    @property
    def title(self) -> str:
        """What people call the run."""
        return f"{self.name}-{self.seed}"

    @property
    def options(self) -> dict[str, str | int | float]:
        """The recipe's values by their keys, ``"train.lr"``; lists as text.

        >>> Tracked("mine", 0, {"train": {"lr": 0.1}, "evaluate": []}, Path("x")).options
        {'train.lr': 0.1, 'evaluate': '[]'}
        """
        return dict(_flat(self.recipe, ""))


class Tracker(ABC):
    """Is told what a run logs, draws and finds, in a process of its own.

    It may raise, wait or be killed: the run does not notice. It is told nothing twice, also where
    a killed run logs some steps once more, as long as what it was told is safe when a call returns.

    >>> class Printing(Tracker):
    ...     def __init__(self, run):
    ...         self.id = run.id or "1"
    ...     def log(self, step, values):
    ...         print(step, dict(values))
    ...     def picture(self, step, path):
    ...         print(step, path.name)
    ...     def finish(self, whole):
    ...         print("finished" if whole else "interrupted")
    >>> Printing(Tracked("mine", 0, {}, Path("x"))).log(2, {"loss/total": 0.5})
    2 {'loss/total': 0.5}

    Args:
        run: begun anew, or gone on with if it has an ``id``.
    """

    module: ClassVar[str] = ""
    """What must be importable, such as "wandb"; asked before anything is computed."""
    install: ClassVar[str] = ""
    """What pip installs it by."""
    id: str
    """Under what the tracker knows the run; set by the constructor."""

    @abstractmethod
    def __init__(self, run: Tracked) -> None:
        """See the class."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes finite numbers by their names, ``loss/total``; steps never fall.

        At the end come ``results/...``, means over the seeds of evaluations, and ``ledger/...``,
        what it has cost.
        """

    @abstractmethod
    def picture(self, step: int, path: Path) -> None:
        """Takes a PNG file of the run."""

    def keep(self, path: Path) -> None:  # noqa: B027 -- not every tracker can
        """Takes a file of a finished run: its recipe, results, ledger or report."""

    @abstractmethod
    def finish(self, whole: bool) -> None:
        """Is called last, when all is sent.

        Args:
            whole: the run is trained and evaluated; else it may go on later.
        """


def named(track: Sequence[str]) -> tuple[str, ...]:
    """Reads what the user named: each tracker once, after it was asked whether it could work.

    Args:
        track: names, each maybe several with commas between.

    Raises: PluginError if there is no such tracker, RecipeError if its package is missing.
    """
    names = tuple(dict.fromkeys(name for words in track for name in words.split(",")))
    for name in names:
        kind = tracker_class(registry.find("trackers", name))
        # A folder of that name, as wandb makes, would count as a package without a file.
        found = importlib.util.find_spec(kind.module) if kind.module else None
        if kind.module and (found is None or found.origin is None):
            raise RecipeError(
                f"--track {name}: needs {kind.module}, which is not installed. "
                f"Install it with: pip install '{kind.install or kind.module}'"
            )
    return names


def tracker_class(entry: Entry) -> type[Tracker]:
    """Imports a tracker.

    Raises: PluginError if that fails.
    """
    return cast(type[Tracker], registry.load(entry))


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str | int | float]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str | int | float) else str(value)
