"""A tokenizer trained on the training images, once for all runs that ask for the same."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mimkit import DataError, Images, Preparation, Resumable, View
from mimkit_beit import store
from mimkit_beit.fit import Plan, fit
from mimkit_beit.health import examine
from mimkit_beit.tokenizer import Size, Tokenizer, unmap_pixels

Say = Callable[[str], None]

_NUM_HELD_OUT: Final = 512
_CHUNK_IMAGES: Final = 64
_FORMAT: Final = 2
"""Raised when training changes, so that tokenizers of old are no longer found."""
_CHECKPOINT_STEPS: Final = 100


def train(
    images: Images,
    view: View,
    workdir: Path,
    *,
    size: Size,
    plan: Plan,
    num_images: int,
    device: torch.device,
    say: Say,
) -> tuple[Tokenizer, Preparation]:
    """Trains a tokenizer, or finds the same one in ``workdir``; a damaged one is made again.

    Killed while it trains, it goes on where it was when it is called again.

    Args:
        images: the training images; up to 512 of them are held out for `examine`.
        view: the rendering that the tokenizer sees.
        workdir: where tokenizers are kept, named by images and settings.
        size: of the networks.
        plan: how to train.
        num_images: how many images to train on at most.
        device: where to train.
        say: is told of the progress.

    Returns: the tokenizer, on the CPU, and what to report of it.
    Raises: DataError if there are too few images; TrainingError if it does not converge.
    """
    settings = (_FORMAT, images.fingerprint, asdict(view), asdict(size), asdict(plan), num_images)
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    file = workdir / f"dvae-{key}.safetensors"
    found = store.load(file)
    if found is not None:
        say(f"dvae: a tokenizer trained on these images with these settings is here, {file}")
        return _restore(*found, size, cached=True)
    if file.is_file():
        say(f"dvae: {file} is damaged and is made again")
    if len(images) < 2:
        raise DataError(
            f"target 'dvae': to train a tokenizer there must be at least 2 images, but there is "
            f"{len(images)}."
        )
    place = workdir / f"dvae-{key}"
    with Resumable(place, "dvae", say, every_steps=_CHECKPOINT_STEPS) as training:
        found = store.load(file)  # another process may have made it meanwhile
        cached = found is not None
        if found is None:
            store.sweep(file)
            tensors, words = _make(
                images,
                view,
                size=size,
                plan=plan,
                num_images=num_images,
                device=device,
                say=say,
                training=training,
            )
            found = tensors, {**words, "settings": settings}
            store.save(file, *found)
    return _restore(*found, size, cached=cached)


def _make(
    images: Images,
    view: View,
    *,
    size: Size,
    plan: Plan,
    num_images: int,
    device: torch.device,
    say: Say,
    training: Resumable,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains a tokenizer and examines it; returns what is kept of it."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(plan.seed))
    num_held_out = max(1, min(_NUM_HELD_OUT, len(images) // 10))
    held_out, chosen = order[:num_held_out], order[num_held_out:][:num_images]
    say(f"dvae: training a tokenizer of {size.codebook_size} codes on {len(chosen):,} images")
    pixels = torch.cat(
        [_pixels(images.view(part, view)) for part in torch.split(chosen, _CHUNK_IMAGES)]
    )
    encoder, decoder = fit(pixels, size, plan, device, say=say, training=training)
    tokenizer = Tokenizer(size, encoder, decoder).to(device)
    health = examine(tokenizer, images.view(held_out, view), device)
    tensors = {
        **{f"encoder.{name}": tensor for name, tensor in encoder.items()},
        **{f"decoder.{name}": tensor for name, tensor in decoder.items()},
        **{f"picture.{title}": picture for title, picture in health.pictures.items()},
    }
    facts = {"images trained on": len(chosen), "steps": plan.total_steps, **health.facts}
    return tensors, {"seconds": training.seconds, "facts": facts}


def _restore(
    tensors: Mapping[str, Tensor], words: Mapping[str, Any], size: Size, *, cached: bool
) -> tuple[Tokenizer, Preparation]:
    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    pictures = part("picture.")
    return (
        Tokenizer(size, part("encoder."), part("decoder.")),
        Preparation(
            title="a dVAE trained on the training images",
            seconds=words["seconds"],
            cached=cached,
            facts=words["facts"],
            pictures={title: pictures[title] for title in sorted(pictures)},
        ),
    )


def _pixels(view: Tensor) -> Tensor:
    """Keeps views in a quarter of the memory; they come from 8 bits, so nothing is lost."""
    return (unmap_pixels(view) * 255).round().to(torch.uint8)
