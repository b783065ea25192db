"""Large networks made quickly, where it does not matter which random numbers they begin with.

A network is built three times before it is measured: for itself, for what fine-tuning would refuse,
and for what that costs. Drawing their weights took a fifth of the time in which ViT-B was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FEW: Final = 2**16
_DRAWS: Final[Mapping[Callable[..., Any], Callable[..., Tensor]]] = {
    torch.ops.aten.uniform_.default: lambda few, low=0.0, high=1.0: few.uniform_(low, high),
    torch.ops.aten.normal_.default: lambda few, mean=0.0, std=1.0: few.normal_(mean, std),
}


class Repeated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, large tensors get few random numbers again and again.

    What is drawn from a generator of its own, such as images, stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls an operator, or stands in for one that draws many numbers."""
        draw, kwargs = _DRAWS.get(func), kwargs or {}
        if draw is None or kwargs or args[0].numel() <= _FEW or not args[0].is_contiguous():
            return func(*args, **kwargs)
        filled: Tensor = args[0]
        flat = filled.detach().view(-1)
        few = draw(flat[:_FEW], *args[1:])
        for start in range(_FEW, len(flat), _FEW):
            part = flat[start : start + _FEW]
            part.copy_(few[: len(part)])
        return filled
