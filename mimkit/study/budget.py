"""What every method may spend: the same number of one thing for all."""

import re
from typing import Final, get_args

from mimkit.errors import RecipeError, nearest
from mimkit.study.records import Budget, Trial, Unit

AUTO: Final = "auto"
"""What ``--preset`` says where the time is to choose it."""
LONG_SECONDS: Final = 3600.0
"""What ``--preset auto`` may take; a plan over this names presets that take less."""
_FACTORS: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT: Final = re.compile(r"([\d.]+(?:e[+-]?\d+)?)([A-Za-z]*)")


def parse_budget(text: str) -> Budget:
    """Reads ``steps=400``, ``images=20k``, ``time=30m`` or ``flops=1e17``.

    Raises: RecipeError if it is none of these.
    """
    name, _, amount = text.partition("=")
    units = get_args(Unit)
    if name not in units:
        raise RecipeError(
            f"--budget {text}: must be one of {', '.join(f'{unit}=N' for unit in units)}."
            f"{nearest(name, units)}"
        )
    suffixes = _SECONDS if name == "time" else _FACTORS
    match = _AMOUNT.fullmatch(amount)
    factor = suffixes.get(match[2]) if match else None
    if match is None or factor is None or not (value := _number(match[1]) * factor) > 0:
        example = {"time": "time=30m", "flops": "flops=1e17"}.get(name, f"{name}=20k")
        raise RecipeError(
            f"--budget {text}: must be a number above 0 with one of the units "
            f"{', '.join(unit for unit in suffixes if unit)} or none, such as {example}."
        )
    return Budget(name, value)  # type: ignore[arg-type]  # checked above


def parse_within(text: str | None, preset: str | None) -> float | None:
    """Reads the time that a comparison may take, in seconds; an hour where ``preset`` is "auto".

    Raises: RecipeError if it is no time.
    """
    if text is None:
        return LONG_SECONDS if preset == AUTO else None
    try:
        return parse_budget(f"time={text}").amount
    except RecipeError as error:
        raise RecipeError(
            f"--within {text}: must be a number above 0 with one of the units "
            f"{', '.join(unit for unit in _SECONDS if unit)}, such as 1h."
        ) from error


def describe(budget: Budget, tune: int = 0) -> str:
    """Says a budget in words, and how much of it goes into trials, a tenth in each."""
    trials = f" ({tune} tenths of it in trials)" if tune else ""
    return f"{_described(budget)}{trials}"


def _described(budget: Budget) -> str:
    amount = f"{budget.amount:,.0f}" if budget.amount < 1e15 else f"{budget.amount:.3g}"
    return {
        "steps": f"{amount} optimizer steps",
        "images": f"{amount} images seen",
        "time": f"{amount} s of preparation and training",
        "flops": f"{budget.amount:.3g} floating-point operations of preparation and training",
    }[budget.unit]


def images_of(budget: Budget, batch_size: int, trial: Trial | None) -> float:
    """How many images a method may see.

    Args:
        budget: of unit "steps" or "images", where nothing must have been measured.
        batch_size: images of a step.
        trial: what a step costs, for the other units. What targets need before training is taken
            off first.
    """
    if budget.unit == "images":
        return budget.amount
    if budget.unit == "steps":
        return budget.amount * batch_size
    assert trial is not None
    if budget.unit == "flops":
        return (budget.amount - trial.prepare_flops) / trial.flops_per_image
    return (budget.amount - trial.prepare_seconds) / trial.seconds_per_step * batch_size


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
