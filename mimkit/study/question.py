"""What the command line asks of a comparison."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from mimkit.study.records import Budget


@dataclass(frozen=True)
class Asked:
    """What the command line says of the recipes.

    Args:
        dataset: registered name, folder, parquet files, Hugging Face id or address; None: each
            recipe's own.
        preset: of every recipe, or None.
        overrides: ``a.b=VALUE`` settings for every recipe.
        data_path: where to look for the data first.
        labels: labelled images for the evaluations, or a table of files and labels, or None.
    """

    dataset: str | None
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    data_path: str | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Question:
    """All that the command line says.

    Args:
        methods: as the user calls them.
        recipes: what it says of their recipes.
        budget: of each run; None for the least that one of the recipes has.
        seeds: how many.
        evaluate: which evaluations; None for all that the data allow.
        device: where to compute, or None.
        jobs: runs at once.
        command: what was typed.
        within: seconds that all of it may take, from which preset and budget follow; None where
            those are given.
        against: weights from elsewhere that are judged beside the methods.
        start_from: weights from elsewhere with which each method is run once more.
        tune: trials of each method, each with a tenth of the budget, before its runs.
    """

    methods: tuple[str, ...]
    recipes: Asked
    budget: Budget | None
    seeds: int
    evaluate: tuple[str, ...] | None
    device: str | None
    jobs: int
    command: str
    within: float | None = None
    against: tuple[str, ...] = ()
    start_from: tuple[str, ...] = ()
    tune: int = 0

    def fixed(self) -> dict[str, Any]:
        """What must stay as it is while a comparison goes on; methods and seeds may be added."""
        said = asdict(replace(self, methods=(), seeds=0, jobs=0, command=""))
        plain: dict[str, Any] = json.loads(json.dumps(said))
        del plain["against"], plain["start_from"]  # added like methods
        if not self.tune:
            del plain["tune"]  # as earlier plans have it
        return plain
