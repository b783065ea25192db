"""One stage in a process of its own: ``python -m on_gpu.stage MODULE`` and what `Work` holds."""

import importlib
import sys
from pathlib import Path

from on_gpu.work import Work


def main(module: str, device: str, bundle: str, scratch: str, figures: str, *rest: str) -> None:
    """Runs a stage; a traceback and an exit code of 1 tell that it failed."""
    work = Work(device, Path(bundle), Path(scratch), Path(figures))
    importlib.import_module(f"on_gpu.stages.{module}").run(work, *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
