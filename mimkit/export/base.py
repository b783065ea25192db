"""What an exporter is: it writes an encoder in a form that other programs load.

A package adds one by an entry point of the group ``mimkit.exporters``, a subclass of `Exporter`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mimkit.errors import MimkitError, PluginError, RecipeError
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import View
from mimkit.recipe import registry

Answer = Callable[[Tensor], Mapping[str, Tensor]]
"""What gives an encoder's answers, by name, to images (B, C, H, W)."""


@dataclass(frozen=True)
class Exportable:
    """An encoder that is to be written, and what it must be shown.

    >>> from mimkit.builtin.encoders import ViT
    >>> encoder = ViT(Geometry(Grid(2, 2, 4)), embed_dim=16, depth=1, num_heads=2).eval()
    >>> source = Exportable(encoder, View("image", (8, 8)), channels=3)
    >>> {name: tuple(value.shape) for name, value in source.answer(source.images(2)).items()}
    {'pooled': (2, 16), 'patches': (2, 4, 16), 'prefix': (2, 1, 16)}

    Args:
        encoder: on the CPU, in evaluation mode, without gradients.
        view: size and normalisation of its images.
        channels: C.
        about: what ``encoder.json`` of the run says of it.
        license: of the weights, as the Hub names it; "" where nobody said.
    """

    encoder: Encoder
    view: View
    channels: int
    about: Mapping[str, Any] | None = None
    license: str = ""

    def images(self, batch_size: int) -> Tensor:
        """Draws images of the size that the encoder takes, always the same ones.

        Shape: (B, C, H, W) float32.
        """
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, self.channels, *self.view.image_size, generator=generator)

    def answer(self, image: Tensor) -> dict[str, Tensor]:
        """Gives what `Encoder.features` says of images, by name.

        ``pooled`` is the mean of the patches, which probes read by default; ``prefix`` is left out
        where there is none.

        Shape: pooled (B, D), patches (B, T, D), prefix (B, R, D).
        """
        tokens = self.encoder.features(image)
        found = {"pooled": tokens.patches.mean(dim=1), "patches": tokens.patches}
        return found if tokens.prefix.shape[1] == 0 else {**found, "prefix": tokens.prefix}

    @property
    def shown(self) -> dict[str, Any]:
        """What must be known of images to make them what the encoder takes, as plain data."""
        return {
            "image_size": list(self.view.image_size),
            "channels": self.channels,
            "mean": list(self.view.mean),
            "std": list(self.view.std),
            "interpolation": self.view.interpolation,
        }


class Exporter(ABC):
    """Writes encoders in a form that other programs load.

    >>> class Sizes(Exporter):
    ...     suffix = ".txt"
    ...
    ...     def write(self, source, out):
    ...         out.write_text(f"{source.encoder.embed_dim} numbers a patch")
    ...         return ["text = open(OUT).read()"]
    >>> Sizes().module
    ''

    Attributes:
        suffix: of the file that it writes; "" if it writes a folder.
        module: what must be importable, such as "onnx"; asked before anything is computed.
        install: what pip installs it by.
    """

    suffix: ClassVar[str]
    module: ClassVar[str] = ""
    install: ClassVar[str] = ""

    def check(self, source: Exportable) -> None:  # noqa: B027 -- most take every encoder
        """Refuses what `write` could not do; by default nothing.

        Raises: RecipeError with the reason.
        """

    @abstractmethod
    def write(self, source: Exportable, out: Path) -> list[str]:
        """Writes the encoder, and beside a file a JSON file of the same name that says of it.

        Args:
            source: what is written.
            out: the file; or a folder, which is there.

        Returns: lines of Python that load it, in which OUT stands for ``out`` as a text.
        Raises: RecipeError as `check`.
        """

    def reload(self, out: Path) -> Answer | None:
        """Loads what was written, as other programs do, so that it can be held against the source.

        Returns: what gives some of `Exportable.answer`, by its names; None if nothing here can run
            it, which is the default.
        """
        return None


def exporter(name: str) -> Exporter:
    """Makes the exporter of a name.

    Raises: PluginError if there is none, RecipeError if its package is missing.
    """
    kind = cast(type[Exporter], registry.load(registry.find("exporters", name)))
    if kind.module:
        found = importlib.util.find_spec(kind.module)
        if found is None or found.origin is None:
            raise RecipeError(
                f"--format {name}: needs {kind.module}, which is not installed. "
                f"Install it with: pip install '{kind.install or kind.module}'"
            )
    return kind()


def allowed(source: Exportable) -> list[str]:
    """Names the formats in which an encoder can be written."""
    return [entry.name for entry in registry.entries("exporters") if _takes(entry, source)]


def _takes(entry: registry.Entry, source: Exportable) -> bool:
    try:
        cast(type[Exporter], registry.load(entry))().check(source)
    except MimkitError:
        return False
    return True


def difference(source: Exportable, answer: Answer) -> float:
    """Measures how far another answers differently, on images that are always the same.

    Returns: the largest absolute difference of one number, over all that both say.
    Raises: PluginError if they have nothing in common, or shapes differ.
    """
    images = source.images(3)  # neither one, which a graph might be fixed to, nor two, as traced
    with torch.no_grad():
        ours, theirs = source.answer(images), answer(images)
    both = ours.keys() & theirs.keys()
    if not both or any(ours[name].shape != theirs[name].shape for name in both):
        raise PluginError(
            f"What was exported must give {_shapes(ours)}, but gives {_shapes(theirs)}."
        )
    return max(float((ours[name] - theirs[name]).abs().max()) for name in both)


def size(source: Exportable) -> float:
    """Returns the largest absolute value of what the encoder answers, which errors are held to."""
    with torch.no_grad():
        return max(float(value.abs().max()) for value in source.answer(source.images(3)).values())


def _shapes(answer: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in answer.items())
