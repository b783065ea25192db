"""One method of a plan: budget and evaluations laid over its recipe, and measured."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mimkit.comparison.budget import describe, images_of
from mimkit.comparison.folder import recipe_path
from mimkit.comparison.matrix import Sizes, evaluations
from mimkit.comparison.methods import (
    Found,
    fitted_batch,
    load_for,
    schedule,
)
from mimkit.comparison.question import Question
from mimkit.comparison.records import Budget, Method, Trial
from mimkit.comparison.trial import read_trial
from mimkit.console import headed
from mimkit.data.sources import Source, open_labelled, open_source
from mimkit.data.workers import cores
from mimkit.errors import RecipeError
from mimkit.files import write_text
from mimkit.recipe.schema import Recipe, resolved
from mimkit.train.signals import Interrupted, listen

_LOOK_EVERY_SECONDS: Final = 0.2
_TRIAL_STEPS: Final = 100
"""Steps of a recipe that is only measured, not run."""


def threads(jobs: int) -> int:
    """CPU threads of one run among ``jobs``."""
    return max(1, cores() // jobs)


@dataclass(frozen=True)
class Draft:
    """A method whose pre-training is settled, but not its evaluations."""

    found: Found
    train: dict[str, Any]
    batch_size: int
    total_steps: int
    labelled: Source
    notes: tuple[str, ...]


def draft_method(
    found: Found, question: Question, budget: Budget, folder: Path, console: Console
) -> Draft:
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
        prepared = f" and {_prepared(budget, trial)} go to its targets" if trial else ""
        raise RecipeError(
            f"--budget: {describe(budget)} must be enough for one step of {found.label}, but "
            f"{batch_size} images are one step{prepared}. Give more."
        )
    train = {**smaller, **schedule(found.recipe, total_steps, len(training))}
    return Draft(found, train, batch_size, total_steps, labelled, tuple(notes))


def _prepared(budget: Budget, trial: Trial) -> str:
    if budget.unit == "flops":
        return f"{trial.prepare_flops:.3g} operations"
    return f"{trial.prepare_seconds:.0f} s"


def settle_method(
    draft: Draft, sizes: Sizes, question: Question, folder: Path, console: Console
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
        digest=found.digest,
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
    console.print(headed("trial", label))
    command = [sys.executable, "-m", "mimkit.comparison.trial", str(held), str(file)]
    code, message = _call(
        command + ([question.device] if question.device else []),
        {"OMP_NUM_THREADS": str(threads(question.jobs)), **os.environ},
        label,
    )
    if code or not file.is_file():
        if code != 2:  # not in words for people: keep the last line of the traceback
            message = f"its trial failed: {message.splitlines()[-1] if message else 'killed'}"
        raise RecipeError(f"compare, method '{label}': {message}")
    return read_trial(file)


def _call(command: list[str], environment: dict[str, str], label: str) -> tuple[int, str]:
    """Runs a trial. It may train a tokenizer for hours, so a signal is passed on: it keeps that.

    Returns: the exit code, and what it wrote to the standard error.
    Raises: Interrupted after a signal, when the trial has ended.
    """
    asked = False
    with (
        listen() as request,
        # A session of its own: Ctrl-C comes to it from here alone, once.
        subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
    ):
        while True:
            with suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=_LOOK_EVERY_SECONDS)
                break
            if request.number is not None and not asked:
                process.send_signal(request.number)
                asked = True
    if request.number is not None:
        raise Interrupted(request.number, f"while the trial of {label} was at work")
    return process.returncode, said.strip()
