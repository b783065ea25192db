"""Writing files so that a kill or a full disk never leaves half of one."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mimkit.errors import DataError

_TEMPORARY: Final = re.compile(r"\..+\.(\d+)\.tmp")
""".NAME.PID.tmp, as `write_atomic` calls what is not complete yet."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then renames it into place.

    Raises: DataError if the disk is full; ``path`` then still holds what it held before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{path}: the disk is full, so this file could not be written; what was there "
                "before is intact. Free some space, then repeat the same command to go on."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file atomically, keys in the given order."""
    write_text(path, json.dumps(value, indent=2) + "\n")


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
