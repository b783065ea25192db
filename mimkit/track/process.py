"""The process that tells one tracker of a run: ``python -m mimkit.track.process NAME FOLDER``.

It reads what the run writes into its folder, and ends when its input does: the run has ended, or
was killed. So the run shares nothing with a tracker's package: no random numbers, no threads, no
signals, no wait.
"""

import json
import math
import os
import sys
import threading
import time
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mimkit import locks
from mimkit.errors import DataError, in_one_line
from mimkit.files import sha256
from mimkit.folder import RunFolder
from mimkit.recipe import registry
from mimkit.track.base import Tracked, Tracker, tracker_class
from mimkit.track.figures import of_ledger, of_results
from mimkit.track.sent import Sent, own_folder, state_file

WHOLE: Final = "whole"
"""What the run says last if it is trained and evaluated."""
LAST_SECONDS: Final = 60.0
"""How long a process may still take when the run has ended."""
_LOOK_EVERY_SECONDS: Final = 1.0


class Ending(threading.Thread):
    """Waits for the end of the run, and then sees to it that this process ends as well."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen = threading.Event()
        self.whole = False
        self.start()

    def run(self) -> None:
        """See the class."""
        # Not by a buffer, whose lock would be held when this process ends before the run does.
        self.whole = os.read(0, 64).decode().strip() == WHOLE
        self.seen.set()
        time.sleep(LAST_SECONDS)
        os._exit(1)


class Log:
    """The rows of ``metrics.jsonl`` as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file_number = 0
        self.offset = 0

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Gives the finite numbers of all whole lines that were not there before, by their step."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if number != self.file_number:  # a run that goes on writes the log anew
                self.file_number, self.offset = number, 0
            file.seek(self.offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self.offset += len(whole + end)
        for line in whole.splitlines():
            row = json.loads(line)
            yield row.pop("step"), {k: v for k, v in row.items() if _is_finite(v)}


class Telling:
    """What tells a tracker of a run.

    Args:
        tracker: to be told.
        folder: of the run.
        sent: what the tracker was told already; ``state`` is the file of that.
    """

    def __init__(self, tracker: Tracker, folder: RunFolder, sent: Sent, state: Path) -> None:
        self.tracker = tracker
        self.folder = folder
        self.sent = sent
        self.state = state
        self.log = Log(folder.metrics)
        self.step = max(sent.steps.values(), default=0)
        sent.id = tracker.id
        sent.write(state)

    def news(self) -> None:
        """Tells what is new in the log and among the pictures."""
        told = [self._numbers(step, values) for step, values in self.log.rows()]
        pictures = sorted(self.folder.pictures.glob("*.png"))
        told += [self._file(path, is_picture=True) for path in pictures]
        if any(told):
            self.sent.write(self.state)

    def end(self, whole: bool) -> None:
        """Tells the last news, of a whole run also what came of it."""
        self.news()
        if whole:
            ledger = self.folder.read_ledger()
            results = of_results(self.folder.read_results()["summaries"])
            found = {**results, **of_ledger(ledger)}
            self._numbers(ledger["steps"], {k: v for k, v in found.items() if _is_finite(v)})
            for path in (
                self.folder.recipe,
                self.folder.results,
                self.folder.ledger,
                self.folder.report,
            ):
                self._file(path, is_picture=False)
        self.tracker.finish(whole)
        self.sent.write(self.state)

    def _numbers(self, step: int, values: dict[str, float]) -> bool:
        lacking = self.sent.lacking(step, values)
        if lacking:
            self.tracker.log(step, lacking)
            self.sent.note(step, lacking)
            self.step = max(self.step, step)
        return bool(lacking)

    def _file(self, path: Path, *, is_picture: bool) -> bool:
        name, digest = path.relative_to(self.folder.path).as_posix(), sha256(path)
        if self.sent.files.get(name) == digest:
            return False
        if is_picture:
            self.tracker.picture(self.step, path)
        else:
            self.tracker.keep(path)
        self.sent.files[name] = digest
        return True


def tell(name: str, path: Path, ending: Ending) -> None:
    """Tells tracker ``name`` of the run in a folder until that ends."""
    own, state = own_folder(path, name), state_file(path, name)
    with _claimed(own):
        sent = Sent.read(state)
        sent.failure = ""
        try:
            folder = RunFolder(path)
            recipe = tomllib.loads(folder.recipe.read_text("utf-8"))
            run = Tracked(recipe["name"], recipe["seed"], recipe, own, sent.id)
            telling = Telling(
                tracker_class(registry.find("trackers", name))(run), folder, sent, state
            )
            while not ending.seen.wait(_LOOK_EVERY_SECONDS):
                telling.news()
            telling.end(ending.whole)
        except Exception as error:
            sent.failure = in_one_line(error)
            sent.write(state)
            raise


def _claimed(own: Path) -> Any:
    """Waits for the process of an earlier, killed call of the same run."""
    until = time.monotonic() + LAST_SECONDS
    while (lock := locks.take(own / "lock")) is None:
        if time.monotonic() > until:
            raise DataError(f"process {locks.owner(own / 'lock')} still tells it of this run")
        time.sleep(0.2)
    return lock


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


if __name__ == "__main__":
    try:
        tell(sys.argv[1], Path(sys.argv[2]), Ending())
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # what its package does at an exit may wait for what has failed
