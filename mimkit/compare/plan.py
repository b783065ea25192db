"""Making the plan of a comparison: what will run, and what that will cost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import mimkit
from mimkit.compare.budget import describe, images_of
from mimkit.compare.matrix import Sizes, choose_sizes, evaluations
from mimkit.compare.methods import (
    Asked,
    Found,
    find_methods,
    fitted_batch,
    load_for,
    recipe_path,
    schedule,
)
from mimkit.compare.records import Budget, Method, Plan, Trial
from mimkit.compare.trial import read_trial
from mimkit.data.sources import Source, open_labelled, open_source
from mimkit.data.workers import cores
from mimkit.errors import DataError, RecipeError
from mimkit.files import write_json, write_text
from mimkit.recipe.schema import Recipe, resolved
from mimkit.report import words

PLAN: Final = "plan.json"
_TRIAL_STEPS: Final = 100
"""Steps of a recipe that is only measured, not run."""


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
    """

    methods: tuple[str, ...]
    recipes: Asked
    budget: Budget | None
    seeds: int
    evaluate: tuple[str, ...] | None
    device: str | None
    jobs: int
    command: str

    def fixed(self) -> dict[str, Any]:
        """What must stay as it is while a comparison goes on; methods and seeds may be added."""
        said = asdict(replace(self, methods=(), seeds=0, jobs=0, command=""))
        plain: dict[str, Any] = json.loads(json.dumps(said))
        return plain


def make_plan(question: Question, folder: Path, console: Console) -> Plan:
    """Plans a comparison, or goes on with the plan that lies in the folder.

    Methods and seeds that the earlier plan lacks are added to it; what it has is kept, with its
    trials, so that its runs stay as they are.

    Raises: MimkitError if a recipe cannot be found or run, if the budget does not do, or if the
        folder holds another comparison.
    """
    earlier = read_plan(folder)
    if earlier is not None:
        _refuse_another(earlier, question, folder)
    known = {m.reference: m for m in earlier.methods} if earlier else {}
    found = {
        one.reference: one
        for one in find_methods(
            [reference for reference in question.methods if reference not in known],
            question.recipes,
        )
    }
    budget = earlier.budget if earlier else question.budget or _least(tuple(found.values()))
    drafts = [_draft(one, question, budget, folder, console) for one in found.values()]
    sizes = _sizes(earlier, drafts, known.values())
    for draft in drafts:
        known[draft.found.reference] = _settle(draft, sizes, question, folder, console)
    plan = Plan(
        command=question.command,
        dataset=question.recipes.dataset or "each recipe's own",
        budget=budget,
        seeds=tuple(range(max(question.seeds, len(earlier.seeds) if earlier else 0))),
        methods=tuple(known.values()),
        mimkit=mimkit.__version__,
        notes=(
            "fine-tuning, its augmentation, searches, label subsets and seeds are the same for all",
            "batch size, optimizer, pre-training augmentation and encoder are each recipe's own",
        ),
        asked=question.fixed(),
        sizes={**asdict(sizes), "fractions": list(sizes.fractions)},
    )
    write_json(folder / PLAN, asdict(plan))
    return plan


