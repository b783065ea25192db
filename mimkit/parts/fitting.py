"""What importers share: sizes read off tensors, and the comparison with the part to fill."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimkit.errors import DataError, RecipeError
from mimkit.parts.encoder import Encoder
from mimkit.parts.head import Head
from mimkit.parts.records import Geometry
from mimkit.parts.state_dicts import fault, listed


def count_blocks(tensors: Mapping[str, Tensor], prefix: str = "blocks.") -> int:
    """Counts the numbers that follow a prefix in the names of a state dict.

    >>> count_blocks({"blocks.0.norm1.bias": torch.ones(2), "blocks.1.norm1.bias": torch.ones(2)})
    2
    """
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in tensors)
    # Counted, not the highest taken: a file may name a block of any number.
    return len({number[1] for number in numbers if number})


def mlp_ratio(fc1: Tensor) -> float:
    """Returns the ratio that makes an MLP as wide as its first weight says.

    >>> mlp_ratio(torch.empty(768, 192))
    4.0

    Shape: ``fc1`` (hidden width, width); for any other the ratio is 4, and `require_fit` names it.
    """
    if fc1.ndim != 2 or not fc1.numel():
        return 4.0
    hidden, width = fc1.shape
    ratio = hidden / width
    # Rounded down, the product must be the width again.
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


def square_patches(projection: Tensor, file: Path, name: str = "patch_embed.proj.weight") -> int:
    """Returns the side of the patches, in pixels, that a projection of patches reads.

    >>> square_patches(torch.empty(192, 3, 16, 16), Path("x.pth"))
    16

    Shape: ``projection`` (D, C, P, P).
    Raises: DataError if it is of another form.
    """
    if projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
        raise DataError(
            f"{file}: patches must be square, but {name} has shape {tuple(projection.shape)}."
        )
    return projection.shape[2]


def require_axes(tensors: Mapping[str, Tensor], axes: Mapping[str, int], file: Path) -> None:
    """Refuses tensors of another number of axes, before sizes are read off them.

    >>> require_axes({"cls_token": torch.ones(1, 1, 4)}, {"cls_token": 3}, Path("x.pth"))

    Args:
        tensors: state dict.
        axes: how many axes a tensor must have whose name ends so.
        file: for messages.

    Raises: DataError with the first that has another number.
    """
    for name, tensor in tensors.items():
        wanted = next((count for ending, count in axes.items() if name.endswith(ending)), None)
        if wanted not in (None, tensor.ndim):
            raise DataError(
                f"{file}: {name} must have {wanted} axes, but has shape {tuple(tensor.shape)}."
            )


def misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Says of each tensor that has no place, is of another shape, or holds no finite numbers.

    >>> misfits({"bias": torch.ones(3)}, {"bias": torch.ones(2)})
    ['bias has shape (3,) instead of (2,)']

    Args:
        tensors: what a file holds.
        expected: the state dict of the part that it should fill; its values do not matter.
    """
    found = []
    for name, tensor in tensors.items():
        own = expected.get(name)
        if own is None:
            found.append(f"{name} is not there at all")
        elif own.shape != tensor.shape:
            found.append(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(own.shape)}")
        elif own.is_floating_point() and (reason := fault(tensor)):
            found.append(f"{name} {reason}")
    return found


def require_fit(
    tensors: Mapping[str, Tensor],
    part: type[Encoder] | type[Head],
    geometry: Geometry,
    options: Mapping[str, Any],
    *,
    what: str,
    file: Path,
    optional: Collection[str] = (),
) -> None:
    """Refuses a state dict that is not exactly that of a part, before anything is made of it.

    The part is built on the "meta" device, which takes neither time nor memory.

    >>> from mimkit.builtin.heads import LinearHead
    >>> geometry = Geometry(Grid(2, 2, 4), embed_dim=8, outputs={"x": Width("vector", 3)})
    >>> require_fit({}, LinearHead, geometry, {}, what="a linear head", file=Path("x.pth"))
    Traceback (most recent call last):
    mimkit.errors.DataError: x.pth: ...

    Args:
        tensors: under the names of the part.
        part: the class.
        geometry: what it is built for.
        options: what it is built with.
        what: in words, as in "must hold all of WHAT and nothing else".
        file: for messages.
        optional: names that may lack.

    Raises: DataError with the first few tensors that lack, have no place, are of another shape,
        or are no finite floating-point numbers; and if the options are impossible.
    """
    try:
        with torch.device("meta"):
            expected = part(geometry, **options).state_dict()
    except RecipeError as error:
        raise DataError(f"{file}: {error}") from error
    missing = sorted(expected.keys() - tensors.keys() - set(optional))
    strange = sorted(tensors.keys() - expected.keys())
    if missing or strange:
        words = [f"lacks {name}" for name in missing] + [f"has {name}" for name in strange]
        raise DataError(
            f"{file}: must hold all of {what} and nothing else, but {listed(words)}. See which "
            "file it is: mimkit list importers"
        )
    if wrong := misfits(tensors, expected):
        raise DataError(
            f"{file}: the weights must be those of {what}, but {listed(wrong)}. See which file it "
            "is: mimkit list importers"
        )
