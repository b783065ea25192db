"""A recipe as it is after reading: validated, with every default written out."""

from pathlib import Path
from typing import Any, Final

from pydantic import Field

from mimkit.recipe.sections import AugmentSection, DataSection, Strict, TrainSection

MEANS: Final = ("accumulate", "compile", "parallel")
"""Keys of ``[train]`` that say how a step is computed, not what: a run may go on with others."""


class PartTable(Strict):
    """A part that a recipe names.

    Args:
        kind: a key of `mimkit.recipe.registry.KINDS`.
        name: as written: ``"random"``, or ``"distribution:random"``.
        cls: the class that it names.
        options: every option of its constructor.
        distribution: the installed distribution that offers it.
        version: of that distribution.
    """

    kind: str
    name: str
    cls: type[Any]
    options: dict[str, Any]
    distribution: str
    version: str


class TermTable(Strict):
    """A summand of the loss.

    Args:
        name: of its table, and in the logs.
        prediction: which of the head's predictions.
        target: which of the recipe's targets.
        weight: factor in the sum.
        loss: what compares the two.
    """

    name: str
    prediction: str
    target: str
    weight: float
    loss: PartTable


class Recipe(Strict):
    """What one run does.

    Args:
        name: of the recipe, and of the run's folder.
        seed: of everything random: weights, order, crops, masks.
        source: the file it was read from.
        places: table to where it stands, for messages: ``"masker"`` to ``"x.toml:9, [masker]"``;
            also each key with a value from the command line.
        notes: what a reader should know, such as versions other than those it was written with.
    """

    name: str
    seed: int
    data: DataSection
    augment: AugmentSection
    masker: PartTable
    encoder: PartTable
    targets: dict[str, PartTable]
    head: PartTable
    losses: dict[str, TermTable]
    train: TrainSection
    evaluate: list[PartTable]
    source: Path | None = None
    places: dict[str, str] = Field({})
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, PartTable]:
        """All parts by their tables' names, such as ``"masker"`` and ``"targets.patches"``."""
        return {
            "masker": self.masker,
            "encoder": self.encoder,
            **{f"targets.{name}": table for name, table in self.targets.items()},
            "head": self.head,
            **{f"losses.{name}": term.loss for name, term in self.losses.items()},
            **{f"evaluate.{number}": table for number, table in enumerate(self.evaluate)},
        }

    def where(self, table: str) -> str:
        """Returns where a table of this recipe stands, for messages."""
        return self.places.get(table, f"[{table}]")

    def same_as(self, other: "Recipe") -> bool:
        """Whether both ask for the same run, wherever they were read from and the data lie.

        That data and first weights are the same is told by what they hold, once they are opened.
        How a step is computed may change from call to call, as where memory was full.
        """
        return self._nowhere() == other._nowhere()

    def _nowhere(self) -> "Recipe":
        data = self.data.model_copy(
            update={
                "path": None,
                "name": last_of(self.data.name),
                "labelled": last_of(self.data.labelled),
            }
        )
        start = {"start_from": last_of(self.train.start_from), "start_sha256": None}
        train = self.train.model_copy(update={**dict.fromkeys(MEANS, "auto"), **start})
        nowhere: dict[str, object] = {
            "source": None,
            "places": {},
            "notes": (),
            "data": data,
            "train": train,
        }
        return self.model_copy(update=nowhere)


def last_of(place: str | None) -> str | None:
    """What stays of a path, or of a name, when the data are moved elsewhere."""
    return None if place is None else place.rstrip("/").rpartition("/")[2]
