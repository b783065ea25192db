"""The type that tokens have between the blocks of a transformer."""

from typing import Literal

import torch
from torch import Tensor

Stream = Literal["float32", "bfloat16"]
"""An option of encoders and heads: what blocks hand on where autocast computes in bfloat16."""


def as_stream(tokens: Tensor, stream: Stream) -> Tensor:
    """Gives tokens the type in which blocks hand them on.

    Autocast leaves sums in float32, and so all that goes from block to block. With "bfloat16" half
    as many bytes move and stay for the backward pass; each sum is then rounded to 8 bits, so that
    a branch far smaller than the stream loses most of its own. Norms still compute in float32.
    Without autocast nothing changes.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     as_stream(torch.zeros(1), "bfloat16").dtype
    torch.bfloat16
    >>> as_stream(torch.zeros(1), "bfloat16").dtype
    torch.float32

    Args:
        tokens: what enters the first block.
        stream: as the recipe says.
    """
    device = tokens.device.type
    if stream == "bfloat16" and torch.is_autocast_enabled(device):
        return tokens.to(torch.get_autocast_dtype(device))
    return tokens
