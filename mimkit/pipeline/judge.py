"""Judging a finished run once more: on other data, or by other evaluations.

What comes of it lies in the run folder, in a folder for each data, ``judgements/1-NAME``: the
recipe with all evaluations made so far, which data they were, finished cells, results, ledger. The
run's own ``results.json`` and report repeat the results under the data's name.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from torch import Tensor, nn

import mimkit
from mimkit.console import headed, make_console
from mimkit.data.opening import open_source
from mimkit.data.source import Source
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.base import Result
from mimkit.evaluate.statistics import summarise
from mimkit.files import write_text
from mimkit.folder import RunFolder, is_whole
from mimkit.parts.head import Head
from mimkit.parts.records import Mask, Tokens
from mimkit.pipeline.assemble import assemble, needs_targets, prepare
from mimkit.pipeline.current import Run, build_evaluators, judge_by
from mimkit.pipeline.identity import other_data, other_than_begun, splits, write_data
from mimkit.pipeline.judgement import Wish, recipe_of, refuse_unfinished, untrained
from mimkit.pipeline.ledger import write_ledger
from mimkit.recipe.difference import same_data
from mimkit.recipe.schema import PartTable, Recipe, load, resolved
from mimkit.recipe.settle import settle
from mimkit.recipe.tables import last_of
from mimkit.report import of_run
from mimkit.report.findings import Study
from mimkit.report.page import write_report
from mimkit.train import checkpoint
from mimkit.train.distributed import join
from mimkit.train.encoder_file import load_encoder
from mimkit.train.progress import Progress

_EVALUATION: Final = "evaluation"
"""Of a result in ``judgements/``: the number of its table in the recipe there."""
_HEADER: Final = """\
# Written by mimkit evaluate with every default: how the run two folders above was judged. The
# encoder is that of the run; run by itself, this file judges new weights.

