"""Weights of an encoder for RGB, made to fit images of other channels."""

from collections.abc import Mapping
from typing import Final

from timm.models import adapt_input_conv
from torch import Tensor

_RGB: Final = 3


def adapt_channels(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], channels: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapts the convolutions that see the image, where a file has them for three channels.

    >>> rgb = {"proj.weight": torch.ones(2, 3, 4, 4), "proj.bias": torch.zeros(2)}
    >>> own = {"proj.weight": torch.empty(2, 1, 4, 4), "proj.bias": torch.zeros(2)}
    >>> adapted, notes = adapt_channels(rgb, own, 1)
    >>> adapted["proj.weight"][0, 0, 0, 0].item(), notes
    (3.0, ['proj.weight: its weights for red, green and blue are summed for 1 channel'])

    For one channel they are summed: the output is that for a grey image in RGB. For others they are
    repeated, red, green, blue, red and so on, and scaled by 3 / channels: images whose channels are
    all alike give the same output whatever their number, where that is a multiple of three.

    Args:
        tensors: what a file holds.
        expected: the state dict of the encoder to fill; its values do not matter.
        channels: of the images.

    Returns: all tensors, and what was done, in words.
    Source: timm's ``adapt_input_conv``.
    """
    adapted, notes = dict(tensors), []
    for name, tensor in tensors.items():
        own = expected.get(name)
        if own is None or tensor.ndim != 4 or own.ndim != 4 or own.shape[1] != channels:
            continue
        alike = (tensor.shape[0], *tensor.shape[2:]) == (own.shape[0], *own.shape[2:])
        if not alike or channels == _RGB or tensor.shape[1] != _RGB:
            continue
        adapted[name] = adapt_input_conv(channels, tensor)
        how = (
            "are summed for 1 channel"
            if channels == 1
            else f"are repeated for {channels} channels and scaled by 3/{channels}"
        )
        notes.append(f"{name}: its weights for red, green and blue {how}")
    return adapted, notes
