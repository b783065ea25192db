"""Reading the files of a published tokenizer without running any code that they may hold.

OpenAI's files are whole pickled modules, and an ordinary unpickler makes objects of any class that
a file names. Here the few classes of which such a module consists are all replaced by one that
only keeps what it is given, and every other name is refused.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mimkit import DataError, unwrap


class _Inert:
    """Stands for an object of any class of the network: nothing but its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _UnsafeError(Exception):
    """The file names something that no dVAE consists of."""


class _MisfitError(Exception):
    """The file is something else, or damaged."""


_CLASSES: Final = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.upsampling.Upsample",
)
_SNIFFED_BYTES: Final = 512
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
# What unpicklers raise on bytes that are no pickle, or half of one, is not written down anywhere.
_BROKEN: Final = (
    pickle.UnpicklingError,
    SafetensorError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    _MisfitError,
)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Reads the weights of one network: a pickled module, a state dict, or safetensors.

    Returns: its tensors by name, on the CPU, freed of what wraps them, as `mimkit.unwrap` does.
    Raises: DataError, with what was found, if the file is none of them, is damaged, asks for
        anything to be run, or holds numbers that are NaN or infinite.
    """
    try:
        content = _read(file)
        if isinstance(content, _Inert):
            content = dict(_walk(content, ""))
    except _UnsafeError as error:
        raise DataError(
            f"{file}: must be the weights of a dVAE, but asks for '{error}', which is no part of "
            "one. Nothing of it was run or loaded. Get the file from a source that you trust."
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{file}: must be the weights of a dVAE, but does not exist.") from error
    except _BROKEN as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise DataError(
            f"{file}: must be the weights of a dVAE, but is damaged, cut short or something else: "
            f"{reason} ({file.stat().st_size:,} bytes). Download it again with wget -O FILE URL: a "
            "small -o writes wget's log into FILE."
        ) from error
    return dict(unwrap(content, file).tensors)


def _read(file: Path) -> object:
    with file.open("rb") as stream:
        start = stream.read(_SNIFFED_BYTES)
        if not start:
            raise _MisfitError("it is empty")
        if all(byte >= 32 or byte in b"\t\n\r\x1b" for byte in start):
            line = start.decode("utf-8", errors="replace").strip().splitlines()[0]
            raise _MisfitError(f"it is a text that begins with {line[:80]!r}")
        stream.seek(0)
        if start.startswith(b"PK"):
            return _read_zip(file)
        if start[8:9] == b"{":
            return load_file(file)
        return _read_legacy(stream, file.stat().st_size)


def _read_zip(file: Path) -> object:
    """Reads what torch.save writes since 1.6."""
    allowed: list[Any] = [(_Inert, name) for name in _CLASSES]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise _UnsafeError(refused[1]) from error
        raise


def _read_legacy(stream: BinaryIO, num_bytes: int) -> object:
    """Reads what torch.save wrote before 1.6; torch itself reads no module of it safely."""
    if _LegacyUnpickler(stream, num_bytes).load() != _LEGACY_MAGIC:
        raise _MisfitError("it is a pickle, but not one of torch.save")
    for _ in ("protocol", "machine"):
        _LegacyUnpickler(stream, num_bytes).load()
    unpickler = _LegacyUnpickler(stream, num_bytes)
    content: object = unpickler.load()
    # The numbers follow, storage by storage, each after their count.
    for key in _LegacyUnpickler(stream, num_bytes).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(stream.read(8), "little")
        raw = bytearray(stream.read(4 * count))
        if count != len(storage) or len(raw) != 4 * count:
            raise _MisfitError("it ends in the middle of its numbers")
        storage.copy_(torch.frombuffer(raw, dtype=torch.float32))
    return content


class _LegacyUnpickler(pickle.Unpickler):
    """Makes `_Inert` objects, and tensors over storages that are filled afterwards."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        super().__init__(stream)
        self.num_bytes = num_bytes
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        """Looks a name up in the list of those allowed, which imports nothing."""
        full = f"{module}.{name}"
        if full not in _LEGACY_NAMES:
            raise _UnsafeError(full)
        return _LEGACY_NAMES[full]

    def persistent_load(self, pid: Any) -> object:
        """Gives the class or the storage that the file refers to."""
        if pid[0] == "module":
            return pid[1]  # followed by its source code, which nobody needs
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or dtype is not torch.float32 or view is not None:
            raise _MisfitError(f"its tensors are kept in an unknown way, {pid!r}")
        if 4 * count > self.num_bytes:
            raise _MisfitError("it announces more numbers than it has bytes")
        return self.storages.setdefault(key, torch.empty(count))


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Tensor, *_: object) -> Tensor:
    return value


def _nothing(*_: object) -> None:
    return None


_LEGACY_NAMES: Final[dict[str, type | torch.dtype | Callable[..., object]]] = {
    **dict.fromkeys(_CLASSES, _Inert),
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "torch.FloatStorage": torch.float32,
    "torch.device": _nothing,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
}


def _walk(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module._parameters.items():
        yield prefix + name, parameter.detach()
    for name, child in module._modules.items():
        yield from _walk(child, f"{prefix}{name}.")
