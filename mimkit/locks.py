"""Locks on files, which the system gives free when the process that holds them ends.

What they need differs by system, and is imported where it is used.
"""

import os
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Final

_FAR: Final = 2**30
"""The byte that is locked on Windows: there a lock keeps others from reading what it covers."""


def take(path: Path) -> TextIOWrapper | None:
    """Locks a file for this process, as long as what is returned stays open, and signs it.

    On POSIX a record lock (lockf), not flock: data workers do not inherit it, so that workers which
    outlive a killed run by seconds do not keep its folder from the next one.

    Args:
        path: made if it is not there; its text becomes the number of this process.

    Returns: None if another process has it.
    """
    file = path.open("a+", encoding="utf-8")
    if not _lock(file):
        file.close()
        return None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def owner(path: Path) -> str:
    """Returns the number of the process that took a lock, or "unknown"."""
    return path.read_text(encoding="utf-8").strip() or "unknown"


def is_taken(path: Path) -> bool:
    """Whether another process has locked a file. This process must not have: it would lose it."""
    if not path.is_file():
        return False
    with path.open("r+", encoding="utf-8") as file:
        return not _lock(file)


def share(file: IO[Any]) -> bool:
    """Locks an open file for this process and all that inherit it, until the last has closed it.

    Returns: whether that is possible here and no other process has it; Windows has no such locks.
    """
    try:
        import fcntl  # noqa: PLC0415 -- POSIX only
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(file: IO[Any]) -> bool:
    try:
        import fcntl  # noqa: PLC0415 -- POSIX only
    except ImportError:
        return _lock_on_windows(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock_on_windows(file: IO[Any]) -> bool:
    import msvcrt  # noqa: PLC0415 -- Windows only

    os.lseek(file.fileno(), _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
