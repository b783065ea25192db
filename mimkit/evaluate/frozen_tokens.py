"""The tokens of frozen encoders, kept or made anew for every batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mimkit.data.source import Source
from mimkit.evaluate.base import Subject
from mimkit.evaluate.cross_attention import standardise
from mimkit.evaluate.features import FEATURE_BATCH, evaluation_mode, joined
from mimkit.evaluate.images import Images, WholeImages
from mimkit.evaluate.pixel_tokens import PixelTokens
from mimkit.parts.encoder import Encoder

_FLOAT32_BYTES: Final = 4
_SHAPES: Final = WeakKeyDictionary[Encoder | PixelTokens, tuple[int, int]]()


@dataclass(frozen=True)
class FrozenTokens:
    """Standardised tokens of one split, from an encoder in evaluation mode or from pixels.

    Args:
        encoder: gives them.
        subject: view, precision, device and loader processes.
        source: the split.
        index: (n,) int64, ascending: the images that will be asked for.
        keep: compute them once and keep them.
    """

    encoder: Encoder | PixelTokens
    subject: Subject
    source: Source
    index: Tensor
    keep: bool

    @cached_property
    def kept(self) -> Tensor:
        """Encodes all images of ``index``: (n, T, D) on the device."""
        images = WholeImages(self.source, self.index, (self.subject.view,), FEATURE_BATCH)
        return joined((tokens for _, tokens in self._encode(images, len(images))), len(self.index))

    def stream(self, images: Images, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives the first ``count`` batches: image numbers (B,) and tokens (B, T, D)."""
        if not self.keep:
            yield from self._encode(images, count)
            return
        for number in range(count):
            index = images.choose(number)[0]
            rows = torch.searchsorted(self.index, index)
            yield index, self.kept[rows.to(self.kept.device)]

    @torch.no_grad()
    def _encode(self, images: Images, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        subject = self.subject
        for index, views in images.stream(count, workers=subject.workers, device=subject.device):
            with subject.autocast():
                tokens = self.encoder.features(views[subject.view.name])
            yield index, standardise(torch.cat([tokens.prefix, tokens.patches], dim=1))


def token_shape(encoder: Encoder | PixelTokens, subject: Subject) -> tuple[int, int]:
    """Returns T and D of one image's tokens, which one encoder gives to all images alike."""
    if encoder not in _SHAPES:
        with evaluation_mode(encoder):
            one = FrozenTokens(encoder, subject, subject.train, torch.arange(1), keep=True).kept
        _SHAPES[encoder] = one.shape[1], one.shape[2]
    return _SHAPES[encoder]


def gib_of(num_images: int, shape: tuple[int, int]) -> float:
    """Returns what the tokens of so many images need, in GiB."""
    return num_images * math.prod(shape) * _FLOAT32_BYTES / 2**30
