"""Which settings each method tries: learning rate, and what its masker declares as tunable.

The first trial is the recipe as it is. The others are the points of Sobol's sequence, which need no
random numbers, so that the same recipe always tries the same, and more trials begin with those of
fewer. The middle of the box is the recipe: of each value half of the trials try less, half more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from scipy.stats import qmc

from mimkit.errors import RecipeError
from mimkit.parts.masker import Masker
from mimkit.recipe.build import build
from mimkit.recipe.options import NONE
from mimkit.recipe.schema import Recipe
from mimkit.study.methods import Found, lay_over
from mimkit.study.question import Asked, Question
from mimkit.study.stage import TENTHS

MOST_TRIALS: Final = TENTHS - 1
_FACTOR: Final = 4.0
"""The learning rate is tried from a fourth of the recipe's to four times that."""
_MIDDLE: Final = 0.5
_POINTS: Final = 256
"""So many points are looked at for those that a masker can be made with."""


@dataclass(frozen=True)
class Setting:
    """What one trial changes of a recipe.

    Args:
        number: of the trial, from 1.
        factor: of the recipe's learning rate.
        options: of the masker, by name; in the first trial what its recipe says of them.
    """

    number: int
    factor: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        named = [f"{name} {value:g}" for name, value in self.options.items()]
        return ", ".join([f"learning rate x {self.factor:g}", *named])


def refuse_number(question: Question) -> None:
    """Refuses a number of trials among which nothing can be chosen, or that leaves no budget.

    Raises: RecipeError.
    """
    if question.tune and not 2 <= question.tune <= MOST_TRIALS:
        raise RecipeError(
            f"--tune {question.tune}: must be 0 for none, or from 2 to {MOST_TRIALS}: the first "
            "trial is the recipe as it is, and each takes a tenth of a run's budget."
        )
    if question.tune and question.within is not None:
        raise RecipeError(
            "--within: must be left out with --tune, whose trials it does not plan. Give "
            "--preset NAME and --budget."
        )


def tunable(recipe: Recipe) -> Mapping[str, tuple[float, float]]:
    """Names the options of the masker that are worth a search, with least and largest value."""
    masker: type[Masker] = recipe.masker.cls
    # A class may have inherited the name of an option that it does not have.
    return {k: ends for k, ends in masker.tunable.items() if k in recipe.masker.options}


def settings(found: Found, asked: Asked, num_trials: int) -> list[Setting]:
    """Lists what a method tries; a point that its parts refuse is left out for the next one.

    Args:
        found: the method.
        asked: what the command line says of its recipe.
        num_trials: how many.

    Raises: RecipeError if the parts refuse nearly all, or if the command line sets what is to be
        chosen.
    """
    own = {name: found.recipe.masker.options.get(name) for name in tunable(found.recipe)}
    tried = [Setting(1, 1.0, {k: v for k, v in own.items() if isinstance(v, int | float)})]
    for factor, options in _points(found.recipe):
        if len(tried) == num_trials:
            break
        setting = Setting(len(tried) + 1, factor, options)
        if _can_be_made(found, asked, setting):
            tried.append(setting)
    if len(tried) < num_trials:
        raise RecipeError(
            f"--tune {num_trials}: masker '{found.recipe.masker.name}' of '{found.label}' must "
            f"allow as many settings, but only {len(tried)} of {_POINTS} that were looked at fit "
            f"this grid ({', '.join(tunable(found.recipe))}). Ask for fewer."
        )
    return tried


def trial_of(found: Found, asked: Asked, setting: Setting) -> Found:
    """The method with a setting, under a name of its own, judged by labels that are held back."""
    label = f"{found.label}-{setting.number}"
    tables = {
        **tables_of(found.recipe, setting),
        "name": label,
        "data": {"judge": "development"},
    }
    return lay_over(found, asked, tables, label=label, reference=label)


def tuned(found: Found, asked: Asked, setting: Setting, num_trials: int) -> Found:
    """The method with the setting that was chosen."""
    note = f"tuned: trial {setting.number} of {num_trials}, {setting}"
    return lay_over(found, asked, tables_of(found.recipe, setting), notes=(note,))


def tables_of(recipe: Recipe, setting: Setting) -> dict[str, Any]:
    """What a setting lays over a recipe."""
    tables: dict[str, Any] = {}
    if setting.number == 1:
        return tables
    if setting.factor != 1:
        rates = {"lr": recipe.train.lr, "min_lr": recipe.train.min_lr}
        tables["train"] = {name: setting.factor * rate for name, rate in rates.items()}
    if setting.options:
        masker: type[Masker] = recipe.masker.cls
        before = recipe.masker.options
        after = masker.tuned(before, setting.options)
        tables["masker"] = {
            name: NONE if value is None else value
            for name, value in after.items()
            if value != before.get(name)
        }
    return tables


def _can_be_made(found: Found, asked: Asked, setting: Setting) -> bool:
    tables = tables_of(found.recipe, setting)
    try:
        recipe = lay_over(found, asked, tables).recipe
        channels = recipe.data.channels
        build(recipe, mean=(0.0,) * channels, std=(1.0,) * channels, device="meta")
    except RecipeError:
        return False
    _refuse_set(recipe, tables)
    return True


def _refuse_set(recipe: Recipe, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a command line that sets what trials are to choose, as that goes before it."""
    is_now = {"train": recipe.train.model_dump(), "masker": recipe.masker.options}
    for table, keys in tables.items():
        for key, value in keys.items():
            if is_now[table][key] != (None if value == NONE else value):
                raise RecipeError(
                    f"--set {table}.{key}: must be left out with --tune, which chooses it. The "
                    "trials are laid around what the recipe says: change it there."
                )


def _points(recipe: Recipe) -> Iterator[tuple[float, dict[str, float]]]:
    """Factors of the learning rate and options of the masker, without the middle of the box."""
    ranges = tunable(recipe)
    sequence = qmc.Sobol(1 + len(ranges), scramble=False)
    sequence.fast_forward(2)  # the corner, and the middle, which is the recipe
    for _ in range(_POINTS):
        first, *others = sequence.random(1)[0].tolist()
        options = {
            name: _placed(place, recipe.masker.options.get(name), *ranges[name])
            for name, place in zip(ranges, others, strict=True)
        }
        yield float(f"{_FACTOR ** (2 * first - 1):.3g}"), options


def _placed(place: float, own: object, low: float, high: float) -> float:
    """Where a place from 0 to 1 lies between two ends, with the recipe's own value at a half."""
    middle = own if isinstance(own, int | float) else (low + high) / 2
    least, most = min(low, middle), max(high, middle)
    start, end = (least, middle) if place < _MIDDLE else (middle, most)
    value = start + (2 * place % 1) * (end - start)
    whole = isinstance(low, int) and isinstance(high, int)
    return round(value) if whole else float(f"{value:.3g}")
