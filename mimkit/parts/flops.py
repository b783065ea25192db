"""Counting floating-point operations, alike on every device and with every attention kernel."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

_Shape = Sequence[int]


def count_flops(run: Callable[[], object]) -> int:
    """Runs something and returns its floating-point operations; one multiply-add is two.

    Counted are products of matrices and vectors, convolutions and attention, forwards and
    backwards, also where no gradient is kept. What goes value by value is not, as is usual.

    >>> count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
    48

    Args:
        run: is called once.

    Source: torch's counter, corrected. It leaves attention on the CPU out, adds what a GPU's
        kernel computes twice to spare memory, forgets the groups of a convolution in the backward
        pass, and does not see into the fused layers of `torch.nn.Transformer`.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with _no_fused_layers(), counter:
        run()
    return counter.get_total_flops()


@contextmanager
def _no_fused_layers() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# What follows is given shapes in place of tensors.


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: object, **__: object) -> int:
    """Queries with keys, and weights with values."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(
    _: _Shape, query: _Shape, key: _Shape, value: _Shape, *__: object, **___: object
) -> int:
    """Two products for each one forwards."""
    return 2 * _attention(query, key, value)


def _convolution_backward(
    gradient: _Shape, image: _Shape, weight: _Shape, *options: Any, **_: object
) -> int:
    """What the forward pass costs, for the gradient of the input and for that of the weight."""
    _, _, _, _, transposed, _, _, wanted = options  # as in the operator's signature
    places = (image if transposed else gradient)[2:]
    forward = 2 * image[0] * math.prod(places) * math.prod(weight)
    return forward * int(sum(wanted[:2]))


def _addbmm(_: _Shape, one: _Shape, other: _Shape, *__: object, **___: object) -> int:
    return 2 * math.prod(one) * other[-1]


def _mv(matrix: _Shape, vector: _Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(matrix)


def _addmv(_: _Shape, matrix: _Shape, vector: _Shape, *__: object, **___: object) -> int:
    return 2 * math.prod(matrix)


_aten: Final = torch.ops.aten
_FORMULAS: Final[dict[Any, Callable[..., int]]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    _aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    _aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
    _aten.convolution_backward: _convolution_backward,
    _aten.addbmm: _addbmm,
    _aten.mv: _mv,
    _aten.addmv: _addmv,
    _aten.dot: _mv,
    _aten.vdot: _mv,
}
