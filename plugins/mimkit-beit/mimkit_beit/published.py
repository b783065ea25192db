"""OpenAI's dVAE: finding its files, fetching them, and keeping a copy that holds only numbers."""

import os
import shutil
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import torch
from torch import Tensor

from mimkit import DataError, misfits
from mimkit_beit.pickles import read_weights
from mimkit_beit.store import checksum, load, save, write
from mimkit_beit.tokenizer import Network, Size, make_network

Say = Callable[[str], None]

URL: Final = "https://cdn.openai.com/dall-e/{}.pkl"
_ANSWER_SECONDS: Final = 10
"""How long the server may keep silent before this machine counts as offline."""


@dataclass(frozen=True)
class Weights:
    """One network, as a published file has it.

    Args:
        tensors: its state dict, float32.
        size: of the network.
        sha256: of the file.
    """

    tensors: Mapping[str, Tensor]
    size: Size
    sha256: str


def cache() -> Path:
    """Returns the folder ``dall-e`` of ``$MIMKIT_CACHE``, by default of ``~/.cache/mimkit``."""
    root = os.environ.get("MIMKIT_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "mimkit") / "dall-e"


def find(network: Network) -> Path | None:
    """Looks for a file of OpenAI's in ``$MIMKIT_DATA/dall-e``, then in the cache."""
    root = os.environ.get("MIMKIT_DATA")
    folders = [Path(root).expanduser() / "dall-e"] if root else []
    files = [folder / f"{network}.pkl" for folder in (*folders, cache())]
    return next((file for file in files if file.is_file()), None)


def is_here(network: Network) -> bool:
    """Whether a file of OpenAI's, or the copy of its numbers, is on this machine."""
    return find(network) is not None or (cache() / f"{network}.json").is_file()


def fetch(network: Network, say: Say) -> None:
    """Downloads a file of OpenAI's into the cache, unless `is_here`.

    Raises: DataError if the server does not give it.
    """
    if is_here(network):
        return
    url, file = URL.format(network), cache() / f"{network}.pkl"
    say(f"dvae: downloading {url} to {file}")
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
            expected = int(answer.headers.get("Content-Length") or 0)

            def fill(path: Path) -> None:
                with path.open("wb") as stream:
                    shutil.copyfileobj(answer, stream, 1 << 20)
                if expected and path.stat().st_size != expected:
                    raise OSError(f"only {path.stat().st_size:,} of {expected:,} bytes came")

            write(file, fill)
    except (OSError, ValueError) as error:
        raise DataError(f"{url}: must be downloaded, but: {error}. {_advice(network)}") from error


def identify(network: Network, source: Path | None) -> str:
    """Returns the SHA-256 of a published file; where ``source`` is None, of OpenAI's.

    Raises: DataError if there is no such file.
    """
    source = source or find(network)
    if source is not None:
        return _checksum(source)
    found = load(cache() / f"{network}.safetensors")
    if found is None:
        raise DataError(_missing(network))
    return str(found[1]["sha256"])


def load_network(network: Network, source: Path | None, say: Say) -> Weights:
    """Reads one network of a published file, or the copy that was made when it was first read.

    Args:
        network: which of the two.
        source: the file; None for OpenAI's.
        say: is told the SHA-256 of a file that is read for the first time.

    Raises: DataError if the file is not there, is none of a dVAE, or, being OpenAI's, is not the
        one that was read the first time.
    """
    file = source or find(network)
    digest = None if file is None else _checksum(file)
    copy = cache() / (f"{network}-{digest}.safetensors" if source else f"{network}.safetensors")
    found = load(copy)
    if found is not None:
        tensors, facts = found
        if digest not in (None, facts["sha256"]):
            raise DataError(
                f"{file}: must be the file of SHA-256 {facts['sha256']} that was read before, but "
                f"its own is {digest}. If it is the right one, remove {copy} and its .json."
            )
        return Weights(tensors, _measure(network, tensors, copy), str(facts["sha256"]))
    if file is None or digest is None:
        raise DataError(_missing(network))
    say(f"dvae: reading {file} for the first time, SHA-256 {digest}")
    whole = read_weights(file)
    part = {
        name.removeprefix(f"{network}."): tensor
        for name, tensor in whole.items()
        if name.startswith(f"{network}.")
    }
    # One file may hold both; the names of one of them may be bare.
    other = next(f"{each}." for each in get_args(Network) if each != network)
    tensors = part or {name: whole[name] for name in whole if not name.startswith(other)}
    size = _measure(network, tensors, file)
    save(copy, tensors, {"sha256": digest, "source": str(file)})
    return Weights(tensors, size, digest)


def decoder_of(encoder: Path) -> Path | None:
    """Returns the file with the decoder that belongs to an encoder's, if there is one.

    That of ``encoder.pkl`` is ``decoder.pkl`` beside it; a trained tokenizer has both in one file.
    """
    names = read_weights(encoder) if encoder.suffix == ".safetensors" else {}
    if any(name.startswith("decoder.") for name in names):
        return encoder
    sibling = encoder.with_name(encoder.name.replace("encoder", "decoder"))
    return sibling if sibling != encoder and sibling.is_file() else None


def _measure(network: Network, tensors: Mapping[str, Tensor], file: Path) -> Size:
    """Finds the size of which the tensors are exactly the network."""
    first, last = (
        tensors.get(name, torch.empty(0)) for name in ("blocks.input.w", "blocks.output.conv.w")
    )
    if first.ndim != 4 or last.ndim != 4 or not first.numel() or not last.numel():
        some = ", ".join(repr(name) for name in list(tensors)[:4])
        raise DataError(
            f"{file}: must hold the {network} of a dVAE, of the names that OpenAI's has "
            f"('blocks.input.w', ...), but holds {len(tensors)} tensors such as {some}."
        )
    num_blocks = sum(
        name.startswith("blocks.group_1.") and name.endswith(".conv_1.w") for name in tensors
    )
    if network == "encoder":
        size = Size(last.shape[0], first.shape[0], num_blocks, channels=first.shape[1])
    else:
        size = Size(first.shape[1], last.shape[1], num_blocks, first.shape[0], last.shape[0] // 2)
    right = make_network(network, size).state_dict()
    wrong = [f"{name} is missing" for name in right if name not in tensors]
    wrong += misfits(tensors, right)
    if wrong:
        raise DataError(
            f"{file}: must hold exactly the {len(right)} tensors of a dVAE's {network}, but "
            f"{len(wrong)} are wrong: {', '.join(wrong[:4])}."
        )
    return size


def _checksum(file: Path) -> str:
    try:
        return checksum(file)
    except OSError as error:
        raise DataError(f"{file}: must be the weights of a dVAE, but: {error}.") from error


def _missing(network: Network) -> str:
    return f"target 'dvae': OpenAI's {network}.pkl must be here, but is not. {_advice(network)}"


def _advice(network: Network) -> str:
    return (
        f"Where there is network, run: wget {URL.format(network)} -O {network}.pkl (a capital O), "
        f"and put the file into $MIMKIT_DATA/dall-e/ or {cache()}. Or train a tokenizer on your "
        "own images: weights = 'train'."
    )
