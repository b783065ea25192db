"""Frozen features: one vector per image, from an encoder that nothing changes."""

from collections.abc import Iterator
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
from mimkit.parts.records import Tokens

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


@torch.no_grad()
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
    with evaluation_mode(encoder):
        batches = (_pool(encoder.features(image), pool) for image in _whole(subject, source, index))
        return torch.cat([features.float() for features in batches])


def check_pool(subject: Subject, pool: Pool) -> None:
    """Raises RecipeError if the encoder has nothing to pool, found out on one image."""
    extract(subject.pretrainer.encoder, subject, subject.train, torch.arange(1), pool)


def pixels(subject: Subject, source: Source, index: Tensor) -> Tensor:
    """Flattens the images themselves: the features that cost nothing.

    Larger images are averaged down to 32 x 32 cells.

    Shape: (n, C * height * width) float32 on the subject's device.
    """
    height, width = subject.view.image_size
    size = min(height, _PIXELS_SIDE), min(width, _PIXELS_SIDE)
    batches = _whole(subject, source, index)
    return torch.cat([F.adaptive_avg_pool2d(image, size).flatten(1) for image in batches])


def _whole(subject: Subject, source: Source, index: Tensor) -> Iterator[Tensor]:
    images = WholeImages(source, index, (subject.view,), FEATURE_BATCH)
    for _, views in images.stream(len(images), workers=subject.workers, device=subject.device):
        yield views[subject.view.name]


def _pool(tokens: Tokens, pool: Pool) -> Tensor:
    if pool == "mean":
        return tokens.patches.mean(dim=1)
    if tokens.prefix.shape[1] == 0:
        raise RecipeError(
            "pool: 'cls' needs an encoder with a class token, but this one has none. "
            "Use pool = 'mean'."
        )
    return tokens.prefix[:, 0]
