"""What a tracker was told already: kept in the run's folder, so that nothing is told twice."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mimkit.files import write_json


def state_file(folder: Path, name: str) -> Path:
    """Where it lies what tracker ``name`` was told of the run in ``folder``."""
    return own_folder(folder, name) / "sent.json"


def log_file(folder: Path, name: str) -> Path:
    """Where the output of the process lies that tells it."""
    return own_folder(folder, name) / "log.txt"


def own_folder(folder: Path, name: str) -> Path:
    """Where all lies that has to do with tracker ``name``, which may say whose it is."""
    return folder / "trackers" / name.replace(":", "-")


@dataclass
class Sent:
    """What a tracker was told.

    Args:
        id: of the run, to the tracker.
        steps: of each number, by its name, the last.
        files: of each file, by its path in the run folder, the SHA-256.
        failure: why the last process gave up; "".
    """

    id: str = ""
    steps: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @classmethod
    def read(cls, path: Path) -> "Sent":
        """Reads it; nothing where there is no such file."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """Keeps it."""
        write_json(path, asdict(self))

    def lacking(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Leaves out what was told: a killed run logs some steps once more, with equal numbers.

        >>> Sent(steps={"lr": 4}).lacking(4, {"lr": 0.1, "knn/accuracy": 0.5})
        {'knn/accuracy': 0.5}
        """
        return {name: value for name, value in values.items() if step > self.steps.get(name, -1)}

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Counts numbers as told."""
        self.steps |= dict.fromkeys(values, step)
