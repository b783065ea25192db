"""A tokenizer trained on the training images, once for all runs that ask for the same."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mimkit import DataError, Images, Preparation, Resumable, View
from mimkit_beit import store
from mimkit_beit.fit import Plan, Rehearsal, fit
from mimkit_beit.health import examine
from mimkit_beit.tokenizer import Size, Tokenizer, unmap_pixels

Say = Callable[[str], None]

_TITLE: Final = "a dVAE trained on the training images"
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
    settings = _settings(images, view, size, plan, num_images)
    key = _key(settings)
    file = workdir / f"{key}.safetensors"
    found = store.load(file)
    if found is not None:
        say(f"dvae: a tokenizer trained on these images with these settings is here, {file}")
        return _restore(*found, size, key, cached=True)
    if file.is_file():
        say(f"dvae: {file} is damaged and is made again")
    if len(images) < 2:
        raise DataError(
            f"target 'dvae': to train a tokenizer there must be at least 2 images, but there is "
            f"{len(images)}."
        )
    place = workdir / key
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
    return _restore(*found, size, key, cached=cached)


def rehearse(
    images: Images,
    view: View,
    workdir: Path,
    *,
    size: Size,
    plan: Plan,
    num_images: int,
    device: torch.device,
) -> tuple[Tokenizer, Preparation]:
    """Finds a trained tokenizer, else makes an untrained one and estimates what `train` takes.

    Args:
        images: the training images; as many as a batch has are read.
        view: the rendering that the tokenizer sees.
        workdir: where tokenizers are kept; nothing is written there.
        size: of the networks.
        plan: how to train.
        num_images: how many images to train on at most.
        device: where to train.

    Returns: the tokenizer, on the CPU, and what it costs; its seconds are an estimate unless it is
        cached.
    """
    key = _key(_settings(images, view, size, plan, num_images))
    found = store.load(workdir / f"{key}.safetensors")
    if found is not None:
        return _restore(*found, size, key, cached=True)
    start = time.perf_counter()
    few = torch.arange(min(plan.batch_size, len(images)))
    views = images.view(few, view)
    reading = (time.perf_counter() - start) / len(few)
    training = Rehearsal()
    encoder, decoder = fit(
        _quarter(views), size, plan, device, say=lambda _: None, training=training
    )
    tokenizer = Tokenizer(size, encoder, decoder).to(device)
    start = time.perf_counter()
    examine(tokenizer, views, device)
    examining = (time.perf_counter() - start) / len(few)
    held_out, chosen = _split(images, plan, num_images)
    seconds = training.seconds + reading * len(chosen) + (reading + examining) * len(held_out)
    return tokenizer.cpu(), Preparation(_TITLE, seconds, cached=False, key=key)


def _settings(
    images: Images, view: View, size: Size, plan: Plan, num_images: int
) -> tuple[Any, ...]:
    return (_FORMAT, images.fingerprint, asdict(view), asdict(size), asdict(plan), num_images)


def _key(settings: tuple[Any, ...]) -> str:
    return f"dvae-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"


def _split(images: Images, plan: Plan, num_images: int) -> tuple[Tensor, Tensor]:
    """Gives the numbers of the images that are held out, and of those to train on."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(plan.seed))
    num_held_out = max(1, min(_NUM_HELD_OUT, len(images) // 10))
    return order[:num_held_out], order[num_held_out:][:num_images]


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
    held_out, chosen = _split(images, plan, num_images)
    say(f"dvae: training a tokenizer of {size.codebook_size} codes on {len(chosen):,} images")
    pixels = torch.cat(
        [_quarter(images.view(part, view)) for part in torch.split(chosen, _CHUNK_IMAGES)]
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
    tensors: Mapping[str, Tensor], words: Mapping[str, Any], size: Size, key: str, *, cached: bool
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
            title=_TITLE,
            seconds=words["seconds"],
            cached=cached,
            facts=words["facts"],
            pictures={title: pictures[title] for title in sorted(pictures)},
            key=key,
        ),
    )


def _quarter(view: Tensor) -> Tensor:
    """Keeps views in a quarter of the memory; they come from 8 bits, so nothing is lost."""
    return (unmap_pixels(view) * 255).round().to(torch.uint8)
