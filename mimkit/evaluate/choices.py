"""Options that hold several values, each of which is measured."""

from collections.abc import Sequence

from mimkit.errors import RecipeError


def distinct(evaluator: str, **options: Sequence[object]) -> None:
    """Refuses lists that are empty or hold a value twice, which would be measured twice.

    Raises: RecipeError naming the option and what it is.
    """
    for name, given in options.items():
        if not given or len(set(given)) < len(given):
            raise RecipeError(
                f"evaluator '{evaluator}', {name}: must hold at least one value and none twice, "
                f"but is {list(given)}."
            )
