"""The recipe of a run that goes on beyond its end."""

from mimkit.errors import RecipeError
from mimkit.recipe.tables import Recipe


def extended(recipe: Recipe, ended: int, total_steps: int) -> Recipe:
    """Returns the recipe of a run that ended, with more steps.

    Asked once more for the same number, it stays as it is.

    Args:
        recipe: of the run.
        ended: steps that it has behind it.
        total_steps: at which it is to end now.

    Raises: RecipeError if it has as many steps already.
    """
    train = recipe.train
    if train.extended and train.total_steps == total_steps:
        return recipe
    if total_steps <= ended:
        raise RecipeError(
            f"--extend {total_steps}: must be more than the {ended:,} steps that this run has "
            "behind it. It is the number of steps after the extension, not that of new ones."
        )
    more = {
        "total_steps": total_steps,
        "total_epochs": None,
        "extended": (*train.extended, ended),
    }
    return recipe.model_copy(update={"train": train.model_copy(update=more)})


def extends(recipe: Recipe, held: Recipe) -> bool:
    """Whether a recipe is a held one with more steps, and nothing else changed."""
    *before, ended = recipe.train.extended or (0,)
    if not ended or tuple(before) != held.train.extended:
        return False
    if held.train.total_steps not in (None, ended):
        return False
    shared = {name: getattr(held.train, name) for name in ("total_steps", "total_epochs")}
    shorter = recipe.train.model_copy(update={**shared, "extended": held.train.extended})
    return recipe.model_copy(update={"train": shorter}).same_as(held)
