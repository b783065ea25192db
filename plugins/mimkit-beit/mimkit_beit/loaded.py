"""A published tokenizer, with a look at what it does to the training images."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mimkit import DataError, Images, Preparation, View
from mimkit_beit import store
from mimkit_beit.health import examine
from mimkit_beit.published import decoder_of, fetch, find, identify, is_here, load_network
from mimkit_beit.tokenizer import PUBLISHED, Network, Size, Tokenizer, make_network

Say = Callable[[str], None]

_NUM_EXAMINED: Final = {"cuda": 512, "cpu": 64}
"""OpenAI's tokenizer takes the better part of a second for an image on a CPU."""
_FORMAT: Final = 1
"""Raised when the health card changes, so that those of old are no longer found."""


def load(
    images: Images,
    view: View,
    workdir: Path,
    *,
    source: Path | None,
    sha256: str | None,
    size: Size,
    device: torch.device,
    say: Say,
) -> tuple[Tokenizer, Preparation]:
    """Loads a published tokenizer and examines it on images, unless ``workdir`` tells the result.

    Args:
        images: the training images, which it never saw.
        view: the rendering that the tokenizer sees.
        workdir: where health cards are kept, named by images, view and weights.
        source: the encoder's file; None for OpenAI's, which is downloaded if it is not there.
        sha256: what that file must have, or None.
        size: codes and channels that it must have.
        device: where to examine.
        say: is told what happens.

    Returns: the tokenizer, on the CPU, and what to report of it.
    Raises: DataError if a file is missing, damaged, or another than asked for.
    """
    start = time.perf_counter()
    if source is None:
        fetch("encoder", say)
    tokenizer, hashes = _read(source, sha256, size, say)
    key, examined, settings = _card(images, view, hashes, device)
    file = workdir / f"{key}.safetensors"
    card = store.load(file)
    cached = card is not None
    if card is None:
        say(f"dvae: looking at what the tokenizer does to {examined} images")
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:examined]
        health = examine(tokenizer.to(device), images.view(chosen, view), device)
        tokenizer.cpu()
        seconds = time.perf_counter() - start
        words: dict[str, Any] = {
            "seconds": seconds,
            "facts": dict(health.facts),
            "settings": settings,
        }
        card = dict(health.pictures), words
        store.save(file, *card)
    pictures, words = card
    preparation = Preparation(
        title=_title(source),
        seconds=words["seconds"],
        cached=cached,
        facts={"SHA-256 of the encoder": str(hashes[0]), **words["facts"]},
        pictures={title: pictures[title] for title in sorted(pictures)},
        key=key,
    )
    return tokenizer, preparation


def rehearse(
    images: Images,
    view: View,
    workdir: Path,
    *,
    source: Path | None,
    sha256: str | None,
    size: Size,
    device: torch.device,
) -> tuple[Tokenizer, Preparation]:
    """Reads a published tokenizer if it is there, and estimates what `load` takes.

    OpenAI's is not downloaded: another of its size, with weights that say nothing, stands for it.

    Args:
        images: the training images, of which one is read.
        view: the rendering that the tokenizer sees.
        workdir: where health cards are kept; nothing is written there.
        source: as for `load`.
        sha256: as for `load`.
        size: codes and channels that it must have.
        device: where to examine.

    Returns: the tokenizer, on the CPU, and what it costs; its seconds are an estimate unless it is
        cached.
    Raises: DataError as `load`.
    """
    hashes: tuple[str | None, ...] = (None,)
    if source is None and not is_here("encoder"):
        tokenizer = Tokenizer(PUBLISHED, _blank("encoder"), _blank("decoder"))
    else:
        tokenizer, hashes = _read(source, sha256, size, lambda _: None)
    key, examined, _ = _card(images, view, hashes, device)
    card = store.load(workdir / f"{key}.safetensors")
    start = time.perf_counter()
    if card is None:
        examine(tokenizer.to(device), images.view(torch.arange(1), view), device)
    seconds = examined * (time.perf_counter() - start) if card is None else card[1]["seconds"]
    return tokenizer.cpu(), Preparation(_title(source), seconds, cached=card is not None, key=key)


def _read(
    source: Path | None, sha256: str | None, size: Size, say: Say
) -> tuple[Tokenizer, tuple[str | None, ...]]:
    """Reads both networks; also gives the SHA-256 of their files."""
    if sha256 is not None and (found := identify("encoder", source)) != sha256:
        raise DataError(
            f"target 'dvae', sha256: the encoder's file {source or find('encoder')} must have "
            f"{sha256}, but has {found}. Get the file that the recipe means, or change sha256."
        )
    encoder = load_network("encoder", source, say)
    _check_size(encoder.size, size, source)
    decoder_file = decoder_of(source) if source else None
    decoder = None
    if decoder_file is not None or (source is None and is_here("decoder")):
        decoder = load_network("decoder", decoder_file, say)
        if replace(decoder.size, code_dim=encoder.size.code_dim) != encoder.size:
            raise DataError(
                f"target 'dvae': encoder and decoder must belong together, but are {encoder.size} "
                f"and {decoder.size}."
            )
    tokenizer = Tokenizer(
        encoder.size if decoder is None else decoder.size,
        encoder.tensors,
        None if decoder is None else decoder.tensors,
    )
    hashes = (encoder.sha256, None if decoder is None else decoder.sha256)
    return tokenizer, hashes


def _card(
    images: Images, view: View, hashes: tuple[str | None, ...], device: torch.device
) -> tuple[str, int, tuple[Any, ...]]:
    """Names the health card; also says how many images it is about, and all that it depends on."""
    examined = min(_NUM_EXAMINED.get(device.type, 64), len(images))
    settings = (_FORMAT, images.fingerprint, asdict(view), *hashes, examined)
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return f"dvae-health-{key}", examined, settings


def _title(source: Path | None) -> str:
    return "a published dVAE" if source else "OpenAI's dVAE"


def _blank(network: Network) -> dict[str, Tensor]:
    tensors = make_network(network, PUBLISHED).state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}


def _check_size(found: Size, asked: Size, source: Path | None) -> None:
    if source is None and found != PUBLISHED:
        raise DataError(
            f"{find('encoder')}: must be OpenAI's encoder, {PUBLISHED}, but is {found}. Remove it, "
            f"or name it by its path in weights if you want it."
        )
    if found.codebook_size != asked.codebook_size:
        raise DataError(
            f"{source}: must have {asked.codebook_size} codes, but has {found.codebook_size}. Set "
            f"codebook_size = {found.codebook_size}."
        )
    if found.channels != asked.channels:
        raise DataError(
            f"{source or 'OpenAI'}: must take images of {asked.channels} channels "
            f"(data.channels), but takes {found.channels}. Let one be trained on your images "
            "instead (weights = 'train')."
        )
