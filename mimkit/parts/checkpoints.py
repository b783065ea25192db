"""Reading the checkpoints of other projects without running what they may hold."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mimkit.errors import DataError

# Training programs save their options, and learning rates as numbers of numpy. Rebuilding them
# runs no code of the file. The module of numpy's numbers has another name since numpy 2.
_SCALAR: Final[Any] = np.float64(0).__reduce__()[0]
_ALLOWED: Final[list[Any]] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
_NESTED: Final = ("model", "module", "state_dict")
_SNIFFED_BYTES: Final = 512
_KNOWN: Final = "Known are .safetensors files, and what torch.save writes of tensors and numbers."


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    >>> Checkpoint({"norm.weight": torch.ones(3)}, {"lr": 1e-3}).args["lr"]
    0.001

    Args:
        tensors: the model's state dict.
        args: the options of the program that wrote it, as far as it kept them.
    """

    tensors: Mapping[str, Tensor]
    args: Mapping[str, object] = field(default_factory=dict)


def read_checkpoint(file: Path) -> Checkpoint:
    """Reads a file of safetensors or of `torch.save`, onto the CPU.

    >>> torch.save({"model": {"norm.weight": torch.ones(3)}}, "model.pth")
    >>> read_checkpoint(Path("model.pth")).tensors["norm.weight"]
    tensor([1., 1., 1.])

    Raises: DataError if it is neither, is damaged, or asks for code to be run.
    """
    with file.open("rb") as stream:
        start = stream.read(_SNIFFED_BYTES)
    if not start:
        raise DataError(f"{file}: must be a checkpoint, but is empty. Download it again.")
    if _is_text(start):
        first = start.decode("utf-8", errors="replace").strip().splitlines()
        raise DataError(
            f"{file}: must be a checkpoint, but is text that begins with "
            f"{(first or [''])[0][:80]!r}. If it is the log of a download: wget writes the log "
            "with -o and the file with -O. Download it again."
        )
    if file.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(file))
        except SafetensorError as error:
            raise DataError(f"{file}: {_damaged(file, '.safetensors', error)}") from error
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{file}: {_refusal(file, error)}") from error
    return _unwrap(content, file)


def _unwrap(content: object, file: Path) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise DataError(
            f"{file}: must hold a state dict, but holds a {type(content).__name__}. {_KNOWN}"
        )
    args = content.get("args")
    tensors = next(
        (content[key] for key in _NESTED if isinstance(content.get(key), Mapping)),
        content,
    )
    strange = [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]
    if strange or not tensors:
        raise DataError(
            f"{file}: must hold a state dict, alone or under {', '.join(map(repr, _NESTED))}, "
            f"but its entries are {', '.join(map(repr, strange[:5])) or 'none'}."
        )
    return Checkpoint(
        # What was trained on several devices has every name below "module".
        {key.removeprefix("module."): value for key, value in tensors.items()},
        vars(args) if isinstance(args, argparse.Namespace) else {},
    )


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\x1b" for byte in start)


def _refusal(file: Path, error: Exception) -> str:
    unsafe = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if unsafe:
        return (
            f"must hold tensors and numbers, but also holds an object of {unsafe[1]}; making it "
            "could run any code, so nothing was loaded. If you trust the file, load it yourself "
            "and save its state dict alone: torch.save(checkpoint['model'], FILE)."
        )
    return _damaged(file, "torch.save", error)


def _damaged(file: Path, kind: str, error: Exception) -> str:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"must be a file of {kind}, but is damaged, cut off or something else "
        f"({file.stat().st_size:,} bytes; {first[0][:120]}). {_KNOWN} Compare its size with the "
        "source's, and download it again."
    )
