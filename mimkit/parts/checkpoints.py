"""Reading the checkpoints of other projects without running what they may hold."""

import argparse
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mimkit.errors import DataError
from mimkit.parts.state_dicts import Checkpoint, unwrap

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
_SNIFFED_BYTES: Final = 512
_KNOWN: Final = "Known are .safetensors files, and what torch.save writes of tensors and numbers."


def read_checkpoint(file: Path) -> Checkpoint:
    """Reads a file of safetensors or of `torch.save`, onto the CPU, and `unwrap` it.

    >>> torch.save({"model": {"module.norm.weight": torch.ones(3)}}, "model.pth")
    >>> read_checkpoint(Path("model.pth")).tensors["norm.weight"]
    tensor([1., 1., 1.])

    Raises: DataError if it cannot be read, is neither, is damaged, asks for code to be run, or
        holds no sound state dict.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(_SNIFFED_BYTES)
    except OSError as error:
        raise DataError(f"{file}: must be a checkpoint, but cannot be read: {error}.") from error
    if not start:
        raise DataError(f"{file}: must be a checkpoint, but is empty. Download it again.")
    if _is_text(start):
        first = start.decode("utf-8", errors="replace").strip().splitlines()
        raise DataError(
            f"{file}: must be a checkpoint, but is text that begins with "
            f"{(first or [''])[0][:80]!r}. If it is the log of a download: wget writes the log "
            "with -o and the file with -O. Download it again."
        )
    if file.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return unwrap(load_file(file), file)
        except SafetensorError as error:
            raise DataError(f"{file}: {_damaged(file, '.safetensors', error)}") from error
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{file}: {_refusal(file, error)}") from error
    return unwrap(content, file)


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
