"""Encoders as graphs, which run without mimkit: for images of one size, in batches of any."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from mimkit.errors import RecipeError, in_one_line
from mimkit.export.base import Answer, Exportable, Exporter
from mimkit.files import write_bytes, write_json
from mimkit.parts.part import Module

_MOST_BYTES: Final = 2**31 - 2**20
"""An ONNX file is one message of protobuf, which holds no more than 2 GiB."""


class _Answering(Module):
    """Images to what an encoder says of them, by name."""

    def __init__(self, source: Exportable) -> None:
        super().__init__()
        self.encoder = source.encoder
        self._source = source

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self._source.answer(image)


class TorchExportExporter(Exporter):
    """A graph of ``torch.export``, which runs without mimkit and its plugins.

    Its input is ``image`` (B, C, H, W), its output a dictionary: ``pooled`` (B, D), ``patches``
    (B, T, D), and ``prefix`` (B, R, D) if there is one. Positions are constants, for one size.

    Source: PyTorch's ``torch.export``.
    """

    suffix = ".pt2"

    def write(self, source: Exportable, out: Path) -> list[str]:
        """Writes the graph, and what its images must be."""
        content = io.BytesIO()
        with _quiet():
            torch.export.save(trace(source), content)
        write_bytes(out, content.getvalue())
        write_json(out.with_suffix(".json"), source.shown)
        return [
            "import torch",
            "model = torch.export.load(OUT).module()",
            'features = model(image)["pooled"]  # image: (B, C, H, W), normalised',
        ]

    def reload(self, out: Path) -> Answer:
        """Loads the graph."""
        graph: Any = torch.export.load(out).module()
        return lambda image: dict(graph(image))


class OnnxExporter(Exporter):
    """An ONNX graph, which runs without Python.

    Its input is ``image`` (B, C, H, W) float32, its outputs are ``pooled`` (B, D), ``patches``
    (B, T, D), and ``prefix`` (B, R, D) if there is one. Positions are constants, for one size.

    Source: ONNX; PyTorch's ``torch.onnx.export`` writes it.
    """

    suffix = ".onnx"
    module = "onnxscript"
    install = "mimkit[onnx]"

    def check(self, source: Exportable) -> None:
        """Refuses encoders of more than 2 GiB."""
        held = sum(each.nbytes for each in source.encoder.state_dict().values())
        if held > _MOST_BYTES:
            raise RecipeError(
                f"an ONNX file holds at most 2 GiB, but the weights are {held:,} bytes."
            )

    def write(self, source: Exportable, out: Path) -> list[str]:
        """Writes the graph, and what its images must be, also within it."""
        names = list(source.answer(source.images(1)))
        graph = trace(source)
        with _quiet():
            program: Any = torch.onnx.export(
                graph, input_names=["image"], output_names=names, dynamo=True, verbose=False
            )
        written = program.model_proto
        for key, value in source.shown.items():
            written.metadata_props.add(key=f"mimkit.{key}", value=str(value))
        write_bytes(out, written.SerializeToString())
        write_json(out.with_suffix(".json"), source.shown)
        return [
            "import onnxruntime",
            'session = onnxruntime.InferenceSession(OUT, providers=["CPUExecutionProvider"])',
            'pooled, = session.run(["pooled"], {"image": image})  # float32',
        ]

    def reload(self, out: Path) -> Answer:
        """Runs it in ONNX Runtime, on the CPU."""
        import onnxruntime  # noqa: PLC0415 -- an extra

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def answer(image: Tensor) -> dict[str, Tensor]:
            found = session.run(names, {"image": image.numpy()})
            return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

        return answer


def trace(source: Exportable) -> ExportedProgram:
    """Records what an encoder computes, for images of its size in batches of any number.

    Raises: RecipeError if it computes what cannot be recorded, such as a branch that depends on
        the numbers in an image.
    """
    module = _Answering(source).eval()
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(
                module, (source.images(2),), dynamic_shapes={"image": {0: Dim("batch")}}
            )
    except Exception as error:  # a plugin's code can stop a recording in any way
        raise RecipeError(
            f"{type(source.encoder).__name__} computes what torch.export cannot record: "
            f"{in_one_line(error)}."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from people what torch warns of within its own exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
