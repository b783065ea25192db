"""Stochastic depth of timm's blocks."""

from collections.abc import Iterable

from timm.layers.drop import DropPath
from torch import nn


def set_drop_path(blocks: Iterable[nn.Module], rate: float) -> None:
    """Sets stochastic depth of both branches of every block, rising linearly from 0 to ``rate``.

    >>> from timm.models.vision_transformer import Block
    >>> blocks = [Block(16, 2), Block(16, 2)]
    >>> set_drop_path(blocks, 0.1)
    >>> [block.drop_path1.drop_prob for block in blocks]
    [0.0, 0.1]

    Args:
        blocks: of a timm transformer, first to last.
        rate: of the last block.
    """
    listed = list(blocks)
    last = max(len(listed) - 1, 1)
    for number, block in enumerate(listed):
        block.drop_path1 = DropPath(rate * number / last)
        block.drop_path2 = DropPath(rate * number / last)
