"""Why a run ended early, read from what it left: its exit code, its log, its last words."""

import re
import shutil
import signal
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 64 * 1024
_LEAST_FREE_BYTES: Final = 1024**2
_TRACEBACK: Final = "Traceback (most recent call last):"
_RANK: Final = re.compile(r"^\[rank\d+\]:\s?")
# torchrun ends with 1 whatever became of its processes, and says in its log what did; the cause
# of all comes last.
_TORCHRUN_SAYS: Final = re.compile(
    r"exitcode\s*:\s*(-?\d+) \(pid|SignalException: Process \d+ got signal: (\d+)"
)
_DISK_IS_FULL: Final = ("the disk is full", "No space left on device", "Disk quota exceeded")


def tail(log: Path, start: int = 0) -> str:
    """Reads the end of a log, at most 64 KiB and nothing before byte ``start``."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")


def ended_by(code: int, log: str) -> signal.Signals | None:
    """Returns the signal that ended a process, or that asked it to leave, if one did."""
    for match in _TORCHRUN_SAYS.finditer(log):
        code = int(match[1] or -int(match[2]))
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if number in signal.Signals._value2member_map_ else None


def last_words(log: str) -> str:
    """Returns the last message of a log that means something.

    That is the last exception that is not torchrun's about its processes, else the last line.
    """
    lines = [_RANK.sub("", line).rstrip() for line in log.splitlines()]
    for number in reversed([n for n, line in enumerate(lines) if line == _TRACEBACK]):
        message = _exception(lines[number + 1 :])
        if message and not message.startswith("torch.distributed.elastic."):
            return message
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def disk_is_full(message: str, folder: Path) -> bool:
    """Whether a run failed because there is no room left for its files."""
    said = any(words in message for words in _DISK_IS_FULL)
    return said or shutil.disk_usage(folder).free < _LEAST_FREE_BYTES


def _exception(after: list[str]) -> str:
    """The text of an exception: what follows the indented lines, up to an empty line."""
    text: list[str] = []
    for line in after:
        if not text and (not line or line[0].isspace()):
            continue
        if not line:
            break
        text.append(line)
    return "\n".join(text)
