"""The processes that tell trackers of a run, as the run sees them: it starts them, and looks."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mimkit.track.process import LAST_SECONDS, WHOLE
from mimkit.track.sent import Sent, log_file, state_file

START_SECONDS: Final = 120.0
"""How long a tracker may take to begin."""
_GRACE_SECONDS: Final = 5.0
"""How long a run that was stopped waits for its trackers, which go on by themselves after that."""
_LOOK_EVERY_SECONDS: Final = 0.05


@dataclass
class _Follower:
    name: str
    process: subprocess.Popen[str]
    started: float
    before: int | None
    begun: bool = False


class Followers:
    """All trackers of a run. Nothing here raises for what a tracker does, or waits while it trains.

    Inside ``with``; on leaving it the trackers are told that the run has ended.

    Args:
        names: of the trackers, as `mimkit.track.base.named` gives them.
        folder: of the run.
        say: receives one line for each tracker that fails.
    """

    def __init__(self, names: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
        self.names = names
        self.folder = folder
        self.say = say
        self.at_work: list[_Follower] = []

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tells them that the run was stopped, if nothing else was said."""
        self._end("stopped", _GRACE_SECONDS)

    def start(self) -> None:
        """Starts telling them, from the log as it stands."""
        for name in self.names:
            try:
                log = log_file(self.folder, name)
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("w", encoding="utf-8") as file:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "mimkit.track.process", name, str(self.folder)],
                        stdin=subprocess.PIPE,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        text=True,
                        start_new_session=True,  # Ctrl-C is for the run
                    )
                before = _changed(state_file(self.folder, name))
                self.at_work.append(_Follower(name, process, time.monotonic(), before))
            except OSError as error:
                self._warn(name, str(error))

    def look(self) -> None:
        """Says of each whether it has failed since the last look; costs nothing worth naming."""
        for one in list(self.at_work):
            code = one.process.poll()
            one.begun = one.begun or _changed(state_file(self.folder, one.name)) != one.before
            if code is not None:
                self._give_up(one, self._reason(one, code))
            elif not one.begun and time.monotonic() - one.started > START_SECONDS:
                self._give_up(one, f"it has not begun within {START_SECONDS:.0f} s")

    def finish(self) -> None:
        """Tells them that the run is whole, and waits until they have sent that, for a minute."""
        self._end(WHOLE, LAST_SECONDS)
        for one in list(self.at_work):
            self._give_up(one, f"it has not ended within {LAST_SECONDS:.0f} s")

    def _end(self, word: str, seconds: float) -> None:
        for one in self.at_work:
            _say_last(one.process, word)
        until = time.monotonic() + seconds
        while self.at_work:
            for one in list(self.at_work):
                code = one.process.poll()
                if code == 0:
                    self.at_work.remove(one)
                elif code is not None:
                    self._give_up(one, self._reason(one, code))
            if time.monotonic() > until:
                return
            time.sleep(_LOOK_EVERY_SECONDS)

    def _give_up(self, one: _Follower, reason: str) -> None:
        self.at_work.remove(one)
        _say_last(one.process, "")
        one.process.kill()
        one.process.wait()
        self._warn(one.name, reason)

    def _reason(self, one: _Follower, code: int) -> str:
        file = state_file(self.folder, one.name)
        with contextlib.suppress(OSError, ValueError, TypeError):
            failure = Sent.read(file).failure
            if failure and _changed(file) != one.before:  # else an earlier call's
                return failure
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _warn(self, name: str, reason: str) -> None:
        self.say(
            f"tracker '{name}': {reason}. The run goes on without it; the same command sends what "
            f"it lacks. All it said: {log_file(self.folder, name)}"
        )


def _say_last(process: subprocess.Popen[str], word: str) -> None:
    """Says a word and closes the process's input, if that is open and the process still there."""
    if process.stdin is not None:
        with contextlib.suppress(OSError, ValueError), process.stdin as file:
            file.write(f"{word}\n")  # loader workers may keep it open, so its end tells nothing


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
