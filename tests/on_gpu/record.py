"""The one JSON and the one Markdown table, written anew whenever there is something to add."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from on_gpu.watch import Outcome
from on_gpu.work import Figure

_LOG_BYTES: Final = 1_000_000
"""Kept of each stage's output: its end."""


@dataclass
class Row:
    """One stage as far as it is known."""

    name: str
    outcome: Outcome | None = None
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Record:
    """All that was measured.

    Args:
        folder: gets results.json, results.md and log.txt.
        title: what the table stands under.
        rows: the stages so far.
    """

    folder: Path
    title: str
    rows: list[Row] = field(default_factory=list)

    def write(self) -> None:
        """Writes both files; a reader never meets half of one."""
        held = {"title": self.title, "stages": [asdict(row) for row in self.rows]}
        self._replace("results.json", json.dumps(held, indent=1) + "\n")
        self._replace("results.md", self.markdown())

    def add_log(self, name: str, log: Path) -> None:
        """Appends the end of a stage's output."""
        end = log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"\n===== {name} =====\n{end}")

    def markdown(self) -> str:
        """Lays everything out as one table."""
        lines = [f"# {self.title}", "", "| stage | figure | value |", "|---|---|---:|"]
        for row in self.rows:
            outcome = row.outcome or "running"
            lines.append(f"| **{row.name}** | {outcome} | {row.seconds:.0f} s |")
            lines += [f"| | {_cell(f.name)} | {_cell(_value(f))} |" for f in row.figures]
        return "\n".join(lines) + "\n"

    def _replace(self, name: str, text: str) -> None:
        half = self.folder / f".{name}"
        half.write_text(text, encoding="utf-8")
        os.replace(half, self.folder / name)


def _value(figure: Figure) -> str:
    value = figure.value
    if not isinstance(value, str):
        whole = value % 1 == 0 or abs(value) >= 1000
        value = f"{value:,.0f}" if whole else f"{value:.4g}"
    return f"{value} {figure.unit}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
