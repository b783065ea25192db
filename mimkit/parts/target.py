"""Targets: what must be predicted, and what getting ready for it takes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mimkit.parts.encoder import Encoder
from mimkit.parts.part import Module, Part
from mimkit.parts.records import Batch, Picture, View, Width


class Images(Protocol):
    """The unlabelled training images, as `Target.prepare` gets them.

    >>> def brightest(images: Images, view: View) -> float:
    ...     return float(images.view(torch.arange(len(images)), view).max())
    """

    @property
    def fingerprint(self) -> str:
        """Changes whenever the images change: a key for caches."""

    def __len__(self) -> int: ...

    def view(self, index: Tensor, view: View) -> Tensor:
        """Renders whole images, not augmented.

        Shape: index (n,) int64; (n, C, H, W) float32 on the CPU.
        """


@dataclass(frozen=True)
class Preparation:
    """What `Target.prepare` did, for the ledger and the report.

    >>> Preparation("a tokenizer", 12.5, cached=False, facts={"codes": 512}).facts["codes"]
    512

    Args:
        title: what was prepared, in a few words.
        seconds: what making it cost, also where it was found in a cache.
        cached: whether it was found in a cache.
        facts: what a reader should know of it, by name, such as how many codes are used.
        pictures: title to (n, C, H, W) in [0, 1], shown side by side.
        flops: floating-point operations of making it (`mimkit.count_flops`), also where it was
            found in a cache; 0 where they are not known.
        key: names what was prepared: two targets of one key share it, so that it is made once.
    """

    title: str
    seconds: float
    cached: bool
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    flops: float = 0.0
    key: str = ""


class Target(Part, Module):
    """What must be predicted.

    >>> class Position(Target):
    ...     def __init__(self, geometry):
    ...         super().__init__()
    ...         self.width = Width("class", geometry.grid.num_patches)
    ...
    ...     def forward(self, batch, encoder):
    ...         return batch.mask.target
    >>> Position(Geometry(Grid(2, 2, 4))).width
    Width(kind='class', size=4)

    Attributes:
        width: kind and size of one target, which a head must match.
        views: renderings it needs beside the encoder's ``"image"``.
        ragged: True if padded positions do not disturb the others.
        needs_encoder: False if it follows from the batch alone, without a random number. It is
            then computed before the encoder, when nothing is held in memory for the gradient yet.
    """

    width: Width
    views: tuple[View, ...] = ()
    ragged: bool = False
    needs_encoder: bool = True

    def bind(self, encoder: Encoder) -> None:
        """Is called once, when the parts of a recipe meet and before any checkpoint is loaded.

        A target with a teacher copies the encoder here. The encoder itself must not become a
        submodule of the target: its parameters would count twice.
        """

    def prepare(
        self,
        images: Images,
        workdir: Path,
        *,
        device: torch.device,
        say: Callable[[str], None],
    ) -> Preparation | None:
        """Does what must happen once before training, such as fitting a tokenizer.

        Args:
            images: the unlabelled training images.
            workdir: where results are cached from run to run, shared by all runs: what is kept
                there must be named after all that it depends on.
            device: where to compute; this target itself is still on the CPU.
            say: receives a line of text for people whenever there is progress to tell.

        Returns: what it cost and what came of it, for the ledger and the report; None if there
            was nothing to do.
        Raises: DataError if what it needs cannot be had.
        """
        return None

    def rehearse(
        self, images: Images, workdir: Path, *, device: torch.device
    ) -> Preparation | None:
        """Gets ready to be measured, for a plan that must be there within seconds.

        Where `prepare` takes long this trains and downloads nothing: what is in ``workdir`` is
        used, else a few of its own steps tell what the whole would take, and any weights of the
        right shape stand in for those to come. By default it is `prepare`.

        Args:
            images: the unlabelled training images.
            workdir: as for `prepare`; nothing is written there.
            device: where to compute; this target itself is still on the CPU.

        Returns: as `prepare`; ``seconds`` and ``flops`` are estimates unless it is ``cached``.
        """
        return self.prepare(images, workdir, device=device, say=lambda _: None)

    @abstractmethod
    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Gives the targets at ``batch.mask.target``.

        Shape: (B, G, M) int64 for width kind "class", else (B, G, M, K) float.
        """

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Is called after every optimizer step, with progress in (0, 1]: teachers move here."""

    def render(self, prediction: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Shows predictions of this target as pictures; by default none.

        Shape: prediction (B, G, M, K).
        """
        return ()

    def diagnose(self, batch: Batch) -> dict[str, float]:
        """Gives what `mimkit bench` should say of this target beside its time; by default nothing.

        For instance how far ids in half precision agree with those in float32.
        """
        return {}
