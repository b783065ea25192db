"""Runs the plan: ``python -m on_gpu --device cuda --out FOLDER``, with ``tests`` on PYTHONPATH.

Until the first stage has installed the wheels, only the standard library may be imported here.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from on_gpu.plan import PLAN, TOTAL_SECONDS, Stage, sizes
from on_gpu.record import Record, Row
from on_gpu.watch import watch
from on_gpu.work import Work, read_figures

BUNDLE: Final = Path("build/gpu")
_LEAST_SECONDS: Final = 10.0
"""A stage that has less left is not begun."""


def follow(
    plan: Sequence[Stage],
    work: Work,
    out: Path,
    *,
    patience: float,
    total_seconds: float,
    environment: Mapping[str, str],
    least_seconds: float = _LEAST_SECONDS,
) -> Record:
    """Runs stage after stage; none can keep the others from running.

    Args:
        plan: the stages.
        work: what they share; each gets a file of figures of its own.
        out: the folder of the record.
        patience: factor of the stages' limits.
        total_seconds: for all of them.
        environment: variables of their processes.
        least_seconds: a stage that has less left is not begun.
    """
    end = time.monotonic() + total_seconds
    record = Record(out, f"mimkit on {work.device}, {time.strftime('%Y-%m-%d')}")
    for number, stage in enumerate(plan):
        figures = work.scratch / f"figures-{number}.jsonl"
        log = work.scratch / f"log-{number}.txt"
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
            [sys.executable, "-m", "on_gpu.stage", stage.module, work.device]
            + [str(path) for path in (work.bundle, work.scratch, figures)]
            + list(stage.arguments),
            limit_seconds=min(stage.limit_seconds * patience, left),
            log=log,
            environment=environment,
            look=look,
        )
        row.figures = read_figures(figures)
        record.write()
        record.add_log(stage.name, log)
        print(f"{stage.name}: {row.outcome} after {row.seconds:.0f} s", flush=True)
    return record


def variables(work: Work, tests: Path) -> dict[str, str]:
    """Returns the environment of the stages: their code, their data, their caches, no network."""
    caches = {
        "MIMKIT_CACHE": "cache",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "XDG_CACHE_HOME": "xdg",
    }
    return {
        **os.environ,
        **{name: str(work.scratch / folder) for name, folder in caches.items()},
        "PYTHONPATH": os.pathsep.join([str(work.site), str(tests)]),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "120",
        "MIMKIT_DATA": str(work.bundle / "data"),
        "HF_HUB_OFFLINE": "1",
    }


def main() -> int:
    """Reads the command line, runs the plan, prints the table; 0 if every stage was done."""
    parser = argparse.ArgumentParser(prog="python -m on_gpu")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="that `make gpu-wheels` filled")
    asked = parser.parse_args()
    bundle = asked.bundle.resolve()
    if not list(bundle.glob("wheels/*.whl")):
        print(f"{bundle}: holds no wheels. Where there is a network, run: make gpu-wheels")
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "log.txt").unlink(missing_ok=True)
    patience = sizes(asked.device).patience
    with tempfile.TemporaryDirectory(prefix="mimkit-gpu-", ignore_cleanup_errors=True) as scratch:
        work = Work(asked.device, bundle, Path(scratch), Path(scratch) / "figures.jsonl")
        record = follow(
            PLAN,
            work,
            asked.out,
            patience=patience,
            total_seconds=TOTAL_SECONDS * patience,
            environment=variables(work, Path(__file__).parents[1]),
        )
    print(record.markdown())
    return 0 if all(row.outcome == "done" for row in record.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
