"""The folder that a run leaves behind: where each thing lies, and how the log is kept."""

import json
import math
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mimkit import locks
from mimkit.errors import DataError
from mimkit.files import finite, reading, write_json, write_text, writing
from mimkit.ownership import LOCK, MARKER, claim, remove, shown

_FILES: Final = (
    *("recipe.toml", "data.json", "metrics.jsonl", "results.json", "ledger.json", "report.html"),
    *("encoder.safetensors", "encoder.json"),
    *(f"{name}.{end}" for name in ("timm", "safetensors") for end in ("safetensors", "json")),
    *("onnx.onnx", "onnx.json", "torch-export.pt2", "torch-export.json"),
)
_OWN: Final = (
    *_FILES,
    *(f".{name}.*.tmp" for name in (*_FILES, MARKER)),
    *(f"checkpoints/{name}" for name in ("step_*.json", "step_*.safetensors", ".step_*.tmp")),
    *(f"checkpoints/{name}" for name in ("step_*[0-9]", "step_*-again")),
    *(
        f"pictures/{name}"
        for name in ("predictions.png", "prepared_*.png", "judged_*.png", ".*.png.*.tmp")
    ),
    "evaluations/[0-9]*-*",
    "judgements/[0-9]*-*",
    "trackers/*",
    *(f"transformers/{name}" for name in ("config.json", "model.safetensors")),
    *(f"hub/{name}" for name in ("config.json", "model.safetensors", "README.md")),
)
"""What a run writes into its folder, and what may be removed from there."""


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
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.results = path / "results.json"
        self.ledger = path / "ledger.json"
        self.pictures = path / "pictures"
        self.report = path / "report.html"
        self._lock: TextIOWrapper | None = None

    def __enter__(self) -> Self:
        """Claims the folder.

        Raises: DataError if it is not a run's, cannot be written, or another process is writing
            into it.
        """
        if self.writable:
            claim(self.path, "run")
            self._lock = _lock(self.path)
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
        """Removes all that an earlier run wrote here, and says what else there is."""
        self._assert_claimed()
        if left := remove(self.path, _OWN):
            self.say(f"{self.path}: left as it is, since mimkit did not write it: {shown(left)}")

    @property
    def holds_work(self) -> bool:
        """Whether something here took work to make: trained or imported weights, or results.

        The checkpoint of a run whose every step was skipped holds the weights that it began with.
        """
        if (self.path / "encoder.safetensors").exists() or self.results.exists():
            return True
        for file in self.checkpoints.glob("step_*.json"):
            try:
                record = _read_json(file)
                step, skipped = record["step"], record["state"]["skipped"]
            except (DataError, KeyError, TypeError):
                return True  # damaged, and not for us to judge
            if step == 0 or step > len(skipped):
                return True
        return False

    def set_aside(self) -> Path:
        """Moves what this run wrote into a run folder of its own, beside this one; returns that."""
        self._assert_claimed()
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}-stopped-{number}")).exists():
            number += 1
        claim(aside, "run")
        with writing(aside):
            for name in dict.fromkeys(pattern.split("/")[0] for pattern in _OWN):
                for entry in self.path.glob(name):
                    entry.rename(aside / entry.name)
        return aside

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line to ``metrics.jsonl``; a number that is not finite becomes null.

        In a process that does not write (another rank of the same run) nothing happens.

        Raises: DataError if it cannot be written.
        """
        if not self.writable:
            return
        self._assert_claimed()
        line = json.dumps({"step": step, **finite(values)}, allow_nan=False)
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

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
        write_text(self.metrics, "".join(json.dumps(finite(row)) + "\n" for row in kept))
        return [row for row in rows if row["step"] > step]

    @property
    def judgement_paths(self) -> list[Path]:
        """Where judgements lie that were made once the run was there, the first one first."""
        found = self.path.glob("judgements/[0-9]*-*")
        return sorted(found, key=lambda path: int(path.name.partition("-")[0]))

    def judgement(self, path: Path) -> "RunFolder":
        """Opens one of them, or a new one: a folder like a run's, under the claim of this one."""
        inner = RunFolder(path, writable=self.writable, say=self.say)
        inner._lock = self._lock
        return inner

    def judgements(self) -> dict[str, "RunFolder"]:
        """Names the judgements of these weights by their data.

        Those of other weights are left out, as of an import that was trained on since.

        Raises: DataError if one of their files is damaged.
        """
        steps = self.read_ledger().get("steps", 0)
        found: dict[str, RunFolder] = {}
        for path in self.judgement_paths:
            inner = self.judgement(path)
            if inner.read_ledger().get("steps") == steps and inner.read_results()["results"]:
                name = path.name.partition("-")[2]
                again = sum(other.partition(" (")[0] == name for other in found)
                found[f"{name} ({again + 1})" if again else name] = inner
        return found

    def write_results(self, results: Mapping[str, object]) -> None:
        """Writes ``results.json``: the lists ``results``, ``summaries`` and ``differences``.

        What was judged later stands beside them, under the names of its data: ``judgements``. A
        number that is not finite becomes null.
        """
        self._assert_claimed()
        later = {
            name: {"folder": str(inner.path.relative_to(self.path)), **inner.read_results()}
            for name, inner in self.judgements().items()
        }
        write_json(self.results, {**results, **({"judgements": later} if later else {})})

    def read_results(self) -> dict[str, list[dict[str, Any]]]:
        """Reads ``results.json``; its three lists are empty where nothing was evaluated yet.

        A value or a mean that is null comes back as NaN; an interval's ends stay None. What was
        judged later is read from where it lies (`judgements`).
        """
        held = _read_json(self.results)
        found = {name: held.get(name, []) for name in ("results", "summaries", "differences")}
        for entry in (entry for entries in found.values() for entry in entries):
            for name in ("value", "mean"):
                if name in entry:
                    entry[name] = _number(entry[name])
            if "values" in entry:
                entry["values"] = [_number(value) for value in entry["values"]]
        return found

    def write_ledger(self, ledger: Mapping[str, object]) -> None:
        """Writes ``ledger.json``: what the run consumed, on what, and what it skipped."""
        self._assert_claimed()
        write_json(self.ledger, ledger)

    def read_ledger(self) -> dict[str, Any]:
        """Reads ``ledger.json``; empty where there is none yet."""
        return _read_json(self.ledger)

    def _assert_claimed(self) -> None:
        assert self._lock is not None, f"{self.path} is written outside `with`, or not writable"


def _lock(path: Path) -> TextIOWrapper:
    with writing(path / LOCK):
        file = locks.take(path / LOCK)
    if file is None:
        raise DataError(
            f"{path}: a run folder is for one process at a time, but process "
            f"{locks.owner(path / LOCK)} is writing into it. Wait until that run ends, or give "
            "this one another folder with --out."
        )
    return file


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _parse_row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {name: _number(value) for name, value in row.items()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        with reading(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: must be JSON, but is not ({error}). Remove it; the same command that made "
            "this run writes it again."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a JSON object, but is a {type(value).__name__}.")
    return value


def is_whole(ledger: Mapping[str, Any]) -> bool:
    """Whether a ledger is that of a run which has been trained and evaluated."""
    return "evaluate" in ledger.get("seconds", {})
