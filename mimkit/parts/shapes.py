"""The boundary check: axis letters are bound across tensors, errors are one line."""

import torch
from torch import Tensor

from mimkit.errors import BoundaryError


class Axes:
    """Sizes of the axis letters of one step, bound at first sight and compared afterwards.

    >>> axes = Axes(B=2, D=16)
    >>> axes.check("encoder 'vit', patches", torch.zeros(2, 9, 16), "B S D")
    >>> axes.sizes["S"]
    9
    """

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes

    def check(
        self, where: str, tensor: object, axes: str, dtype: torch.dtype | None = None
    ) -> None:
        """Compares a tensor with its axes, written as ``"B S D"``; binds letters not yet known.

        Raises: BoundaryError with the part, what came and what must come.
        """
        letters = axes.split()
        if not isinstance(tensor, Tensor):
            raise BoundaryError(f"{where} must be a tensor ({axes}), but is {tensor!r}.")
        shape = tuple(tensor.shape)
        expected = [self.sizes.get(letter) for letter in letters]
        if len(shape) != len(letters) or any(
            want is not None and want != got for want, got in zip(expected, shape, strict=True)
        ):
            wanted = ", ".join(
                letter if size is None else f"{letter}={size}"
                for letter, size in zip(letters, expected, strict=True)
            )
            raise BoundaryError(f"{where} has shape {shape}; it must be ({wanted}).")
        if dtype is not None and tensor.dtype != dtype:
            raise BoundaryError(f"{where} has dtype {tensor.dtype}; it must be {dtype}.")
        self.sizes.update(zip(letters, shape, strict=True))
