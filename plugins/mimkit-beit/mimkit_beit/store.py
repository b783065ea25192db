"""Tensors and facts on disk, whole or not at all: a safetensors file and a JSON file beside it."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimkit import DataError


def save(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Writes ``file`` (.safetensors), then the JSON file that says what it must hold.

    Raises: DataError if it cannot be written; what was there before then is intact.
    """
    copies = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write(file, lambda path: save_file(copies, path))
    words = json.dumps({**facts, "checksum": checksum(file)}, indent=2) + "\n"
    write(file.with_suffix(".json"), lambda path: path.write_text(words, encoding="utf-8"))


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Reads what `save` wrote; None if there is nothing, or it is damaged."""
    try:
        facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        return (load_file(file), facts) if facts["checksum"] == checksum(file) else None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return None


def sweep(file: Path) -> None:
    """Removes what killed processes left half-written of ``file``; nobody may be writing it."""
    for target in (file, file.with_suffix(".json")):
        for path in file.parent.glob(f".{target.name}.*.tmp"):
            path.unlink(missing_ok=True)


def checksum(file: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(file: Path, fill: Callable[[Path], object]) -> None:
    """Lets ``fill`` write a temporary file beside ``file``, then renames it into place.

    Its permissions are those of any new file of the user, whatever ``fill`` made of them.

    Raises: DataError if it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        fill(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{file}: must be written, but: {error}. What was there before is intact. Free some "
            "space or name another folder (MIMKIT_CACHE, --out), then repeat the same command."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it may never have come about
            temporary.unlink()
