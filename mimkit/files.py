"""Writing files so that a kill or a full disk never leaves half of one."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mimkit.errors import DataError

_TEMPORARY: Final = re.compile(r"\..+\.(\d+)\.tmp")
""".NAME.PID.tmp, as `write_atomic` calls what is not complete yet."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in words what the system has against writing ``path``.

    Raises: DataError instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{path}: the disk is full, so this file could not be written; what was there "
                "before is intact. Free some space, then repeat the same command to go on."
            ) from error
        raise DataError(
            f"{path}: must be written, but: {_reason(error, path)}. What was there before is "
            "intact. Name another place with --out (MIMKIT_CACHE for what is cached), or change "
            "who may write there."
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says in words why ``path`` cannot be read.

    Raises: DataError instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: must be readable, but: {_reason(error, path)}.") from error


def _reason(error: OSError, path: Path) -> str:
    said = error.strerror or str(error)
    elsewhere = error.filename is not None and os.fspath(error.filename) != os.fspath(path)
    return f"{said} ({error.filename})" if elsewhere else said


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they are not there yet.

    Raises: DataError if that cannot be, as where a file is in the way.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then renames it into place.

    Its permissions are those of any new file of the user, whatever ``write`` made of them.

    Raises: DataError if it cannot be written; ``path`` then still holds what it held before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            write(temporary)
            temporary.chmod(mode)  # some libraries make files that only their owner may read
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # it may never have come about
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file atomically, keys in the given order; see `finite`."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(tree: Any) -> Any:
    """Replaces numbers that JSON has no word for, NaN and infinities, by None."""
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return tree


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Removes what `write_atomic` left half-written, below ``folder``, in processes that are dead.

    Only for a folder that this process has claimed and that it is not writing into: so a file with
    this process's own number was left by an earlier one that had the same, as in a container.
    """
    for path in folder.rglob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not path.is_dir() and not _is_another(int(match[1])):
            path.unlink(missing_ok=True)


def _is_another(pid: int) -> bool:
    """Whether a process of this number lives that is not this one."""
    if pid == os.getpid() or os.name == "nt":  # where signal 0 would be Ctrl-C
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
