"""Runs the plan: ``python -m on_gpu --device cuda --out FOLDER``, with ``tests`` on PYTHONPATH.

Until the first stage has installed the wheels, only the standard library may be imported here.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from on_gpu.plan import TOTAL_SECONDS, Stage, chosen, sizes
from on_gpu.record import Record, Row
from on_gpu.watch import watch
from on_gpu.work import SITE, read_figures

BUNDLE: Final = Path("build/gpu")
_LEAST_SECONDS: Final = 10.0
"""A stage that has less left is not begun."""


def follow(
    plan: Sequence[Stage],
    record: Record,
    scratch: Path,
    *,
    command: Callable[[Stage, Path], Sequence[str]],
    environment: Mapping[str, str],
    patience: float,
    total_seconds: float,
    least_seconds: float = _LEAST_SECONDS,
) -> None:
    """Runs stage after stage; none can keep the others from running.

    Args:
        plan: the stages.
        record: of what they tell.
        scratch: folder of what they print and tell.
        command: that runs a stage, which tells its figures in a file.
        environment: variables of their processes.
        patience: factor of the stages' limits.
        total_seconds: for all of them.
        least_seconds: a stage that has less left is not begun.
    """
    end = time.monotonic() + total_seconds
    for number, stage in enumerate(plan):
        figures, log = scratch / f"figures-{number}.jsonl", scratch / f"log-{number}.txt"
        row = Row(stage.name)
        record.rows.append(row)
        left = end - time.monotonic()
        if left < least_seconds:
            row.outcome = "no time left"
            record.write()
            continue

        def look(row: Row = row, figures: Path = figures) -> None:
            told = read_figures(figures)
            if len(told) > len(row.figures):
                row.figures = told
                record.write()

        record.write()
        row.outcome, row.seconds = watch(
            command(stage, figures),
            limit_seconds=min(stage.limit_seconds * patience, left),
            log=log,
            environment=environment,
            look=look,
        )
        row.figures = read_figures(figures)
        record.write()
        record.add_log(stage.name, log)
        print(f"{stage.name}: {row.outcome} after {row.seconds:.0f} s", flush=True)


def variables(bundle: Path, scratch: Path) -> dict[str, str]:
    """Returns the environment of the stages: their code, their data, their caches, no network."""
    caches = {
        "MIMKIT_CACHE": "cache",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "XDG_CACHE_HOME": "xdg",
    }
    code = [scratch / SITE, Path(__file__).parents[1]]
    return {
        **os.environ,
        **{name: str(scratch / folder) for name, folder in caches.items()},
        "PYTHONPATH": os.pathsep.join(map(str, code)),
        "PYTHONSAFEPATH": "1",  # else the tree would hide what is installed
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "120",
        "MIMKIT_DATA": str(bundle / "data"),
        "HF_HUB_OFFLINE": "1",
    }


def main() -> int:
    """Reads the command line, runs the plan, prints the table; 0 if every stage was done."""
    parser = argparse.ArgumentParser(prog="python -m on_gpu")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="that `make gpu-wheels` filled")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="stages with this in their name"
    )
    asked = parser.parse_args()
    try:
        plan = chosen(asked.only)
    except ValueError as error:
        print(error)
        return 2
    bundle = asked.bundle.resolve()
    if not list(bundle.glob("wheels/*.whl")):
        print(f"{bundle}: holds no wheels. Where there is a network, run: make gpu-wheels")
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "log.txt").unlink(missing_ok=True)
    patience = sizes(asked.device).patience
    record = Record(asked.out, f"mimkit on {asked.device}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory(prefix="mimkit-gpu-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)

        def command(stage: Stage, figures: Path) -> list[str]:
            words = [stage.module, asked.device, str(bundle), str(scratch), str(figures)]
            return [sys.executable, "-m", "on_gpu.stage", *words, *stage.arguments]

        follow(
            plan,
            record,
            scratch,
            command=command,
            environment=variables(bundle, scratch),
            patience=patience,
            total_seconds=TOTAL_SECONDS * patience,
        )
    print(record.markdown())
    return 0 if all(row.outcome == "done" for row in record.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
