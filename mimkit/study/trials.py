"""The trials of a tuned comparison: a comparison of its own, in a folder within the other's.

Each trial is an ordinary run. By its end nothing but ``chosen.json`` counts: a method that stands
there is not tried again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mimkit.errors import DataError
from mimkit.evaluate.fractions import held_back
from mimkit.files import write_json
from mimkit.folder import RunFolder
from mimkit.pipeline.adopt import was_stopped
from mimkit.report.answer import main_row
from mimkit.report.findings import Outcome, Tried, Tuning
from mimkit.study.folder import is_finished
from mimkit.study.gather import gather
from mimkit.study.gauge import Gauge
from mimkit.study.matrix import choose_sizes, chosen_by
from mimkit.study.methods import Found, find_methods
from mimkit.study.outlook import trials_table
from mimkit.study.plan import announce, make_plan
from mimkit.study.question import Question
from mimkit.study.records import Method, Plan
from mimkit.study.refusals import labelled_of, refuse_unfit, refuse_unlike
from mimkit.study.stage import TENTHS, Stage
from mimkit.study.tuning import Setting, refuse_number, settings, trial_of, tuned

_CHOSEN: Final = "chosen.json"


@dataclass(frozen=True)
class Trials:
    """What is tried before the runs.

    Args:
        question: of the comparison.
        found: its methods, as their recipes are.
        settings: what each tries, by its label.
        plan: of the trials, which are methods of their own there.
        folder: of the trials.
    """

    question: Question
    found: tuple[Found, ...]
    settings: Mapping[str, Sequence[Setting]]
    plan: Plan
    folder: Path

    def methods(self, label: str) -> list[Method]:
        """The trials of a method, in their order."""
        planned = {method.label: method for method in self.plan.methods}
        return [planned[f"{label}-{setting.number}"] for setting in self.settings[label]]

    @property
    def open(self) -> Plan:
        """Those of methods for which nothing is chosen yet, in turns."""
        held = chosen(self.folder, self.question.tune)
        rows = [self.methods(one.label) for one in self.found if one.label not in held]
        turns = [method for turn in zip(*rows, strict=True) for method in turn]
        return replace(self.plan, methods=tuple(turns))


def plan_trials(
    question: Question, folder: Path, console: Console, gauge: Gauge, *, keep: bool = True
) -> Trials:
    """Plans the trials of a comparison, or goes on with those in its folder.

    Args:
        question: what is compared.
        folder: of the comparison.
        console: where to talk.
        gauge: measures the trials.
        keep: whether the plan is written into the folder, with its recipes.

    Raises: MimkitError for what `make_plan` refuses of trials or runs; RecipeError if there are no
        labels to choose by.
    """
    refuse_number(question)
    asked = question.recipes
    found = find_methods(question.methods, asked)
    announce(found, console)
    refuse_unlike(found)
    labelled = labelled_of(found[0])
    by = chosen_by(question.evaluate, choose_sizes(len(labelled), labelled))
    held_back(labelled)  # refuses too few labels
    if keep:
        refuse_unfit(found, question, None, folder)
    tried = {one.label: settings(one, asked, question.tune) for one in found}
    stage = Stage(
        tuple(trial_of(one, asked, setting) for one in found for setting in tried[one.label]),
        tenths=1,
        trials=True,
    )
    within = folder / "tuning"
    plan = make_plan(
        replace(question, evaluate=(by,), seeds=1, tune=0),
        within,
        console,
        gauge,
        stage,
        keep=keep,
    )
    return Trials(question, found, tried, plan, within)


def tell_trials(trials: Trials, console: Console) -> None:
    """Lays the trials out for people."""
    finished = [cell for cell in trials.plan.cells if is_finished(cell, trials.folder)]
    planned = [
        (one.label, setting, method)
        for one in trials.found
        for setting, method in zip(
            trials.settings[one.label], trials.methods(one.label), strict=True
        )
    ]
    console.print(trials_table(trials.plan, planned, trials.question.jobs, finished))
    for label, setting, method in planned:
        if setting.number == 1:
            for note in method.notes:
                console.print(f"  trials of {label}: {note}")


def runs_after(trials: Trials) -> Stage:
    """The runs that follow: with what was chosen, or as the recipes are where nothing is yet."""
    held = chosen(trials.folder, trials.question.tune)
    num_trials = trials.question.tune

    def after(one: Found) -> Found:
        best = next((tried for tried in held.get(one.label, ()) if tried.chosen), None)
        if best is None:
            return one
        setting = trials.settings[one.label][best.number - 1]
        return tuned(one, trials.question.recipes, setting, num_trials)

    return Stage(tuple(map(after, trials.found)), tenths=TENTHS - num_trials)


def choose(trials: Trials) -> None:
    """Writes down the best trial of each method, once all of its trials have ended.

    A trial whose training diverged is a trial like others, and never chosen.

    Raises: DataError if one failed for another reason, or all of a method diverged.
    """
    file = trials.folder / _CHOSEN
    written = _read(file)
    held = chosen(trials.folder, trials.question.tune)
    for one in trials.found:
        if one.label not in held:
            written[one.label] = _choose(trials, one)
    write_json(file, written)


def chosen(folder: Path, num_trials: int) -> dict[str, tuple[Tried, ...]]:
    """Reads the trials of the methods for which something is chosen.

    Args:
        folder: of the trials.
        num_trials: of each method; where others were made, nothing is chosen.
    """
    return {
        label: tuple(Tried(**one) for one in held["tried"])
        for label, held in _read(folder / _CHOSEN).items()
        if len(held["tried"]) == num_trials
    }


def tuning_of(folder: Path, labels: Sequence[str], num_trials: int) -> Tuning | None:
    """Reads what was tried in a comparison; None if nothing was.

    Args:
        folder: of the comparison.
        labels: its methods, in their order.
        num_trials: of each.
    """
    held = chosen(folder / "tuning", num_trials)
    if not held:
        return None
    by = _read(folder / "tuning" / _CHOSEN)[next(iter(held))]["by"]
    tried = tuple(one for label in labels for one in held.get(label, ()))
    return Tuning(**by, num_trials=num_trials, tried=tried)


def _choose(trials: Trials, found: Found) -> dict[str, Any]:
    methods = trials.methods(found.label)
    study = gather(replace(trials.plan, methods=tuple(methods)), trials.folder)
    for outcome in study.outcomes:
        if outcome.state != "finished" and not was_stopped(RunFolder(outcome.folder)):
            raise _failed(outcome, trials.question)
    main = main_row(study.verdicts)
    scores = {
        label: mean.mean
        for (label, start), mean in (main.means if main else {}).items()
        if start == "pretrained" and mean.num_seeds
    }
    if main is None or not scores:
        raise DataError(
            f"compare, method '{found.label}': one of its {len(methods)} trials must train to the "
            "end, but the loss of all became NaN or Inf. Lower train.lr in its recipe."
        )
    best = max(
        (method.label for method in methods if method.label in scores), key=scores.__getitem__
    )
    tried = [
        Tried(
            found.label,
            setting.number,
            setting.factor,
            setting.factor * found.recipe.train.lr,
            dict(setting.options),
            scores.get(method.label),
            method.label == best,
        )
        for setting, method in zip(trials.settings[found.label], methods, strict=True)
    ]
    (num_images,) = {
        result["num_images"]
        for outcome in study.finished
        for result in outcome.results
        if (result["evaluator"], result["metric"]) == (main.row.evaluator, main.row.metric)
    }
    by = {
        "evaluator": main.row.evaluator,
        "metric": main.row.metric,
        "protocol": dict(main.row.protocol),
        "num_images": num_images,
    }
    return {"by": by, "tried": [asdict(one) for one in tried]}


def _failed(outcome: Outcome, question: Question) -> DataError:
    return DataError(
        f"compare: every method must get {question.tune} trials, but {outcome.cell.method} has "
        f"failed: {outcome.reason or 'it has not finished.'} Once that is mended, the same command "
        f"tries it again: {question.command}"
    )


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """What was chosen so far, by method; nothing if there is no such file.

    Raises: DataError if it is damaged.
    """
    if not file.is_file():
        return {}
    try:
        held: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        for one in held.values():
            _ = [Tried(**each) for each in one["tried"]], one["by"]["evaluator"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: must be what trials chose, but cannot be read ({error}). Remove it: the same "
            "command then chooses anew among the finished trials."
        ) from error
    return held
