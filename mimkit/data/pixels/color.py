"""Colour jitter of a batch: one brightness, contrast and saturation factor per image."""

from typing import Final

import torch
from torch import Tensor

LUMA: Final = (0.2989, 0.587, 0.114)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Scales brightness, then contrast, then saturation, clipping after each.

    Saturation is a matter of red, green and blue: it is left out where there are not three
    channels. Contrast is then taken about the mean of all channels.

    Shape: images (n, C, H, W) float in [0, 1], factors (n, 3), result like images.
    Source: torchvision's ``ColorJitter`` on float tensors, except that its order is random for
        each call; here it is fixed, so that an image does not depend on its batch. Contrast is
        taken about the mean grey of the crop, as there.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    black = torch.zeros((), device=images.device)
    images = _blend(images, black, brightness)
    images = _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), contrast)
    return _blend(images, _grey(images), saturation) if images.shape[1] == len(LUMA) else images


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (images - other)).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != len(LUMA):
        return images.mean(dim=1, keepdim=True)  # (n, 1, H, W)
    red, green, blue = LUMA
    return red * images[:, :1] + green * images[:, 1:2] + blue * images[:, 2:]  # (n, 1, H, W)
