"""The folder that a run leaves behind: where each thing lies, and how the log is kept."""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mimkit.errors import DataError
from mimkit.files import write_json, write_text

LOCK = ".lock"


class RunFolder:
    """One run's folder. Reading needs nothing more; writing happens inside ``with``.

    Args:
        path: the folder; made on entering, if it is to be written.
        writable: claim it for this process, so that no second one writes into it.
        say: receives a line of text where something had to be repaired.
    """

    def __init__(
        self, path: Path, *, writable: bool = False, say: Callable[[str], None] = print
    ) -> None:
        self.path = path
        self.writable = writable
        self.say = say
        self.recipe = path / "recipe.toml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.results = path / "results.json"
        self.ledger = path / "ledger.json"
        self.pictures = path / "pictures"
        self.report = path / "report.html"
        self._lock: TextIOWrapper | None = None

    def __enter__(self) -> Self:
        """Claims the folder.

        Raises: DataError if another process is writing into it.
        """
        if self.writable:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _claim(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the folder free again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clear(self) -> None:
        """Removes all that an earlier run left here."""
        self._assert_claimed()
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line to ``metrics.jsonl``; a number that is not finite becomes null.

        In a process that does not write (another rank of the same run) nothing happens.

        Raises: DataError if the disk is full.
        """
        if not self.writable:
            return
        self._assert_claimed()
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}, allow_nan=False)
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self.metrics}: the disk is full, so step {step} could not be logged. Free "
                    "some space, then repeat the same command to go on from the last checkpoint."
                ) from error
            raise

    def metrics_rows(self) -> list[dict[str, float]]:
        """Reads the log; null comes back as NaN. A half-written last line is left out, and said.

        Raises: DataError if another line is damaged.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            row = _parse_row(line)
            if row is not None:
                rows.append(row)
            elif number == len(lines):
                self.say(f"{self.metrics}: the last line is half-written (a kill); left out")
            else:
                raise DataError(
                    f"{self.metrics}, line {number}: must be a JSON object with a step, but is "
                    f"{line[:60]!r}. Remove that line, then repeat the same command."
                )
        return rows

    def truncate(self, step: int) -> list[dict[str, float]]:
        """Forgets what was logged after ``step``: a run that goes on from there logs it anew.

        Call it before the first `log`; it also removes a half-written line.

        Returns: the rows that it forgot.
        """
        self._assert_claimed()
        rows = self.metrics_rows()
        kept = [row for row in rows if row["step"] <= step]
        finite = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in kept]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in finite))
        return [row for row in rows if row["step"] > step]

    def write_results(self, results: Mapping[str, object]) -> None:
        """Writes ``results.json``: the lists ``results``, ``summaries`` and ``differences``."""
        self._assert_claimed()
        write_json(self.results, results)

    def read_results(self) -> dict[str, list[dict[str, Any]]]:
        """Reads ``results.json``; its three lists are empty where nothing was evaluated yet."""
        return {"results": [], "summaries": [], "differences": []} | _read_json(self.results)

    def write_ledger(self, ledger: Mapping[str, object]) -> None:
        """Writes ``ledger.json``: what the run consumed, on what, and what it skipped."""
        self._assert_claimed()
        write_json(self.ledger, ledger)

    def read_ledger(self) -> dict[str, Any]:
        """Reads ``ledger.json``; empty where there is none yet."""
        return _read_json(self.ledger)

    def _assert_claimed(self) -> None:
        assert self._lock is not None, f"{self.path} is written outside `with`, or not writable"


def _claim(path: Path) -> TextIOWrapper:
    """Locks the folder as long as the returned file stays open, or this process lives.

    A POSIX record lock (lockf), not flock: data workers do not inherit it, so that workers which
    outlive a killed run by seconds do not keep its folder from the next one.
    """
    file = (path / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise DataError(
            f"{path}: a run folder is for one process at a time, but process {owner} is writing "
            "into it. Wait until that run ends, or give this one another folder with --out."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _parse_row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {name: math.nan if value is None else value for name, value in row.items()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: must be JSON, but is not ({error}). Remove it; the same command that made "
            "this run writes it again."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a JSON object, but is a {type(value).__name__}.")
    return value
