"""Choosing the preset and the budget of a comparison by the time that there is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console

from mimkit import words
from mimkit.console import make_console
from mimkit.errors import RecipeError
from mimkit.memory import machine_bytes
from mimkit.recipe.schema import presets
from mimkit.study.budget import AUTO
from mimkit.study.gauge import Gauge
from mimkit.study.methods import find_methods
from mimkit.study.outlook import memory_of, seconds_of
from mimkit.study.plan import least_budget, make_plan, read_plan
from mimkit.study.question import Question
from mimkit.study.records import Budget, Plan

_ENOUGH_IMAGES: Final = 100_000
"""Seen by each run: with fewer a smaller network learns more in the same time."""
_FEWEST_IMAGES: Final = 1_000.0
_RENDERING: Final = frozenset({"image_size", "patch_size"})
"""Keys of ``[data]`` that change how images are seen, not which they are."""
_ROUNDS: Final = 5
_ENOUGH_USED: Final = 0.8
_SPARE: Final = 0.95
_MORE_TIME: Final = {"twice": 2, "ten times": 10}


@dataclass(frozen=True)
class Rung:
    """One preset that all methods have, with its plan at some budget.

    Args:
        preset: its name; None for the recipes as they are.
        plan: at the budget where it was measured.
        jobs: runs at once.
        most_images: that the recipes themselves would see.
    """

    preset: str | None
    plan: Plan
    jobs: int
    most_images: float

    @property
    def flops(self) -> float:
        """Operations of one image, of all methods together: how large the networks are."""
        return sum(method.trial.flops_per_image for method in self.plan.methods)

    def images(self, seconds: float) -> float:
        """Estimates what each run may see in a time: all but preparations grow alike."""
        planned = self.plan.budget.amount
        prepared = seconds_of(self.plan, self.jobs, images=0)
        one = (seconds_of(self.plan, self.jobs, images=planned) - prepared) / planned
        return min(self.most_images, max(0.0, (seconds - prepared) / one))


def chosen(question: Question, folder: Path, console: Console, gauge: Gauge) -> Question:
    """Returns the question with preset and budget decided, so that all of it fits the time.

    The largest preset that all methods have, of which every run can see 100,000 images; where no
    preset can, the one that can see the most. A comparison that goes on keeps what it chose.

    Args:
        question: of which ``within`` is known.
        folder: of the comparison.
        console: is told what was chosen, and what more time would allow.
        gauge: measures without preparing anything.

    Raises: RecipeError if a budget is given too, or the time is too short for any preset.
    """
    assert question.within is not None
    if question.budget is not None:
        raise RecipeError(
            "--within: chooses the budget, so --budget must be left out, but both are given. To "
            "choose the preset for a budget: --preset NAME."
        )
    earlier = read_plan(folder)
    if earlier is not None and earlier.asked.get("within") == question.within:
        return _with(question, earlier.asked["recipes"]["preset"], earlier.budget)
    console.print(f"looking for what fits {words.duration(question.within)}")
    rungs = _rungs(question, gauge)
    best = _best(rungs, question.within)
    least = float("inf")
    for rung in (best, *(other for other in rungs if other.flops < best.flops)):
        budget, seconds = _fitted(rung, question, gauge)
        if budget is not None:
            break
        least = min(least, seconds)
    else:
        raise RecipeError(
            f"--within {words.duration(question.within)}: must be enough for {_FEWEST_IMAGES:,.0f} "
            f"images a run and their judging, which take {words.duration(least)} or more. Give "
            "more time or fewer --seeds, or name fewer evaluations with --evaluate."
        )
    console.print(f"chosen: {_describe(rung.preset, budget.amount)} for each run")
    for time, factor in _MORE_TIME.items():
        more = factor * question.within
        other = _best(rungs, more)
        images = _round(other.images(more))
        console.print(f"  {time} the time would allow {_describe(other.preset, images)}")
    return _with(question, rung.preset, budget)


def _fitted(rung: Rung, question: Question, gauge: Gauge) -> tuple[Budget | None, float]:
    """Finds the images of a preset with which all fits the time, a plan for each guess.

    Returns: the budget, or None if not even a thousand images fit; and the seconds of the last
        guess.
    """
    assert question.within is not None
    goal = _SPARE * question.within
    known = [(rung.plan.budget.amount, seconds_of(rung.plan, rung.jobs))]
    images, best = _round(rung.images(goal)), 0.0
    for _ in range(_ROUNDS):
        images = max(_FEWEST_IMAGES, images)
        plan = _planned(_with(question, rung.preset, Budget("images", images)), gauge)
        seconds = seconds_of(plan, question.jobs)
        if seconds <= question.within:
            best = max(best, images)
        if images == _FEWEST_IMAGES and not best:
            return None, seconds
        if _ENOUGH_USED * question.within <= seconds <= question.within:
            break
        known.append((images, seconds))
        images = _round(min(rung.most_images, _guess(known, goal)))
        if images in {tried for tried, _ in known}:
            break
    return (Budget("images", best) if best else None), seconds


def _guess(known: Sequence[tuple[float, float]], goal: float) -> float:
    """Where a line through the last two plans meets the goal: judging has a least size."""
    (before, its), (last, took) = known[-2:]
    slope = (took - its) / (last - before) if last != before else 0.0
    return last + (goal - took) / slope if slope > 0 else last * goal / took


def _describe(preset: str | None, images: float) -> str:
    name = "the recipes as they are" if preset is None else f"--preset {preset}"
    return f"{name}, {words.count(images)} images"


def suggestions(question: Question, plan: Plan, gauge: Gauge) -> list[str]:
    """Names the presets that all methods have and with which the same plan takes less time."""
    if question.recipes.preset is not None:
        return []
    found = []
    for preset in _names(question)[1:]:
        smaller = _planned(_with(question, preset, plan.budget), gauge)
        seconds = seconds_of(smaller, question.jobs)
        if seconds < seconds_of(plan, question.jobs):
            found.append(f"with --preset {preset}: {words.about(seconds)}")
    return found


def _rungs(question: Question, gauge: Gauge) -> list[Rung]:
    """Measures every preset whose runs fit into memory, the largest networks first."""
    named = question.recipes.preset not in (None, AUTO)
    names = [question.recipes.preset] if named else _names(question)
    rungs = []
    for name in names:
        asked = replace(question.recipes, preset=name)
        most = least_budget(find_methods(question.methods, asked)).amount
        budget = Budget("images", min(most, _ENOUGH_IMAGES))
        plan = _planned(_with(question, name, budget), gauge)
        rungs.append(Rung(name, plan, question.jobs, most))
    memory = machine_bytes()
    able = [r for r in rungs if memory is None or memory_of(r.plan, r.jobs) <= memory]
    return sorted(able or rungs, key=lambda rung: -rung.flops)


def _names(question: Question) -> list[str | None]:
    """Lists the presets that all methods have and that leave the data alone; None comes first."""
    asked = replace(question.recipes, preset=None)
    offered = [presets(one.source) for one in find_methods(question.methods, asked)]
    common = [name for name in offered[0] if all(name in each for each in offered)]
    return [None, *(n for n in common if all(each[n] <= _RENDERING for each in offered))]


def _best(rungs: Sequence[Rung], seconds: float) -> Rung:
    enough = [rung for rung in rungs if rung.images(seconds) >= _goal(rung)]
    return enough[0] if enough else max(rungs, key=lambda rung: rung.images(seconds))


def _goal(rung: Rung) -> float:
    return min(_ENOUGH_IMAGES, rung.most_images)


def _with(question: Question, preset: str | None, budget: Budget | None) -> Question:
    return replace(question, recipes=replace(question.recipes, preset=preset), budget=budget)


def _planned(question: Question, gauge: Gauge) -> Plan:
    with TemporaryDirectory() as nowhere:  # what lies in the comparison's folder is not asked
        return make_plan(question, Path(nowhere), make_console(quiet=True), gauge, keep=False)


def _round(images: float) -> float:
    """Rounds down to two digits."""
    digits = 10 ** max(0, len(str(int(images))) - 2)
    return float(int(images) // digits * digits)
