"""Frozen features: one vector per image, from an encoder that nothing changes."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.data.source import Source
from mimkit.errors import RecipeError
from mimkit.evaluate.base import Subject
from mimkit.evaluate.images import WholeImages
from mimkit.evaluate.on_disk import OnDisk, refuse_full_disk
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Tokens, View

Pool = Literal["mean", "cls"]
FEATURE_BATCH = 256
MEMORY_BYTES: Final = 8 * 2**30
"""Features of all layers of a split that need more lie on disk, in half precision."""
_FLOAT32_BYTES: Final = 4
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
    encoder: Encoder | None, subject: Subject, images: WholeImages, pool: Pool = "mean"
) -> Tensor:
    """Gives one vector an image.

    Args:
        encoder: used in evaluation mode; None for the images themselves (`flat_pixels`).
        subject: view, precision, device and loader processes.
        images: what to encode.
        pool: the mean of `Encoder.features`' patches, or its first prefix token.

    Shape: (n, D) float32 on the subject's device.
    Raises: RecipeError if ``pool`` is "cls" and the encoder has no such token.
    """
    if encoder is None:
        return joined(map(flat_pixels, rendered(subject, images)), len(images.index))

    def vectors(encoder: Encoder) -> Iterator[Tensor]:
        for image in rendered(subject, images):
            with subject.autocast():
                tokens = encoder.features(image)
            yield pooled(tokens, pool)

    with evaluation_mode(encoder):
        return joined(vectors(encoder), len(images.index))


@torch.no_grad()
def extract_layers(
    encoder: Encoder,
    subject: Subject,
    source: Source,
    index: Tensor,
    pools: Sequence[Pool],
    *,
    layers: Literal["last", "all"],
) -> list[dict[Pool, Tensor | OnDisk]]:
    """Encodes whole images, pooled in several ways, each image once for all of them.

    Args:
        encoder: used in evaluation mode.
        subject: view, precision, device and loader processes.
        source: the split.
        index: (n,) int64, which images.
        pools: the mean of the patches, or the first prefix token.
        layers: "all": of `Encoder.layers`; "last": of `Encoder.features` alone.

    Returns: for each layer, pool to (n, D): float32 in main memory, since for all layers a device
        may be too small; if they would need more than ``MEMORY_BYTES``, in the evaluator's folder.
        Either way ``to(device)`` gives a tensor.
    Raises: RecipeError if "cls" is asked for and the encoder has no such token; DataError if they
        do not fit on the disk.
    """
    kept: list[dict[Pool, Tensor | OnDisk]] = []
    start = 0
    with evaluation_mode(encoder):
        for image in rendered(subject, whole(subject, source, index)):
            with subject.autocast():
                found = encoder.layers(image) if layers == "all" else (encoder.features(image),)
            if not kept:
                widths = [tokens.patches.shape[-1] for tokens in found]
                kept = _make_room(subject, len(index), widths, pools)
            rows = slice(start, start + len(image))
            start = rows.stop
            for vectors, tokens in zip(kept, found, strict=True):
                for pool, features in vectors.items():
                    features[rows] = pooled(tokens, pool)
    return kept


def _make_room(
    subject: Subject, num_images: int, widths: Sequence[int], pools: Sequence[Pool]
) -> list[dict[Pool, Tensor | OnDisk]]:
    num_values = sum(widths) * len(pools)
    if num_images * num_values * _FLOAT32_BYTES <= MEMORY_BYTES:
        return [{pool: torch.empty(num_images, width) for pool in pools} for width in widths]
    refuse_full_disk(subject.workdir, num_images, num_values)
    return [
        {pool: OnDisk(subject.workdir, num_images, width) for pool in pools} for width in widths
    ]


def check_pool(subject: Subject, pool: Pool) -> None:
    """Raises RecipeError if the encoder has nothing to pool, found out on one image."""
    if pool != "mean":  # every encoder has patches
        one = whole(subject, subject.train, torch.arange(1))
        extract(subject.pretrainer.encoder, subject, one, pool)


def pixels(subject: Subject, source: Source, index: Tensor, side: int) -> Tensor:
    """Gives whole images themselves as features: they cost nothing. See `flat_pixels`.

    Shape: (n, C * height * width) float32 on the subject's device.
    """
    batches = rendered(subject, whole(subject, source, index))
    return joined((flat_pixels(image, side) for image in batches), len(index))


def joined(pieces: Iterable[Tensor], num_rows: int) -> Tensor:
    """Puts pieces (n, ...) one below the other, without holding all of them twice."""
    found, start = torch.empty(0), 0
    for piece in pieces:
        if not start:
            found = piece.new_empty(num_rows, *piece.shape[1:])
        found[start : start + len(piece)] = piece
        start += len(piece)
    return found


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
    """Gives one vector an image, (B, D) float32.

    Raises: RecipeError if ``pool`` is "cls" and there is no such token.
    """
    if pool == "mean":
        return tokens.patches.float().mean(dim=1)
    if tokens.prefix.shape[1] == 0:
        raise RecipeError(
            "the pool 'cls' needs an encoder with a class token, but this one has none. Use 'mean'."
        )
    return tokens.prefix[:, 0].float()


def whole(subject: Subject, source: Source, index: Tensor) -> WholeImages:
    """Names images of a split, (n,) int64, as the encoder sees them."""
    return WholeImages(source, index, (subject.view,), FEATURE_BATCH)


def rendered(subject: Subject, images: WholeImages) -> Iterator[Tensor]:
    """Gives images in batches as the encoder sees them, (B, C, H, W) on the subject's device."""
    for _, views in images.stream(len(images), workers=subject.workers, device=subject.device):
        yield views[subject.view.name]
