"""Running a command until its end or its time limit, whichever comes first."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

Outcome = Literal["done", "failed", "stopped at its limit", "no time left"]

_LOOK_SECONDS: Final = 0.5


def watch(
    command: Sequence[str],
    *,
    limit_seconds: float,
    log: Path,
    environment: Mapping[str, str],
    look: Callable[[], None],
) -> tuple[Outcome, float]:
    """Runs a command; at its limit it is killed with every process that it started.

    Args:
        command: and its arguments.
        limit_seconds: how long it may run.
        log: file that gets all it prints.
        environment: its variables.
        look: called every half a second meanwhile.

    Returns: how it ended, and after how many seconds.
    """
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that its own children can be killed with it
        )
        outcome: Outcome = "stopped at its limit"
        try:
            while (left := limit_seconds - (time.monotonic() - start)) > 0:
                try:
                    code = process.wait(min(left, _LOOK_SECONDS))
                except subprocess.TimeoutExpired:
                    look()
                else:
                    outcome = "done" if code == 0 else "failed"
                    break
        finally:  # also what a finished stage left running
            _kill(process)
    return outcome, time.monotonic() - start


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
