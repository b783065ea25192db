"""A run as a study of one method and one seed: from its folder to what it found."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mimkit import words
from mimkit.errors import DataError
from mimkit.folder import RunFolder, is_whole
from mimkit.recipe.difference import same_data
from mimkit.report.answer import answer
from mimkit.report.findings import Arm, Cell, Outcome, Study
from mimkit.report.rows import Number, rows
from mimkit.report.verdicts import judge

LABEL: Final = "pre-training"
"""What the one method of a run is called where it is told from its baselines."""


def study(folder: RunFolder) -> Study:
    """Reads a run, however far it is, and what it was judged by later.

    Its seeds are those of the evaluations: subsets of labels and first weights of what is trained
    on them. The encoder is the same in all of them. What was judged later on the run's own data
    stands beside what the run itself has measured, but for numbers that both have.

    Raises: DataError if one of its files is damaged.
    """
    recipe = read_recipe(folder.recipe)
    results = folder.read_results()["results"]
    known = {_key(one) for one in results}
    elsewhere = []
    for name, later in folder.judgements().items():
        if same_data(read_recipe(later.recipe).get("data", {}), recipe.get("data", {})):
            more = [one for one in later.read_results()["results"] if _key(one) not in known]
            results += more
            known |= {_key(one) for one in more}
        else:
            found = later.read_results()["results"]
            elsewhere.append(_study(later, folder, read_recipe(later.recipe), found, name))
    whole = _study(folder, folder, recipe, results, recipe.get("data", {}).get("name", ""))
    return replace(whole, judgements=tuple(elsewhere))


def _key(result: Mapping[str, Any]) -> str:
    names = ("evaluator", "metric", "init", "seed", "protocol")
    return json.dumps([result[name] for name in names], sort_keys=True)


def _study(
    folder: RunFolder,
    run: RunFolder,
    recipe: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    dataset: str,
) -> Study:
    """Judges the results of a run on one data set; the folder is where these lie."""
    ledger, images = folder.read_ledger(), run.read_ledger().get("images_seen")
    seed = recipe.get("seed", 0)
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
    name = recipe.get("name", run.path.name)
    return Study(
        title=name,
        dataset=dataset,
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
