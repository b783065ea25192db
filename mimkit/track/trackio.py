"""Trackio: a database on this machine, or a Space of Hugging Face."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mimkit.track.base import PROJECT, Tracked, Tracker


class TrackioTracker(Tracker):
    """Tells Trackio of the run (the extra ``trackio``), under the project ``mimkit``.

    ``trackio show`` opens what lies on this machine, under ``TRACKIO_DIR``; ``TRACKIO_SPACE_ID`` or
    ``TRACKIO_SERVER_URL`` send it elsewhere.
    """

    module: ClassVar[str] = "trackio"
    install: ClassVar[str] = "mimkit[trackio]"

    def __init__(self, run: Tracked) -> None:
        import trackio  # noqa: PLC0415 -- an extra

        self.trackio: Any = trackio
        # Runs are known by their names there.
        self.id = run.id or f"{run.title}-{secrets.token_hex(4)}"
        self.run: Any = trackio.init(
            PROJECT,
            name=self.id,
            group=run.name,
            config=run.options,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self.trackio.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """See `Tracker.picture`."""
        self.trackio.log({f"pictures/{path.stem}": self.trackio.Image(path)}, step=step)

    def keep(self, path: Path) -> None:
        """See `Tracker.keep`."""
        self.trackio.log_artifact(path)

    def finish(self, whole: bool) -> None:
        """See `Tracker.finish`."""
        self.trackio.finish()
