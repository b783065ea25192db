"""An encoder's tensors under mimkit's own names."""

from pathlib import Path

from mimkit.export.base import Exportable, Exporter
from mimkit.files import write_json
from mimkit.train.tensors import write_tensors


class SafetensorsExporter(Exporter):
    """Tensors under mimkit's own names, which every encoder has.

    Nothing computes with them but mimkit, or whoever rebuilds the encoder.
    """

    suffix = ".safetensors"

    def write(self, source: Exportable, out: Path) -> list[str]:
        """Writes the tensors, and what ``encoder.json`` of the run says."""
        write_tensors(out, source.encoder.state_dict())
        write_json(out.with_suffix(".json"), source.about or source.shown)
        return ["from safetensors.torch import load_file", "tensors = load_file(OUT)"]
