"""Checkpoints that all processes write together, each its share: `torch.distributed.checkpoint`.

Its storage in safetensors is used, without any pickle: a folder with one file for each process. Any
number of processes can read it, a single one too.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from mimkit.errors import DataError, MimkitError
from mimkit.files import sha256, writing

T = TypeVar("T")
Like = Callable[[str], Tensor | None]
"""Gives for the name of a tensor another one, as which it shall be spread, if at all."""

_AGAIN: Final = "-again"
"""Ends the name of a folder where that of the same step is still needed."""


def write(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes what each process holds of some tensors, into a folder that appears once it is whole.

    All processes must call it at once. A folder that is there already is left as it is.

    Args:
        folder: where checkpoints lie, which all processes see.
        stem: name of the checkpoint.
        tensors: spread ones, and whole ones that are alike in all processes.

    Returns: what the checkpoint's record must say of it: the folder's name, and of each file in it
        the checksum.
    Raises: DataError in every process, if one of them cannot write.
    """
    temporary = folder / f".{stem}.tmp"
    leads = dist.get_rank() == 0
    _in_leader(lambda: _make_room(folder, temporary))
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        if leads:
            shutil.rmtree(temporary, ignore_errors=True)
        _raise_cause(temporary, error)
    digests = _digests(temporary)

    def name() -> str:
        lacking = dist.get_world_size() - len(digests)
        if lacking:
            raise DataError(
                f"{folder}: must be a folder that all machines see, but {lacking} of the "
                f"{dist.get_world_size()} processes write elsewhere. Choose such a one with --out."
            )
        chosen = stem if not (folder / stem).exists() else f"{stem}{_AGAIN}"
        with writing(folder / chosen):
            if (folder / chosen).exists():
                shutil.rmtree(folder / chosen)
            temporary.rename(folder / chosen)
            _sync(folder)
        return chosen

    return {"folder": _in_leader(name), "sha256": digests}


def is_whole(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether every file of a checkpoint is as it was written.

    Raises: OSError if one cannot be read.
    """
    return all(sha256(folder / name) == digest for name, digest in digests.items())


def read(folder: Path, prefix: str, like: Like | None = None) -> dict[str, Tensor]:
    """Reads the tensors whose names begin with ``prefix``, and names them without it.

    Each process reads what it needs, without asking the others.

    Args:
        folder: of a whole checkpoint, written by any number of processes.
        prefix: of the names.
        like: of which tensors, and how, only this process's share is wanted; None: all are whole.
    """
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, held in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(prefix):
            shape, dtype = cast(Any, held).size, cast(Any, held).properties.dtype
            model = like(name.removeprefix(prefix)) if like is not None else None
            tensors[name] = (
                torch.empty(shape, dtype=dtype)
                if model is None or model.shape != shape
                else torch.empty_like(model, dtype=dtype, requires_grad=False)
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is not needed
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _make_room(folder: Path, temporary: Path) -> None:
    with writing(temporary):
        for left in folder.glob(".step_*.tmp"):  # by a process that was killed
            if left.is_dir():
                shutil.rmtree(left)
        temporary.mkdir(parents=True)


def _digests(folder: Path) -> dict[str, str]:
    """Lets each process compute the checksums of its share of the files; returns all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    own = {path.name: sha256(path) for path in sorted(folder.glob("*"))[rank::size]}
    held: list[Any] = [None] * size
    dist.all_gather_object(held, own)
    return dict(sorted((name, digest) for each in held for name, digest in each.items()))


def _in_leader(make: Callable[[], T]) -> T:
    """Calls ``make`` in the leading process; what it returns, or raises, all of them do."""
    held: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            held[0] = make()
        except MimkitError as error:
            held[1] = error
    dist.broadcast_object_list(held)
    if held[1] is not None:
        raise held[1]
    return cast(T, held[0])


def _raise_cause(path: Path, error: CheckpointException) -> None:
    causes = [cause for cause, _ in error.failures.values()]
    with writing(path):
        for cause in causes:
            if isinstance(cause, OSError):
                raise cause
    raise error


def _sync(folder: Path) -> None:
    """Makes sure that a new name in a folder outlives the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
