"""Finished runs judged once more, alike, and told in one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

import mimkit
from mimkit.console import headed, make_console
from mimkit.data.opening import open_labelled, open_source
from mimkit.data.source import Source
from mimkit.errors import DataError, MimkitError
from mimkit.folder import RunFolder
from mimkit.ownership import kind_of
from mimkit.pipeline.judge import Judged, judge
from mimkit.pipeline.judgement import Wish, is_finished, own_tables, recipe_of, refuse_unfinished
from mimkit.recipe.registry import find
from mimkit.recipe.schema import Recipe
from mimkit.report import ending
from mimkit.report.answer import answer
from mimkit.report.findings import Arm, Cell, Study
from mimkit.report.rows import Number, rows
from mimkit.report.verdicts import judge as verdicts_of
from mimkit.study.gather import unlike
from mimkit.study.matrix import choose_sizes, sized
from mimkit.train.encoder_file import load_encoder, read_record

_PASSES: Final = 100
"""Over the labelled images: what evaluations are sized by where nobody knows what was seen."""


@dataclass(frozen=True)
class Judging:
    """What the command line says.

    Args:
        runs: run folders, and folders with such below them.
        wish: on which data, and by which tables.
        names: of evaluators, each with the runs' own options if these are the same, else with those
            of a comparison, else with its defaults; None for the evaluations of each run's recipe.
        device: where to compute, or None.
        command: what was typed.
        verbose: also tell what searches find on development images.
    """

    runs: tuple[Path, ...]
    wish: Wish
    names: tuple[str, ...] | None
    device: str | None
    command: str
    verbose: bool = False


def evaluate(judging: Judging, *, console: Console | None = None) -> Study:
    """Judges all runs, one after the other; the same call goes on after a kill.

    Returns: what is known of the run on these data, or of all runs side by side.
    Raises: MimkitError for everything a user can mend.
    """
    console = console or make_console()
    for name in judging.names or ():
        find("evaluators", name)
    paths = _runs(judging.runs, console)
    found = []
    for path, wish in zip(paths, _wishes(paths, judging, console), strict=True):
        if len(paths) > 1:
            console.print(headed("run", path), soft_wrap=True)
        try:
            one = judge(
                path,
                wish,
                device=judging.device,
                command=judging.command,
                verbose=judging.verbose,
                console=console,
            )
        except MimkitError as error:
            if len(paths) == 1 or str(path) in str(error):
                raise
            raise type(error)(f"{path}: {error}") from error
        found.append(one)
    study = found[0].study if len(found) == 1 else _together(found, judging)
    ending.tell(console, study)
    for text in study.refused:
        console.print(text)
    for path in paths:
        console.print(headed("report", path / "report.html"), soft_wrap=True)
    return study


def _runs(asked: Sequence[Path], console: Console) -> list[Path]:
    """Finds the run folders that are meant; of those below a folder the finished ones.

    Raises: DataError if there is none, or one that is named is not finished.
    """
    found: dict[Path, None] = {}
    for path in asked:
        if (path / "recipe.toml").is_file() or not path.is_dir():
            refuse_unfinished(RunFolder(path))
            found[path] = None
            continue
        below = sorted(file.parent for file in path.rglob("recipe.toml"))
        runs = [folder for folder in below if kind_of(folder) == "run"]
        done = [folder for folder in runs if is_finished(RunFolder(folder))]
        for folder in runs:
            if folder not in done:
                console.print(f"{folder}: left out, since it is not finished", soft_wrap=True)
        if not done:
            raise DataError(
                f"{path}: must be the folder of a finished run, or have such below it, but has "
                f"{'unfinished ones alone' if runs else 'none'}. See what there is: ls runs/*/*"
            )
        found |= dict.fromkeys(done)
    return list(found)


def _wishes(paths: Sequence[Path], judging: Judging, console: Console) -> Iterator[Wish]:
    """Chooses the evaluations of each run.

    Runs that are judged together are judged alike: their own options are taken where all have the
    same. Those that are sized as in a comparison have one size for all, by the run that saw least.
    """
    if judging.names is None:
        yield from [judging.wish] * len(paths)
        return
    seen = [RunFolder(path).read_ledger().get("images_seen") for path in paths]
    images = min((count for count in seen if count), default=None)
    held = {path: own_tables(path / "recipe.toml") for path in paths}
    own: dict[str, list[dict[str, Any]]] = {}
    for name in judging.names:
        of_runs = [
            [table for table in held[path] if _bare(table["part"]) == _bare(name)] for path in paths
        ]
        own[name] = of_runs[0] if all(tables == of_runs[0] for tables in of_runs) else []
        if any(of_runs) and not own[name]:
            console.print(f"{name}: with the options of a comparison, as those of the runs differ")
    for path in paths:
        tables: list[dict[str, Any]] = []
        for name in judging.names:
            tables += own[name] or [_table(name, path, judging.wish, images)]
        yield replace(judging.wish, evaluate=tuple(tables))


def _table(name: str, path: Path, wish: Wish, images: float | None) -> dict[str, Any]:
    bare = {"part": name}
    recipe = recipe_of(RunFolder(path), replace(wish, evaluate=(bare,)))
    labelled = _labelled(recipe)
    sizes = choose_sizes(images or _PASSES * len(labelled), labelled)
    return {**bare, **sized(sizes, has_cls=_has_cls(path)).get(_bare(name), {})}


def _labelled(recipe: Recipe) -> Source:
    train, _ = open_labelled(recipe.data) or (open_source(recipe.data, "train"), None)
    return train


def _has_cls(path: Path) -> bool:
    """Whether the tokens of an encoder begin with a class token."""
    grid, channels = (read_record(path)[name] for name in ("grid", "channels"))
    size = [grid[axis] * grid["patch_size"] for axis in ("rows", "cols")]
    with torch.no_grad():
        tokens = load_encoder(path).features(torch.zeros(1, channels, *size))
    return tokens.prefix.shape[1] > 0


def _bare(part: str) -> str:
    return part.rpartition(":")[2]


def _together(found: Sequence[Judged], judging: Judging) -> Study:
    """Lays the results of several runs side by side: runs that differ in their seed are one method.

    Where they were judged on other images, that keeps their numbers apart.
    """
    cells = _cells(found)
    wanted = {_bare(table.name) for one in found for table in one.recipe.evaluate}
    outcomes, numbers = [], []
    apart = len({one.data for one in found}) > 1
    for cell, one in zip(cells, found, strict=True):
        (outcome,) = one.study.outcomes
        results = [each for each in outcome.results if each["evaluator"] in wanted]
        results = results or list(outcome.results)  # it calls itself by another name
        outcomes.append(replace(outcome, cell=cell, results=results))
        for result in results:
            protocol = {**result["protocol"], **({"data": one.data} if apart else {})}
            numbers.append(Number(cell.method, cell.seed, protocol, result))
    arms = {
        cell.method: Arm(cell.method, one.recipe.name, one.recipe.train.batch_size, (), one.path)
        for cell, one in zip(cells, found, strict=True)
    }
    table = rows(list(arms), numbers)
    verdicts = tuple(verdicts_of(row) for row in table)
    return Study(
        title=", ".join(arms),
        dataset=", ".join(dict.fromkeys(one.study.dataset for one in found)),
        folder=found[0].path.parent,
        command=judging.command,
        budget="",
        allowance="",
        seeds=tuple(sorted({cell.seed for cell in cells})),
        arms=tuple(arms.values()),
        outcomes=tuple(outcomes),
        verdicts=verdicts,
        answer=answer(verdicts, "", cells),
        refused=unlike(table),
        mimkit=mimkit.__version__,
    )


def _cells(found: Sequence[Judged]) -> list[Cell]:
    """Says which method and seed each run is; one of a name that is taken is called by its path."""
    methods: dict[str, tuple[Recipe, set[int]]] = {}
    cells = []
    for one in found:
        bare = one.recipe.model_copy(update={"seed": 0, "evaluate": []})
        label = next(
            (
                label
                for label, (recipe, seeds) in methods.items()
                if recipe.same_as(bare) and one.recipe.seed not in seeds
            ),
            one.recipe.name if one.recipe.name not in methods else str(one.path),
        )
        methods.setdefault(label, (bare, set()))[1].add(one.recipe.seed)
        cells.append(Cell(label, one.recipe.seed))
    return cells
