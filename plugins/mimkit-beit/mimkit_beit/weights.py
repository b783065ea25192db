"""Which tokenizer a recipe asks for: OpenAI's, a file's, or one that is yet to be trained."""

import contextlib
import difflib
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mimkit import DataError, RecipeError
from mimkit_beit import published
from mimkit_beit.tokenizer import PUBLISHED

_SUFFIXES: Final = (".pkl", ".pth", ".safetensors")
_TRAINED_CODES: Final = 512


def settled(options: Mapping[str, Any], say: Callable[[str], None]) -> Mapping[str, Any]:
    """Decides what "auto" is, downloads what it needs, and notes the file's SHA-256.

    Raises: DataError if published weights are asked for and cannot be had.
    """
    found = dict(options)
    weights, codebook_size = found["weights"], found["codebook_size"]
    if weights == "auto":
        reason = f"has no {codebook_size} codes"
        if codebook_size in (None, PUBLISHED.codebook_size):
            reason = "cannot be downloaded (mimkit list targets dvae says where it may lie)"
            with contextlib.suppress(DataError):
                published.fetch("encoder", say)
        weights = choose(weights, codebook_size)
        if weights == "train":
            say(
                "dvae: a tokenizer is TRAINED on these images, so that results differ from the "
                f"papers': OpenAI's {reason}"
            )
        else:
            say("dvae: weights = 'auto': OpenAI's published tokenizer is used.")
    if weights == "openai":
        published.fetch("encoder", say)
        try:
            published.fetch("decoder", say)
        except DataError as error:
            say(f"dvae: without its decoder no pictures of tokens are made. {error}")
    if weights != "train" and found["sha256"] is None:
        found["sha256"] = published.identify("encoder", path_of(weights))
    found["weights"] = weights
    found["codebook_size"] = codebook_size or default_codes(weights)
    return found


def choose(weights: str, codebook_size: int | None) -> str:
    """Says what "auto" is as things are on this machine."""
    if weights != "auto":
        return weights
    fits = codebook_size in (None, PUBLISHED.codebook_size)
    return "openai" if fits and published.is_here("encoder") else "train"


def default_codes(weights: str) -> int:
    """Says how many codes there are where the recipe does not."""
    return _TRAINED_CODES if weights == "train" else PUBLISHED.codebook_size


def path_of(weights: str) -> Path | None:
    """Says where the encoder lies; None for OpenAI's."""
    return None if weights == "openai" else Path(weights).expanduser()


def check(weights: str, sha256: str | None, codebook_size: int | None) -> None:
    """Compares what a recipe says of the tokenizer.

    Raises: RecipeError if options contradict each other.
    """
    words = ("auto", "openai", "train")
    if weights not in words and Path(weights).suffix not in _SUFFIXES:
        match = difflib.get_close_matches(weights, words, n=1)
        hint = f" Did you mean '{match[0]}'?" if match else ""
        raise RecipeError(
            "target 'dvae', weights: must be 'auto', 'openai', 'train' or a path that ends in "
            f"{', '.join(_SUFFIXES)}, but is '{weights}'.{hint}"
        )
    if weights == "openai" and codebook_size not in (None, PUBLISHED.codebook_size):
        raise RecipeError(
            f"target 'dvae', codebook_size: must be {PUBLISHED.codebook_size} with weights = "
            f"'openai', but is {codebook_size}. Leave it out, or train with weights = 'train'."
        )
    if sha256 is None:
        return
    if weights in ("auto", "train"):
        raise RecipeError(
            "target 'dvae', sha256: must be left out unless a published file is named, but weights "
            f"is '{weights}'. Set weights = 'openai', or a path."
        )
    if len(sha256) != 64 or not set(sha256) <= set(string.hexdigits.lower()):
        raise RecipeError(
            "target 'dvae', sha256: must be 64 hexadecimal digits in lower case, as sha256sum "
            f"prints them, but is '{sha256}'."
        )
