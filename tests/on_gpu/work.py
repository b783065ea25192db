"""What a stage gets: the device, the sizes, where things lie, and whom to tell."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from on_gpu.plan import Sizes, sizes

SITE: Final = "site"


@dataclass(frozen=True)
class Figure:
    """One measured value, as a line of the table shows it."""

    name: str
    value: str | float
    unit: str = ""


@dataclass(frozen=True)
class Work:
    """What all stages share.

    Args:
        device: ``cuda`` or ``cpu``.
        bundle: the folder that ``make gpu-wheels`` filled.
        scratch: a folder that is removed in the end.
        figures: file of this stage's figures, one JSON object a line.
    """

    device: str
    bundle: Path
    scratch: Path
    figures: Path

    @property
    def sizes(self) -> Sizes:
        """How large all is made."""
        return sizes(self.device)

    @property
    def site(self) -> Path:
        """Where the wheels are installed."""
        return self.scratch / SITE

    @property
    def photos(self) -> Path:
        """The folder in which the data set ``in224`` lies."""
        return self.scratch / "photos"

    @property
    def tokenizer(self) -> Path:
        """The encoder of a dVAE with random weights."""
        return self.scratch / "encoder.safetensors"

    def tell(self, name: str, value: str | float, unit: str = "") -> None:
        """Gives a figure away; from now on it cannot be lost."""
        with self.figures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Figure(name, value, unit))) + "\n")

    def mimkit(self, *words: str, heard: Callable[[str], None] = print) -> int:
        """Runs ``mimkit`` with these words.

        Args:
            words: of the command line.
            heard: gets every line that it prints, as it comes.

        Returns: its exit code.
        """
        command = [sys.executable, "-m", "mimkit", *words]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                heard(line.rstrip())
        return process.returncode


def read_figures(file: Path) -> list[Figure]:
    """Reads what a stage has told so far; a line that was cut off is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [Figure(**json.loads(line)) for line in lines]


def settings(words: tuple[str, ...] | list[str]) -> list[str]:
    """Returns the command line's form of settings."""
    return [word for setting in words for word in ("--set", setting)]


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds that something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
