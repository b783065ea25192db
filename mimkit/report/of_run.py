"""A run as a study of one method and one seed: from its folder to what it found."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mimkit import words
from mimkit.errors import DataError
from mimkit.folder import RunFolder, is_whole
from mimkit.report.answer import answer
from mimkit.report.findings import Arm, Cell, Outcome, Study
from mimkit.report.rows import Number, rows
from mimkit.report.verdicts import judge

LABEL: Final = "pre-training"
"""What the one method of a run is called where it is told from its baselines."""


def study(folder: RunFolder) -> Study:
    """Reads a run, however far it is.

    Its seeds are those of the evaluations: subsets of labels and first weights of what is trained
    on them. The encoder is the same in all of them.

    Raises: DataError if one of its files is damaged.
    """
    recipe, ledger = read_recipe(folder.recipe), folder.read_ledger()
    results = folder.read_results()["results"]
    seed, data, images = recipe.get("seed", 0), recipe.get("data", {}), ledger.get("images_seen")
    verdicts = tuple(
        judge(row)
        for row in rows(
            [LABEL], (Number(LABEL, one["seed"], one["protocol"], one) for one in results)
        )
    )
    compared = [found for found in verdicts if found.gains]
    budget = f"{words.count(images)} images seen" if images else ""
    command = ledger.get("command", "")
    outcome = Outcome(
        cell=Cell(LABEL, seed),
        state="finished" if is_whole(ledger) else "missing",
        folder=folder.path,
        command=command,
        ledger=ledger,
        results=results,
    )
    batch_size = recipe.get("train", {}).get("batch_size", 0)
    name = recipe.get("name", folder.path.name)
    return Study(
        title=name,
        dataset=data.get("name", ""),
        folder=folder.path,
        command=command,
        budget=budget,
        allowance="",
        seeds=(seed,),
        arms=(Arm(LABEL, name, batch_size, (), folder.recipe),),
        outcomes=(outcome,),
        verdicts=verdicts,
        answer=answer(compared, budget, ()) if compared else "",
        mimkit=ledger.get("mimkit", ""),
        is_run=True,
    )


def read_recipe(path: Path) -> Mapping[str, Any]:
    """Reads the recipe of a run as a tree; empty if there is none.

    Raises: DataError if it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: must be TOML, but is not ({error}).") from error
