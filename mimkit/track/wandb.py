"""Weights & Biases."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mimkit.track.base import PROJECT, Tracked, Tracker


class WandbTracker(Tracker):
    """Tells Weights & Biases of the run (the extra ``wandb``).

    Project, entity, server and mode are those of ``WANDB_PROJECT`` and its like; the project is
    ``mimkit`` if nothing names one. With ``WANDB_MODE=offline`` all stays in the run's folder until
    ``wandb sync`` sends it.
    """

    module: ClassVar[str] = "wandb"
    install: ClassVar[str] = "mimkit[wandb]"

    def __init__(self, run: Tracked) -> None:
        import wandb  # noqa: PLC0415 -- an extra

        run.folder.mkdir(parents=True, exist_ok=True)
        self.wandb: Any = wandb
        self.id = run.id or secrets.token_hex(8)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            resume="allow",
            name=run.title,
            group=run.name,
            config=dict(run.recipe),
            dir=str(run.folder),
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self.run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """See `Tracker.picture`."""
        self.run.log({f"pictures/{path.stem}": self.wandb.Image(str(path))}, step=step)

    def keep(self, path: Path) -> None:
        """See `Tracker.keep`."""
        self.run.save(str(path.resolve()), base_path=str(path.resolve().parent), policy="now")

    def finish(self, whole: bool) -> None:
        """See `Tracker.finish`."""
        self.run.finish(exit_code=0 if whole else 1)
