"""Start values of CAE's weights. Source: the released code; the paper does not say."""

import math
from typing import Final, Literal

import torch
from torch import Tensor, nn

Init = Literal["xavier", "beit"]

# Also the bound of the truncation, so that the true deviation is 0.0108.
_STD: Final = 0.02


def initialise(module: nn.Module, init: Init) -> None:
    """Sets all linear and convolutional weights; norms and layer scales keep theirs.

    Args:
        module: is changed in place.
        init: "xavier": uniform after Xavier for linear layers, as the base model; a joint
            projection to queries, keys and values counts as one matrix. "beit": normal with
            deviation 0.02, cut at +-0.02, as the option meant for the large model. Convolutions
            are drawn in the second way in either case.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear) and init == "xavier":
            nn.init.xavier_uniform_(child.weight)
        elif isinstance(child, nn.Linear | nn.Conv2d):
            _cut_normal(child.weight)
        else:
            continue
        if child.bias is not None:
            nn.init.zeros_(child.bias)


@torch.no_grad()
def rescale(blocks: nn.ModuleList, *last: str) -> None:
    """Divides the last weight of both branches of block l = 1, 2, ... by sqrt(2 l).

    Args:
        blocks: are changed in place.
        last: the names of these weights.
    """
    for number, block in enumerate(blocks, start=1):
        for name in last:
            block.get_parameter(name).div_(math.sqrt(2 * number))


def special_token(embed_dim: int) -> nn.Parameter:
    """Makes a learned token (1, 1, D)."""
    return nn.Parameter(_cut_normal(torch.empty(1, 1, embed_dim)))


def _cut_normal(tensor: Tensor) -> Tensor:
    return nn.init.trunc_normal_(tensor, std=_STD, a=-_STD, b=_STD)
