"""The grid of images of another size than those of pre-training."""

from mimkit.errors import RecipeError
from mimkit.parts.records import Grid


def grid_of(image_size: int | tuple[int, int] | None, grid: Grid, evaluator: str) -> Grid:
    """Cuts images of another size into patches of the same size.

    >>> grid_of((32, 48), Grid(2, 2, 16), "segmentation")
    Grid(rows=2, cols=3, patch_size=16)

    Args:
        image_size: height and width in pixels, one number for a square; None for those of ``grid``.
        grid: of pre-training.
        evaluator: that asks.

    Raises: RecipeError if patches do not fit.
    """
    if image_size is None:
        return grid
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if any(side % grid.patch_size for side in sides):
        raise RecipeError(
            f"evaluator '{evaluator}', image_size: must be multiples of the patches' "
            f"{grid.patch_size} px, but is {image_size}."
        )
    return Grid(sides[0] // grid.patch_size, sides[1] // grid.patch_size, grid.patch_size)
