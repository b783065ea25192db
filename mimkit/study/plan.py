"""Making the plan of a comparison: what will run, and what that will cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import mimkit
from mimkit.data.opening import find, open_labelled, open_source, open_sources
from mimkit.data.source import described
from mimkit.errors import DataError
from mimkit.files import write_json, write_text
from mimkit.pipeline.identity import write_data
from mimkit.recipe.schema import Recipe, resolved
from mimkit.study.draft import Draft, Settled, draft_method, recipe_of, settle_method, trimmed
from mimkit.study.folder import recipe_path
from mimkit.study.gauge import Gauge
from mimkit.study.matrix import Sizes, choose_sizes, for_trials
from mimkit.study.methods import Found, find_methods
from mimkit.study.question import Question
from mimkit.study.records import Budget, Method, Plan, Trial
from mimkit.study.refusals import (
    DATA,
    all_data,
    is_another,
    is_edited,
    is_of_other_version,
    is_on_other_data,
    kept_sizes,
    refuse_unfit,
    refuse_unlike,
)
from mimkit.study.rivals import with_weights
from mimkit.study.stage import WHOLE, Stage

PLAN: Final = "plan.json"
TRIAL_SEED: Final = 1_000_000
"""Of all trials: a seed that no run of a comparison has, so that nothing is chosen by its luck."""
_RENDERING: Final = {"image_size", "patch_size", "mean", "std", "interpolation"}
"""Keys of a recipe's data that change nothing of which images there are."""


def make_plan(
    question: Question,
    folder: Path,
    console: Console,
    gauge: Gauge,
    stage: Stage = WHOLE,
    *,
    keep: bool = True,
) -> Plan:
    """Plans a comparison, or goes on with the plan that lies in the folder.

    Methods and seeds that the earlier plan lacks are added to it; what it has is kept, with its
    trials, so that its runs stay as they are.

    Args:
        question: what is compared.
        folder: of the comparison.
        console: where to talk.
        gauge: measures the methods.
        stage: what of the comparison is planned.
        keep: whether the plan is written into the folder, with its recipes.

    Raises: MimkitError if a recipe cannot be found or run, if the budget does not do, or if the
        folder holds another comparison.
    """
    earlier = read_plan(folder)
    if earlier is not None and (
        is_of_other_version(earlier, folder) or is_another(earlier, question, folder)
    ):
        earlier = None
    methods = stage.found or find_methods(question.methods, question.recipes)
    if not stage.trials:
        methods = with_weights(methods, question, console.print)
    found = {one.reference: one for one in methods}
    if stage.found is None:  # else that was said before
        announce(methods, console)
    data = all_data(found.values())
    if earlier is not None and is_on_other_data(data, folder):
        earlier = None
    known = {m.reference: m for m in earlier.methods} if earlier else {}
    for reference in known.keys() & found.keys():
        if not is_edited(known[reference], found[reference], folder):
            del found[reference]
    refuse_unlike(tuple(found.values()))
    if keep:  # else nothing takes so long that a refusal would come late
        refuse_unfit(tuple(found.values()), question, earlier, folder)
    budget = earlier.budget if earlier else question.budget or least_budget(tuple(found.values()))
    drafts = gauge.map(
        lambda one: draft_method(one, question, budget, gauge, stage.tenths), found.values()
    )
    sizes = _sizes(earlier, drafts, stage)
    settled: Sequence[Settled] = gauge.map(
        lambda draft: settle_method(draft, sizes, question, gauge), drafts
    )
    if earlier is None and question.evaluate is None:
        sizes, settled = trimmed(settled, sizes)
    known |= {one.method.reference: one.method for one in settled}
    plan = Plan(
        command=question.command,
        dataset=earlier.dataset if earlier else drafts[0].found.recipe.data.name,
        budget=budget,
        seeds=(TRIAL_SEED,)
        if stage.trials
        else tuple(range(max(question.seeds, len(earlier.seeds) if earlier else 0))),
        methods=tuple(known.values()),
        mimkit=mimkit.__version__,
        notes=(
            "fine-tuning, its augmentation, searches, label subsets and seeds are the same for all",
            "batch size, optimizer, pre-training augmentation and encoder are each recipe's own",
            *_of_others(tuple(known.values())),
        ),
        asked=question.fixed(),
        sizes=_plain(sizes),
    )
    if keep:
        for one in settled:
            recipe = recipe_of(one.draft, sizes, question, has_cls=one.has_cls)
            write_text(recipe_path(folder, one.method.label), resolved(recipe))
        write_data(folder / DATA, data)
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


def _of_others(methods: Sequence[Method]) -> tuple[str, ...]:
    """Says of weights from elsewhere that the budget is not theirs."""
    names = [method.label for method in methods if not method.total_steps]
    if not names:
        return ()
    return (f"the budget is not that of {', '.join(names)}: trained elsewhere, judged alike",)


def _plain(sizes: Sizes) -> dict[str, Any]:
    """What a plan keeps of them."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(sizes).items()}
    for name in ("dense", "choosing"):  # newer than plans that people keep
        if not plain[name]:
            del plain[name]
    return plain


def _sizes(earlier: Plan | None, drafts: Sequence[Draft], stage: Stage) -> Sizes:
    """Sizes the evaluations once for all methods, after the one that sees the fewest images."""
    if earlier is not None:
        return kept_sizes(earlier)
    images = [d.total_steps * d.batch_size for d in drafts if not d.found.is_rival]
    sizes = choose_sizes(min(images), drafts[0].labelled)
    return for_trials(sizes) if stage.trials else sizes


def announce(found: Sequence[Found], console: Console) -> None:
    """Says once what the methods are run on, though each opens it anew."""
    lines: dict[str, None] = {}
    data_of = [one.recipe.data for one in found]
    for data in {each.model_dump_json(exclude=_RENDERING): each for each in data_of}.values():
        where = find(data)
        sources = (*open_sources(data, where), *(open_labelled(data, where) or ()))
        lines |= dict.fromkeys(described(*sources))
    for line in lines:
        console.print(line)


def least_budget(found: Sequence[Found]) -> Budget:
    """The images of the recipe that sees the fewest: all can afford those."""

    def images(recipe: Recipe) -> float:
        train = recipe.train
        if train.total_steps is not None:
            return float(train.total_steps * train.batch_size)
        assert train.total_epochs is not None
        return train.total_epochs * len(open_source(recipe.data, "train"))

    return Budget("images", min(images(one.recipe) for one in found if not one.is_rival))
