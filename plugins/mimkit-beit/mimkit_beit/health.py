"""The health of a tokenizer: how much of its codebook it uses, and what it keeps of an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mimkit_beit.tokenizer import STRIDE, Tokenizer, unmap_pixels

_NUM_PICTURES: Final = 8
_CHUNK_IMAGES: Final = 32  # no fewer than are shown


@dataclass(frozen=True)
class Health:
    """What was found.

    Args:
        facts: by name; errors are of pixels in [0, 1], and missing where there is no decoder.
        pictures: title to (n, C, H, W) in [0, 1], n at most 8.
    """

    facts: Mapping[str, str | int | float]
    pictures: Mapping[str, Tensor]


def examine(tokenizer: Tokenizer, views: Tensor, device: torch.device) -> Health:
    """Looks at what a tokenizer, which is on ``device``, does to images.

    Shape: views (n, C, 8 * rows, 8 * cols) on the CPU, in the token view's normalisation.
    """
    rows, cols = (side // STRIDE for side in views.shape[-2:])
    counts = torch.zeros(tokenizer.codebook_size)
    squared = absolute = 0.0
    decoded: list[Tensor] = []
    for chunk in torch.split(views, _CHUNK_IMAGES):
        ids = tokenizer(chunk.to(device))
        counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))
        if tokenizer.decoder is not None:
            pixels = unmap_pixels(tokenizer.decode(ids.view(-1, rows, cols)).cpu())
            error = pixels - unmap_pixels(chunk)
            squared += error.square().sum().item()
            absolute += error.abs().sum().item()
            decoded.append(pixels[:_NUM_PICTURES])
    used = int((counts > 0).sum())
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
    facts: dict[str, str | int | float] = {
        "images examined": len(views),
        "codes": len(counts),
        "codes used": used,
        "share of codes used": round(used / len(counts), 4),
        "codes never used": len(counts) - used,
        "perplexity of the codes": round(perplexity, 1),
    }
    pictures = {"original": unmap_pixels(views[:_NUM_PICTURES])}
    if decoded:
        facts["mean squared error"] = round(squared / views.numel(), 6)
        facts["mean absolute error"] = round(absolute / views.numel(), 5)
        pictures["through the tokenizer"] = decoded[0]
    return Health(facts, pictures)
