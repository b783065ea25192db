"""A convolution of images, whose few channels are too few for tensor cores."""

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

_ALIGNED_CHANNELS: Final = 8
"""16 bytes of float16. Source: NVIDIA's guide to convolutional layers, which asks for multiples of
8, and finds 4 enough at a stride of 2 alone."""


@torch.library.custom_op("mimkit_beit::aligned_convolution", mutates_args=())
def aligned_convolution(image: Tensor, weight: Tensor) -> Tensor:
    """Convolves with zeros as further channels, up to 8; of the zeros nothing enters a sum.

    An operator of its own, so that products with these zeros are not counted as work: on a GPU a
    method would seem to cost more than on a CPU.

    Shape: image (B, C, H, W), weight (K, C, side, side) of an odd side; result (B, K, H, W).
    """
    missing = (0, 0, 0, 0, 0, -image.shape[1] % _ALIGNED_CHANNELS)
    image, weight = (
        F.pad(tensor, missing).contiguous(memory_format=torch.channels_last)
        for tensor in (image, weight)
    )
    return F.conv2d(image, weight, padding=weight.shape[-1] // 2)


@aligned_convolution.register_fake
def _(image: Tensor, weight: Tensor) -> Tensor:
    made = image.new_empty(len(image), len(weight), *image.shape[2:])
    return made.contiguous(memory_format=torch.channels_last)


@register_flop_formula(torch.ops.mimkit_beit.aligned_convolution)
def _count(
    image: Sequence[int], weight: Sequence[int], *, out_shape: Sequence[int], **_: Any
) -> int:
    flops: int = conv_flop_count(list(image), list(weight), list(out_shape))
    return flops