def read_plan(folder: Path) -> Plan | None:
    """Reads the plan of a comparison; None if there is none.

    Raises: DataError if it is damaged.
    """
    file = folder / PLAN
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        methods = tuple(
            Method(
                **{
                    **method,
                    "trial": Trial(**method["trial"]),
                    "notes": tuple(method["notes"]),
                }
            )
            for method in tree["methods"]
        )
        return Plan(
            **{
                **tree,
                "budget": Budget(**tree["budget"]),
                "seeds": tuple(tree["seeds"]),
                "methods": methods,
                "notes": tuple(tree["notes"]),
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: must be the plan of a comparison, but cannot be read ({error}). Remove it: "
            "the same command then plans anew and keeps all finished runs."
        ) from error


def table(plan: Plan, jobs: int) -> Table:
    """Lays the plan out for people."""
    found = Table(
        "method",
        "recipe",
        "steps x batch",
        "GFLOP/image",
        "trainable",
        "memory",
        "train",
        "evaluate",
        title=f"{len(plan.cells)} runs on {plan.dataset}: {describe(plan.budget)} for each method "
        f"and seed",
        title_justify="left",
    )
    for column in found.columns[2:]:
        column.justify = "right"
    for method in plan.methods:
        trial = method.trial
        found.add_row(
            method.label,
            Path(method.source).name,
            f"{method.total_steps:,} x {method.batch_size}",
            f"{trial.flops_per_image / 1e9:.2f}",
            words.magnitude(trial.parameters["trainable"]),
            words.memory(trial.peak_memory_bytes),
            words.duration(method.total_steps * trial.seconds_per_step),
            words.duration(method.evaluate_seconds),
        )
    seconds = seconds_left(plan) / jobs
    disk = words.memory(len(plan.seeds) * sum(m.disk_bytes for m in plan.methods))
    found.caption = f"about {words.duration(seconds)} with --jobs {jobs}, {disk} of disk"
    return found


def seconds_left(plan: Plan) -> float:
    """Estimates the work of all runs, one after the other; targets are prepared already."""
    one = sum(m.total_steps * m.trial.seconds_per_step + m.evaluate_seconds for m in plan.methods)
    return len(plan.seeds) * one


def threads(jobs: int) -> int:
    """CPU threads of one run among ``jobs``."""
    return max(1, cores() // jobs)


@dataclass(frozen=True)
class _Draft:
    """A method whose pre-training is settled, but not its evaluations."""

    found: Found
    train: dict[str, Any]
    batch_size: int
    total_steps: int
    labelled: Source
    notes: tuple[str, ...]


def _draft(
    found: Found, question: Question, budget: Budget, folder: Path, console: Console
) -> _Draft:
    """Lays the budget over a recipe; for time and FLOPs it must be measured first."""
    data = found.recipe.data
    training = open_source(data, "train")
    labelled, _ = open_labelled(data) or (training, None)
    trial = None
    if budget.unit in ("time", "flops"):
        train = {"total_steps": _TRIAL_STEPS, "warmup_steps": 0}
        first = load_for(found, question.recipes, {"train": train, "evaluate": []})
        trial, _ = _measure(first, found.label, question, folder, console)
    images = images_of(budget, found.recipe.train.batch_size, trial)
    smaller: dict[str, Any] = {}
    notes = list(found.notes)
    if budget.unit != "steps":
        smaller, said = fitted_batch(found.recipe, images, len(training))
        notes += said
    batch_size = smaller.get("batch_size", found.recipe.train.batch_size)
    total_steps = int(budget.amount) if budget.unit == "steps" else int(images / batch_size)
    if total_steps < 1:
        prepared = f" and {trial.prepare_seconds:.0f} s go to its targets" if trial else ""
        raise RecipeError(
            f"--budget: {describe(budget)} must be enough for one step of {found.label}, but "
            f"{batch_size} images are one step{prepared}. Give more."
        )
    train = {**smaller, **schedule(found.recipe, total_steps, len(training))}
    return _Draft(found, train, batch_size, total_steps, labelled, tuple(notes))


def _sizes(earlier: Plan | None, drafts: Sequence[_Draft], known: Iterable[Method]) -> Sizes:
    """Sizes the evaluations once for all methods, after the one that sees the fewest images.

    Raises: RecipeError if the methods are not run on the same images.
    """
    if earlier is not None:
        kept = dict(earlier.sizes)
        return Sizes(**{**kept, "fractions": tuple(kept["fractions"])})
    first = drafts[0]
    for draft in drafts:
        if draft.labelled.fingerprint != first.labelled.fingerprint:
            raise RecipeError(
                f"compare: all methods must be judged on the same images, but {first.found.label} "
                f"has {first.labelled.name} and {draft.found.label} {draft.labelled.name} "
                "(or another size or number of them). Name the data: --dataset."
            )
    images = [draft.total_steps * draft.batch_size for draft in drafts]
    return choose_sizes(min(images), first.labelled)


def _settle(
    draft: _Draft, sizes: Sizes, question: Question, folder: Path, console: Console
) -> Method:
    """Lays the evaluations over a recipe, writes it down and measures it."""
    found, total_steps = draft.found, draft.total_steps

    def recipe_with(has_cls: bool) -> Recipe:
        tables = evaluations(question.evaluate, sizes, has_cls=has_cls, total_steps=total_steps)
        return load_for(found, question.recipes, {"train": draft.train, "evaluate": tables})

    recipe = recipe_with(has_cls=False)
    if recipe.train.total_steps != total_steps or recipe.train.batch_size != draft.batch_size:
        raise RecipeError(
            "--set train.total_steps and train.batch_size: must not be set, as the budget decides "
            "on them. Use --budget steps=N."
        )
    trial, facts = _measure(recipe, found.label, question, folder, console)
    if facts["has_cls"]:
        recipe = recipe_with(has_cls=True)
    write_text(recipe_path(folder, found.label), resolved(recipe))
    return Method(
        label=found.label,
        reference=found.reference,
        source=found.source,
        batch_size=draft.batch_size,
        total_steps=total_steps,
        notes=draft.notes,
        trial=trial,
        evaluate_seconds=facts["evaluate_seconds"],
        disk_bytes=int(facts["disk_bytes"]),
    )


def _measure(
    recipe: Recipe, label: str, question: Question, folder: Path, console: Console
) -> tuple[Trial, dict[str, float]]:
    """Measures a recipe in a process of its own, as its runs will be, or finds that it was."""
    text = resolved(recipe)
    held, file = folder / "trials" / f"{label}.toml", folder / "trials" / f"{label}.json"
    if file.is_file() and held.is_file() and held.read_text(encoding="utf-8") == text:
        return read_trial(file)
    file.unlink(missing_ok=True)
    write_text(held, text)
    console.print(f"[bold]trial[/] {label}")
    command = [sys.executable, "-m", "mimkit.compare.trial", str(held), str(file)]
    done = subprocess.run(
        command + ([question.device] if question.device else []),
        env={"OMP_NUM_THREADS": str(threads(question.jobs)), **os.environ},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode or not file.is_file():
        message = done.stderr.strip()
        if done.returncode != 2:  # not in words for people: keep the last line of the traceback
            message = f"its trial failed: {message.splitlines()[-1] if message else 'killed'}"
        raise RecipeError(f"compare, method '{label}': {message}")
    return read_trial(file)


def _least(found: Sequence[Found]) -> Budget:
    """The images of the recipe that sees the fewest: all can afford those."""

    def images(recipe: Recipe) -> float:
        train = recipe.train
        if train.total_steps is not None:
            return float(train.total_steps * train.batch_size)
        assert train.total_epochs is not None
        return train.total_epochs * len(open_source(recipe.data, "train"))

    return Budget("images", min(images(one.recipe) for one in found))


def _refuse_another(earlier: Plan, question: Question, folder: Path) -> None:
    if earlier.mimkit != mimkit.__version__:
        raise DataError(
            f"{folder}: this comparison was begun with mimkit {earlier.mimkit}, and here is "
            f"{mimkit.__version__}: their runs must not be compared. Choose another folder with "
            "--out."
        )
    asked = question.fixed()
    if asked["budget"] is None:
        asked["budget"] = earlier.asked["budget"]
    differ = [name for name, value in earlier.asked.items() if asked.get(name) != value]
    if differ:
        was = ", ".join(f"{name} {earlier.asked[name]}" for name in differ)
        now = ", ".join(f"{name} {asked.get(name)}" for name in differ)
        raise DataError(
            f"{folder}: this folder holds another comparison (its {was}; asked for: {now}). "
            "Choose another folder with --out."
        )


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder lies or will lie."""
    place = folder
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
