"""Making the plan of a comparison: what will run, and what that will cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

import mimkit
from mimkit.comparison.draft import Draft, draft_method, settle_method
from mimkit.comparison.matrix import Sizes, choose_sizes
from mimkit.comparison.methods import (
    Found,
    find_methods,
)
from mimkit.comparison.question import Question
from mimkit.comparison.records import Budget, Method, Plan, Trial
from mimkit.data.sources import Source, find, open_labelled, open_source, open_sources
from mimkit.errors import DataError, RecipeError
from mimkit.files import write_json
from mimkit.pipeline.identity import FILE, keep_data_of_all, splits
from mimkit.recipe.schema import Recipe

PLAN: Final = "plan.json"


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
    found = {one.reference: one for one in find_methods(question.methods, question.recipes)}
    _keep_data(tuple(found.values()), folder, begun=earlier is not None)
    for reference in known.keys() & found.keys():
        _refuse_edited(known[reference], found.pop(reference), folder)
    budget = earlier.budget if earlier else question.budget or _least(tuple(found.values()))
    drafts = [draft_method(one, question, budget, folder, console) for one in found.values()]
    sizes = _sizes(earlier, drafts)
    for draft in drafts:
        known[draft.found.reference] = settle_method(draft, sizes, question, folder, console)
    plan = Plan(
        command=question.command,
        dataset=earlier.dataset if earlier else drafts[0].found.recipe.data.name,
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


def _keep_data(found: Sequence[Found], folder: Path, *, begun: bool) -> None:
    """Refuses data that changed since the comparison was begun: its runs share them."""
    opened: dict[str, dict[str, Source]] = {}
    sources: dict[str, Source] = {}
    for one in found:
        data = one.recipe.data
        section = data.model_dump_json()
        if section not in opened:
            where = find(data)
            drawn = where.images is None and where.labelled is None
            opened[section] = (
                {} if drawn else splits(*open_sources(data, where), open_labelled(data, where))
            )
        sources |= {f"{one.label} {split}": each for split, each in opened[section].items()}
    keep_data_of_all(folder / FILE, sources, begun=begun, folder=folder)


def _sizes(earlier: Plan | None, drafts: Sequence[Draft]) -> Sizes:
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
                f"has {_images(first.labelled)} and {draft.found.label} {_images(draft.labelled)}. "
                "Name the data (--dataset), or their number (--set data.num_images=N)."
            )
    images = [draft.total_steps * draft.batch_size for draft in drafts]
    return choose_sizes(min(images), first.labelled)


def _images(source: Source) -> str:
    height, width = source.extent(torch.tensor([0]))[0].tolist()
    return f"{len(source):,} of {source.name}, the first of {height} x {width} px"


def _least(found: Sequence[Found]) -> Budget:
    """The images of the recipe that sees the fewest: all can afford those."""

    def images(recipe: Recipe) -> float:
        train = recipe.train
        if train.total_steps is not None:
            return float(train.total_steps * train.batch_size)
        assert train.total_epochs is not None
        return train.total_epochs * len(open_source(recipe.data, "train"))

    return Budget("images", min(images(one.recipe) for one in found))


def _refuse_edited(method: Method, found: Found, folder: Path) -> None:
    if method.digest != found.digest:
        raise DataError(
            f"{found.source}: this recipe, or a part that it names, is another one than when the "
            f"comparison in {folder} was planned: its finished runs must not be compared with new "
            "ones. Undo the change, or choose another folder with --out."
        )


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
