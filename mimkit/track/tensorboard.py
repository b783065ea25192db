"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from PIL import Image

from mimkit.track.base import Tracked, Tracker

_TEXTS: Final = (".toml", ".json")


class TensorBoardTracker(Tracker):
    """Writes event files for TensorBoard (the extra ``tensorboard``); needs no network.

    They lie in the run's folder: ``tensorboard --logdir runs`` finds those of all runs. A run that
    goes on writes one more file, which TensorBoard joins to the others. Recipe and ledger are
    texts; the report stays where it is.
    """

    module: ClassVar[str] = "tensorboard"
    install: ClassVar[str] = "mimkit[tensorboard]"

    def __init__(self, run: Tracked) -> None:
        # Not by torch.utils.tensorboard, which would import torch once more beside the run.
        from tensorboard.summary.writer.event_file_writer import (  # noqa: PLC0415 -- an extra
            EventFileWriter,
        )

        self.id = run.title
        run.folder.mkdir(parents=True, exist_ok=True)
        self.writer: Any = EventFileWriter(str(run.folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._add(step, [{"tag": name, "simple_value": value} for name, value in values.items()])

    def picture(self, step: int, path: Path) -> None:
        """See `Tracker.picture`."""
        with Image.open(path) as image:
            width, height = image.size
        shown = {"height": height, "width": width, "encoded_image_string": path.read_bytes()}
        self._add(step, [{"tag": path.stem, "image": shown}])

    def keep(self, path: Path) -> None:
        """See `Tracker.keep`."""
        if path.suffix not in _TEXTS:
            return
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # noqa: PLC0415
        from tensorboard.plugins.text.metadata import create_summary_metadata  # noqa: PLC0415

        lines = path.read_text("utf-8").splitlines()
        text = "\n".join(f"    {line}" for line in lines)  # Markdown shows that as it is
        self._add(
            0,
            [
                {
                    "tag": path.name,
                    "metadata": create_summary_metadata(display_name=path.name, description=""),
                    "tensor": TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
                }
            ],
        )

    def finish(self, whole: bool) -> None:
        """See `Tracker.finish`."""
        self.writer.close()

    def _add(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        self.writer.flush()
