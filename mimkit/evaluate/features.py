"""Frozen features: one vector per image, from an encoder that nothing changes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.data.sources import Source
from mimkit.errors import RecipeError
from mimkit.evaluate.base import Subject
from mimkit.evaluate.images import WholeImages
from mimkit.parts.base import Encoder
from mimkit.parts.records import Tokens, View

Pool = Literal["mean", "cls"]
FEATURE_BATCH = 256
_PIXELS_SIDE = 32


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switches dropout and batch statistics off, and every submodule back as it was."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def extract(
    encoder: Encoder, subject: Subject, source: Source, index: Tensor, pool: Pool
) -> Tensor:
    """Encodes whole images in float32.

    Args:
        encoder: used in evaluation mode.
        subject: view, device and loader processes.
        source: the split.
        index: (n,) int64, which images.
        pool: the mean of `Encoder.features`' patches, or its first prefix token.

    Shape: (n, D) float32 on the subject's device.
    Raises: RecipeError if ``pool`` is "cls" and the encoder has no such token.
    """
    (features,) = extract_layers(encoder, subject, source, index, (pool,), layers="last")
    return features[pool].to(subject.device)


@torch.no_grad()
def extract_layers(
    encoder: Encoder,
    subject: Subject,
    source: Source,
    index: Tensor,
    pools: Sequence[Pool],
    *,
    layers: Literal["last", "all"],
) -> list[dict[Pool, Tensor]]:
    """Encodes whole images in float32, pooled in several ways, each image once for all of them.

    Args:
        encoder: used in evaluation mode.
        subject: view, device and loader processes.
        source: the split.
        index: (n,) int64, which images.
        pools: the mean of the patches, or the first prefix token.
        layers: "all": of `Encoder.layers`; "last": of `Encoder.features` alone.

    Returns: for each layer, pool to (n, D) float32 in main memory: for all layers a device may
        be too small.
    Raises: RecipeError if "cls" is asked for and the encoder has no such token.
    """
    kept: list[dict[Pool, Tensor]] = []
    start = 0
    with evaluation_mode(encoder):
        for image in _whole(subject, source, index):
            found = encoder.layers(image) if layers == "all" else (encoder.features(image),)
            if not kept:
                sizes = [(len(index), tokens.patches.shape[-1]) for tokens in found]
                kept = [{pool: torch.empty(size) for pool in pools} for size in sizes]
            rows = slice(start, start + len(image))
            start = rows.stop
            for vectors, tokens in zip(kept, found, strict=True):
                for pool, features in vectors.items():
                    features[rows] = pooled(tokens, pool)
    return kept


def check_pool(subject: Subject, pool: Pool) -> None:
    """Raises RecipeError if the encoder has nothing to pool, found out on one image."""
    extract(subject.pretrainer.encoder, subject, subject.train, torch.arange(1), pool)


def pixels(subject: Subject, source: Source, index: Tensor, side: int = _PIXELS_SIDE) -> Tensor:
    """Gives the images themselves as features: they cost nothing. See `flat_pixels`.

    Shape: (n, C * height * width) float32 on the subject's device.
    """
    batches = _whole(subject, source, index)
    return torch.cat([flat_pixels(image, side) for image in batches])


def flat_pixels(image: Tensor, side: int = _PIXELS_SIDE) -> Tensor:
    """Flattens images; larger ones are averaged down to ``side`` x ``side`` cells.

    Shape: image (B, C, H, W); (B, C * min(H, side) * min(W, side)).
    """
    height, width = image.shape[2:]
    return F.adaptive_avg_pool2d(image, (min(height, side), min(width, side))).flatten(1)


def pixels_width(view: View, side: int) -> int:
    """Returns how many features `flat_pixels` gives of an image of this view."""
    return len(view.mean) * math.prod(min(length, side) for length in view.image_size)


def pooled(tokens: Tokens, pool: Pool) -> Tensor:
    """Gives one vector an image, (B, D).

    Raises: RecipeError if ``pool`` is "cls" and there is no such token.
    """
    if pool == "mean":
        return tokens.patches.mean(dim=1)
    if tokens.prefix.shape[1] == 0:
        raise RecipeError(
            "the pool 'cls' needs an encoder with a class token, but this one has none. Use 'mean'."
        )
    return tokens.prefix[:, 0]


def _whole(subject: Subject, source: Source, index: Tensor) -> Iterator[Tensor]:
    images = WholeImages(source, index, (subject.view,), FEATURE_BATCH)
    for _, views in images.stream(len(images), workers=subject.workers, device=subject.device):
        yield views[subject.view.name]
