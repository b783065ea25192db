"""What speaks against a comparison, found out before the first target is prepared."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

import mimkit
from mimkit.console import make_console
from mimkit.data.opening import find, open_labelled, open_source, open_sources
from mimkit.data.source import Source
from mimkit.errors import DataError, MimkitError, RecipeError
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import assemble
from mimkit.pipeline.identity import other_data, splits
from mimkit.study.budget import describe
from mimkit.study.folder import recipe_path
from mimkit.study.matrix import Sizes, choose_sizes, evaluations
from mimkit.study.methods import Found, load_for
from mimkit.study.question import Question
from mimkit.study.records import Budget, Method, Plan
from mimkit.train.distributed import World

DATA: Final = "data.json"
"""Which data a comparison was begun with."""
_STEPS: Final = 100
"""Stands for the steps of a budget that is not known in steps yet."""


def refuse_unlike(found: Sequence[Found]) -> None:
    """Opens the data of every method.

    Raises: RecipeError if they are not judged on the same images.
    """
    sources = [labelled_of(one) for one in found]
    for one, labelled in zip(found, sources, strict=True):
        if labelled.fingerprint != sources[0].fingerprint:
            raise RecipeError(
                "compare: all methods must be judged on the same images, but "
                f"{found[0].label} has {_images(sources[0])} and {one.label} {_images(labelled)}. "
                "Name the data (--dataset), or their number (--set data.num_images=N)."
            )


def refuse_unfit(
    found: Sequence[Found], question: Question, earlier: Plan | None, folder: Path
) -> None:
    """Builds the parts of every method and asks its evaluations.

    Raises: RecipeError if a method cannot be run.
    """
    for one in found:
        labelled = labelled_of(one)
        sizes = kept_sizes(earlier) if earlier else choose_sizes(len(labelled), labelled)
        steps = 0 if one.is_rival else _STEPS
        tables = evaluations(question.evaluate, sizes, has_cls=False, total_steps=steps)
        train = {"total_steps": steps, "warmup_steps": 0}
        recipe = load_for(one, question.recipes, {"train": train, "evaluate": tables})
        world = World(0, 1, torch.device("cpu"))  # its processes are those of the recipe
        try:
            assemble(recipe, RunFolder(folder), world, make_console(quiet=True))
        except MimkitError as error:
            raise RecipeError(f"compare, method '{one.label}': {error}") from error


def is_of_other_version(earlier: Plan, folder: Path) -> bool:
    """Whether another mimkit planned a comparison, of which nothing was trained yet.

    Raises: DataError if it was trained.
    """
    if earlier.mimkit == mimkit.__version__:
        return False
    if not holds_work(folder):
        return True
    raise DataError(
        f"{folder}: this comparison was begun with mimkit {earlier.mimkit}, and here is "
        f"{mimkit.__version__}: their runs must not be compared. Choose another folder with --out."
    )


def is_another(earlier: Plan, question: Question, folder: Path) -> bool:
    """Whether a folder holds another comparison, of which nothing was trained yet.

    Raises: DataError if it holds another one's runs; what differs is named.
    """
    asked = question.fixed()
    if asked["budget"] is None:
        asked["budget"] = earlier.asked["budget"]
    was, now = _words(earlier.asked), _words(asked)
    # A key that is newer than the plan says nothing where nothing is asked by it.
    differ = [n for n in {**was, **now} if (was.get(n) or None) != (now.get(n) or None)]
    if not differ:
        return False
    if not holds_work(folder):
        return True
    raise DataError(
        f"{folder}: this folder holds another comparison (its "
        f"{', '.join(f'{name} {was.get(name)}' for name in differ)}; asked for: "
        f"{', '.join(f'{name} {now.get(name)}' for name in differ)}). Choose another folder with "
        "--out."
    )


def is_edited(method: Method, found: Found, folder: Path) -> bool:
    """Whether a method is another one than was planned, of which nothing was trained yet.

    Another Python or torch makes no other method: its ledgers say which it was.

    Raises: DataError if it was trained as it was planned.
    """
    if method.digest in (found.digest, found.digest_of(_versions(folder, method.label))):
        return False
    if not holds_work(folder, method.label):
        return True
    raise DataError(
        f"{found.source}: this recipe, or a part that it names, is another one than when the "
        f"comparison in {folder} was planned: its finished runs must not be compared with new "
        "ones. Undo the change, or choose another folder with --out."
    )


def _versions(folder: Path, label: str) -> dict[str, str]:
    """Those of Python and torch with which a method was planned, as its recipe says."""
    recipe = recipe_path(folder, label)
    if not recipe.is_file():
        return {}
    origin = tomllib.loads(recipe.read_text(encoding="utf-8")).get("origin", {})
    return {name: origin[name] for name in ("python", "torch") if name in origin}


def is_on_other_data(sources: Mapping[str, Source], folder: Path) -> bool:
    """Whether a comparison was planned for data that changed since, before anything was trained.

    Raises: DataError if it was trained; what was added, is gone or was changed is named.
    """
    differ = other_data(folder / DATA, sources)
    if not differ:
        return False
    if not holds_work(folder):
        return True
    raise DataError(
        f"{folder}: the data must be those that this comparison was begun with, but {differ}. "
        "Nothing was changed here. Put the data back as they were to go on, or compare on the new "
        "data in another folder with --out."
    )


def all_data(found: Iterable[Found]) -> dict[str, Source]:
    """Opens what the methods are run on: every split once, by its method and name."""
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
    return sources


def holds_work(folder: Path, label: str = "*") -> bool:
    """Whether a comparison holds a run, of this method if one is given, that was trained."""
    runs: Iterable[Path] = (folder / "runs").glob(f"{label}/*")
    return any(RunFolder(run).holds_work for run in runs if run.is_dir())


def kept_sizes(plan: Plan) -> Sizes:
    """Returns the sizes of the evaluations of a plan."""
    kept = dict(plan.sizes)
    return Sizes(**{**kept, **{k: tuple(v) for k, v in kept.items() if isinstance(v, list)}})


def labelled_of(found: Found) -> Source:
    """Opens the training split whose labels, masks or objects a method is judged with."""
    data = found.recipe.data
    labelled, _ = open_labelled(data) or (open_source(data, "train"), None)
    return labelled


def _images(source: Source) -> str:
    height, width = source.extent(torch.tensor([0]))[0].tolist()
    return f"{len(source):,} of {source.name}, the first of {height} x {width} px"


def _words(asked: Mapping[str, object]) -> dict[str, object]:
    """What was asked for, by names that people know."""
    recipes, budget = asked.get("recipes"), asked.get("budget")
    said = {name: value for name, value in asked.items() if name != "recipes"}
    if isinstance(recipes, dict):
        said |= recipes
    if isinstance(budget, dict):
        said["budget"] = describe(Budget(**budget))
    return said
