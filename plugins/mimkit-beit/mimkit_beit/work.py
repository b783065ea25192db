"""What training a tokenizer costs, in floating-point operations."""

from typing import Final

import torch
from torch import Tensor, nn

from mimkit import count_flops
from mimkit_beit.fit import Plan
from mimkit_beit.tokenizer import Size, make_network

_META: Final = torch.device("meta")


def training_flops(size: Size, plan: Plan, image_size: tuple[int, int], num_images: int) -> float:
    """Counts one step of each phase of `mimkit_beit.fit.fit`, of shapes alone, times the steps.

    The choice of the codebook between the phases is left out: it is under one hundredth.

    Args:
        size: of the networks.
        plan: how they are trained.
        image_size: height and width of the token view, in pixels.
        num_images: how many there are, should that be less than a batch.
    """
    encoder, decoder = (make_network(name, size) for name in ("encoder", "decoder"))
    before, after = encoder.get_submodule("blocks"), decoder.get_submodule("blocks")
    assert isinstance(before, nn.Sequential)
    assert isinstance(after, nn.Sequential)
    bottleneck = nn.Conv2d(8 * size.hidden_dim, size.code_dim, 1, device=_META)
    batch_size = min(plan.batch_size, num_images)
    view = torch.empty(batch_size, size.channels, *image_size, device=_META)

    def backwards(output: Tensor) -> None:
        torch.autograd.backward(output.sum())

    with torch.enable_grad():
        first = count_flops(lambda: backwards(after[1:](bottleneck(before[:-1](view).relu()))))
        second = count_flops(lambda: backwards(after(before(view).softmax(1))))
    num_first = round(plan.total_steps * plan.first_ratio)
    return float(num_first * first + (plan.total_steps - num_first) * second)