"""


@dataclass(frozen=True)
class Judged:
    """A run that was judged.

    Args:
        path: its folder.
        recipe: of the judgement.
        study: all that is known of it on these data.
        data: names the images whose labels are read, and what they hold.
    """

    path: Path
    recipe: Recipe
    study: Study
    data: str


def judge(
    path: Path,
    wish: Wish,
    *,
    device: str | None = None,
    command: str = "",
    verbose: bool = False,
    console: Console | None = None,
) -> Judged:
    """Judges the encoder of a finished run, and adds the results to those of the run.

    What was judged before is not repeated, were it by a call that was killed.

    Args:
        path: the run folder.
        wish: on which data, and how.
        device: see `mimkit.train.distributed.join`.
        command: what the user typed, for the report.
        verbose: also tell what searches find on development images.
        console: where to talk; None makes one.

    Raises: MimkitError for everything a user can mend.
    """
    console = console or make_console()
    refuse_unfinished(RunFolder(path))
    with (
        join(device) as world,
        RunFolder(path, writable=True, say=console.print) as run,
    ):
        recipe = recipe_of(run, wish)
        if not recipe.evaluate:
            raise RecipeError(
                f"{path}: there must be something to judge it by, but its recipe has no evaluation "
                "for these data. Name some with --evaluate; see: mimkit list evaluators"
            )
        current = assemble(recipe, run, world, console, command, verbose=verbose)
        sources = splits(current.train, current.test, current.labelled)
        held = load(str(run.recipe))
        is_own = _asks_the_same(held, recipe)
        if is_own and (differ := other_than_begun(run, sources)):
            raise DataError(
                f"{path}: its data must be those that it was begun with, but {differ}. Put them "
                "back as they were; or judge it on the new ones under another name, with --dataset."
            )
        known = held.evaluate if is_own and is_whole(run.read_ledger()) else []
        left = [table for table in recipe.evaluate if not _is_among(table, known)]
        place = None
        if left:
            place = _place(run, recipe, sources)
            _judge(current, run, place, recipe, left)
        found = of_run.study(run)
        if place is not None and not is_own:
            found = next((one for one in found.judgements if one.folder == place.path), found)
        labelled = current.labelled[0] if current.labelled else current.train
        return Judged(path, recipe, found, f"{labelled.name} {labelled.fingerprint[:8]}")


def _judge(
    current: Run, run: RunFolder, place: RunFolder, recipe: Recipe, left: list[PartTable]
) -> None:
    """Makes the evaluations that are not known yet, and writes each down once it is done."""
    say = current.console.print
    settled = settle(recipe, say) if needs_targets(recipe) else recipe
    left = [settled.evaluate[recipe.evaluate.index(table)] for table in left]
    tables = load(str(place.recipe)).evaluate if place.recipe.is_file() else []
    if new := [table for table in left if not _is_among(table, tables)]:
        tables = [*tables, *new]
        write_text(place.recipe, resolved(settled.model_copy(update={"evaluate": tables}), _HEADER))
    write_data(place.data, splits(current.train, current.test, current.labelled))
    steps = run.read_ledger().get("steps", 0)
    found = _known(place, steps)
    asked = [next(n for n, each in enumerate(tables) if _is_alike(each, one)) for one in left]
    if numbers := [number for number in asked if number not in found]:
        current.folder = place
        todo = settled.model_copy(update={"evaluate": [tables[number] for number in numbers]})
        prepare(current, todo, _own_images(run) if needs_targets(todo) else None)
        _load_weights(current, run, steps)
        current.recipe = settled.model_copy(update={"evaluate": tables})
        evaluators, progress = build_evaluators(current), Progress(steps, 0.0, [])
        for number in numbers:
            say(headed("evaluate", tables[number].name))
            results = judge_by(current, number, evaluators[number])
            found[number] = [{**one.record, _EVALUATION: number} for one in results]
            if number == numbers[-1]:
                current.seconds["evaluate"] = current.seconds.pop("evaluating")
            write_ledger(current, None, progress)
            _write(place, found)
            # What is known can be read, whatever happens later.
            run.write_results(run.read_results())
            write_report(of_run.study(run))
        current.say_unread()


def _place(run: RunFolder, recipe: Recipe, sources: Mapping[str, Source]) -> RunFolder:
    """Finds the judgement of these data in a run, or the place of a new one."""
    data = tomllib.loads(resolved(recipe))["data"]
    last = 0
    for path in run.judgement_paths:
        place = run.judgement(path)
        known = of_run.read_recipe(place.recipe).get("data", {})
        if same_data(known, data) and not other_data(place.data, sources):
            return place
        last = int(path.name.partition("-")[0])
    name = last_of(recipe.data.labelled or recipe.data.name) or ""
    name = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip(".")
    return run.judgement(run.path / "judgements" / f"{last + 1}-{name}")


def _known(place: RunFolder, steps: int) -> dict[int, list[dict[str, Any]]]:
    """Reads the results of a judgement by the number of their evaluation.

    What another version of mimkit has measured, or of other weights, does not count; what stays
    true of it is known to the cells.
    """
    ledger = place.read_ledger()
    found: dict[int, list[dict[str, Any]]] = {}
    if (ledger.get("steps"), ledger.get("mimkit")) == (steps, mimkit.__version__):
        for entry in place.read_results()["results"]:
            found.setdefault(entry[_EVALUATION], []).append(entry)
    return found


def _write(place: RunFolder, found: Mapping[int, list[dict[str, Any]]]) -> None:
    entries = [entry for number in sorted(found) for entry in found[number]]
    results = [
        Result(**{name: value for name, value in entry.items() if name != _EVALUATION})
        for entry in entries
    ]
    place.write_results({"results": entries, **summarise(results)})


def _own_images(run: RunFolder) -> Source:
    """Opens the images on which the run's targets prepare themselves.

    Raises: DataError that says what they are for.
    """
    try:
        return open_source(load(str(run.recipe)).data, "train")
    except DataError as error:
        raise DataError(
            f"{run.path}: an evaluation of the pre-training task needs the run's own training "
            f"images, on which its targets are prepared, but {error}"
        ) from error


def _load_weights(current: Run, run: RunFolder, steps: int) -> None:
    """Loads what the run has learned: from its checkpoint, or else the encoder alone."""
    saved = checkpoint.find(run.checkpoints)[0]
    if saved is not None and saved.step == steps:
        checkpoint.restore_weights(saved, current.pretrainer, "Judge it with that version.")
        return
    current.pretrainer.encoder.load_state_dict(load_encoder(run.path).state_dict())
    current.pretrainer.head = _Gone(run.path)


class _Gone(Head):
    """Stands for a head whose weights lay in a checkpoint that is no longer there."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        raise self._error()

    def pooling(self) -> nn.Module | None:
        raise self._error()

    def _error(self) -> DataError:
        return DataError(
            f"{self.run}/checkpoints: must hold the last checkpoint of this run, whole, for "
            "evaluations that need its head, but does not. The encoder is kept by itself: other "
            "evaluations need no more."
        )


def _is_among(table: PartTable, tables: Sequence[PartTable]) -> bool:
    return any(_is_alike(table, other) for other in tables)


def _is_alike(one: PartTable, other: PartTable) -> bool:
    """Whether two evaluations are the same, whichever version offered them."""
    return one.cls is other.cls and one.options == other.options


def _asks_the_same(held: Recipe, recipe: Recipe) -> bool:
    """Whether a judgement is on the run's own data, in the run's own view of them."""
    bare = untrained(held).model_copy(update={"evaluate": []})
    return bare.same_as(recipe.model_copy(update={"evaluate": []}))
