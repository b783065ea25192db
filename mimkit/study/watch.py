"""How far a run of a comparison is, read from what its process writes."""

import json
from pathlib import Path

from mimkit.folder import RunFolder
from mimkit.launch.board import Shown
from mimkit.launch.cause import tail


def watched(
    name: str, run: Path, log: Path, log_start: int, *, total: int, left: float | None
) -> Shown:
    """Makes the row of a run whose process is at work.

    Args:
        name: of the cell.
        run: its folder.
        log: of its process.
        log_start: where the output of this process begins.
        total: steps of pre-training.
        left: seconds until it ends, if anything tells.
    """
    lines = tail(log, log_start).split("\n")
    doing = next((line for line in reversed(lines) if line.strip()), "")
    found = _reached(RunFolder(run).metrics)
    if found is None:
        return Shown(name, "starts", left=left, doing=doing)
    step, loss = found
    return Shown(
        name=name,
        state="trains" if step < total else "judges",
        step=f"{step:,}/{total:,}",
        loss="" if loss is None else f"{loss:.3f}",
        left=left,
        doing="" if step < total else doing,
    )


def _reached(metrics: Path) -> tuple[int, float | None] | None:
    """The last step that was logged, and its loss; a line that is being written does not count."""
    for line in reversed(tail(metrics).rpartition("\n")[0].split("\n")):
        try:
            row = json.loads(line)
        except ValueError:  # the first of those read may have lost its beginning
            continue
        if "loss/total" in row:
            return int(row["step"]), row["loss/total"]
    return None
