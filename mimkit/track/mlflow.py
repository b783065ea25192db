"""MLflow: a server, or a database file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mimkit.track.base import PROJECT, Tracked, Tracker


class MlflowTracker(Tracker):
    """Tells MLflow of the run (the extra ``mlflow``).

    ``MLFLOW_TRACKING_URI`` names the server or a database, such as ``sqlite:///mlflow.db``, which
    is what MLflow takes if nothing is named. ``MLFLOW_EXPERIMENT_NAME`` names the experiment, else
    it is ``mimkit``. To a server the package ``mlflow-skinny`` is enough.
    """

    module: ClassVar[str] = "mlflow"
    install: ClassVar[str] = "mimkit[mlflow]"

    def __init__(self, run: Tracked) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 -- an extra
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        self.metric: Any = Metric
        self.client: Any = MlflowClient()
        if run.id:
            self.id = run.id
            self.client.update_run(self.id, status="RUNNING")
            return
        begun = self.client.create_run(self._experiment(), run_name=run.title)
        self.id = begun.info.run_id
        options = [Param(name, str(value)) for name, value in run.options.items()]
        self.client.log_batch(self.id, params=options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        now = int(time.time() * 1000)
        metrics = [self.metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def picture(self, step: int, path: Path) -> None:
        """See `Tracker.picture`."""
        self.client.log_artifact(self.id, str(path), "pictures")

    def keep(self, path: Path) -> None:
        """See `Tracker.keep`."""
        self.client.log_artifact(self.id, str(path))

    def finish(self, whole: bool) -> None:
        """See `Tracker.finish`."""
        self.client.set_terminated(self.id, "FINISHED" if whole else "KILLED")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        made: str = found.experiment_id if found else self.client.create_experiment(name)
        return made
