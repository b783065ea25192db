"""Counting operators, and the bytes of tensors that are there at once, alike on every device."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Alive:
    """What was counted while something ran.

    Args:
        peak: the most bytes of tensors that were there at once; what a kernel needs for itself
            while it runs is not among them.
        operators: how many were called that compute something.
    """

    peak: int
    operators: int


def alive(run: Callable[[], object], before: Sequence[Tensor] = ()) -> Alive:
    """Runs something and counts.

    >>> alive(lambda: torch.ones(1024).exp().view(2, 512).sum())
    Alive(peak=8192, operators=3)

    Args:
        run: is called once.
        before: what was there before, and is not counted.
    """
    watch = _Watch(before)
    with watch:
        run()
    return Alive(watch.peak, watch.operators)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, before: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = self.operators = 0
        self.known = WeakIdKeyDictionary({each.untyped_storage(): None for each in before})

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls an operator and notes what it gives."""
        given = func(*args, **(kwargs or {}))
        # What gives another look at a tensor starts no kernel.
        self.operators += not getattr(func, "is_view", False)
        for leaf in tree_leaves(given):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return given

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known[storage] = None
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        # Lives as long as the memory does, also where autograd alone keeps it.
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.held -= size
