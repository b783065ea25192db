"""What ends a command: one message and an exit code; the traceback is for ``--debug``."""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from mimkit.console import make_console
from mimkit.errors import MimkitError, ProcessLostError


def tell(error: Exception, *, debug: bool) -> int:
    """Says what went wrong, also to the comparison that started this run, if one did.

    Returns: the exit code: 2 for what the user can mend, 75 where another process of the run has
        ended, 1 for a fault of the program.
    """
    asked = os.environ.get("MIMKIT_ERROR_FILE")
    mendable = isinstance(error, MimkitError)
    # A comparison keeps what its runs say in a log, where a traceback disturbs nobody.
    if debug or (asked and not mendable):
        traceback.print_exception(error)
    text = str(error) if mendable else _fault(error)
    make_console(stderr=True).print(text, style="red", soft_wrap=True)
    # A process that another took along has no cause to tell, and must not hide that one's.
    if asked and not (isinstance(error, ProcessLostError) and Path(asked).exists()):
        try:
            Path(asked).write_text(text, encoding="utf-8", errors="replace")
        except OSError as problem:
            make_console(stderr=True).print(f"{asked}: {problem.strerror}", soft_wrap=True)
    return error.exit_code if isinstance(error, MimkitError) else 1


def _fault(error: Exception) -> str:
    words = " ".join(str(error).split())
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return (
        f"{said}. This is a fault of {_culprit(error.__traceback__)}, not yours. Repeat the "
        f"command with --debug first (mimkit --debug {' '.join(sys.argv[1:2])} ...) for the "
        "traceback that its authors need."
    )


def _culprit(trace: TracebackType | None) -> str:
    """Names the distribution in whose code an error came up last."""
    from mimkit.recipe import registry  # noqa: PLC0415 -- costs time that only a failure has

    owners = {
        entry.value.partition(":")[0].partition(".")[0]: entry.distribution
        for kind in registry.KINDS
        if kind != "recipes"
        for entry in registry.entries(kind)
    }
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)]
    modules = [str(name).partition(".")[0] for name in frames]
    return next((owners[name] for name in reversed(modules) if name in owners), "mimkit")
