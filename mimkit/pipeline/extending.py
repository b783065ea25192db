"""Going on with a finished run beyond its end."""

from pathlib import Path

from mimkit.errors import DataError
from mimkit.folder import RunFolder, is_whole
from mimkit.recipe.extension import extended
from mimkit.recipe.schema import Recipe
from mimkit.train import checkpoint


def extended_run(path: Path, recipe: Recipe, total_steps: int) -> Recipe:
    """Returns the recipe of a run with more steps; the same command goes on after a kill.

    Args:
        path: the run folder.
        recipe: of the run.
        total_steps: at which it is to end now.

    Raises: DataError if the run is not finished, or its last checkpoint is gone; RecipeError if it
        has as many steps already.
    """
    run = RunFolder(path)
    ledger = run.read_ledger()
    if recipe.train.extended and recipe.train.total_steps == total_steps:
        return recipe
    if not is_whole(ledger):
        raise DataError(
            f"{path}: must be a finished run to be extended, but was not trained and evaluated to "
            f"its end. To finish it: mimkit run {path}"
        )
    saved, _ = checkpoint.find(run.checkpoints)
    if saved is None or saved.step != ledger["steps"] or not saved.step:
        raise DataError(
            f"{path}/checkpoints: must hold the checkpoint of the last step, {ledger['steps']:,}, "
            "whole, to go on from there, but does not. Its encoder can begin another run: mimkit "
            f"run RECIPE --from {path}"
        )
    return extended(recipe, saved.step, total_steps)
