"""Kinds of GPU that a plan may be made for without having one, and how many of them."""

import re
from dataclasses import dataclass
from typing import Final

from mimkit.errors import RecipeError, nearest

_WORDS: Final = re.compile(r"(?:(\d+)\s*[x*]\s*)?(\d+)\s+([a-z0-9-]+)(?:\s+(\d+)\s*gbit)?")
_MOST_GPUS: Final = 65_536
_CARD_NETWORK: Final = 100.0
"""Gbit/s that a machine is taken to send where its GPUs come without a network of their own."""


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says of one GPU.

    Args:
        name: as `--on` has it.
        tflops: 10^12 floating-point operations a second: dense products in bfloat16 that are
            summed in float32.
        memory: in 10^9 bytes.
        bandwidth: of that memory, in 10^9 bytes a second.
        link: to the other GPUs of its machine, in 10^9 bytes a second and direction.
        network: Gbit/s to other machines that the vendor's own machine has for each GPU; 0 for
            cards, of which no data sheet says it.
        source: of the figures.
    """

    name: str
    tflops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    source: str


GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", 125, 24, 600, 32, 0, "NVIDIA A10 data sheet"),
        Gpu("a100", 312, 80, 2039, 300, 200, "NVIDIA A100 (SXM, 80 GB) and DGX A100 data sheets"),
        Gpu(
            "a100-40", 312, 40, 1555, 300, 200, "NVIDIA A100 (SXM, 40 GB) and DGX A100 data sheets"
        ),
        Gpu("b200", 2250, 180, 7700, 900, 400, "NVIDIA HGX B200 and DGX B200 data sheets"),
        Gpu("h100", 989, 80, 3350, 450, 400, "NVIDIA H100 (SXM) and DGX H100 data sheets"),
        Gpu("h200", 989, 141, 4800, 450, 400, "NVIDIA H200 (SXM) and DGX H200 data sheets"),
        Gpu("l4", 121, 24, 300, 32, 0, "NVIDIA L4 data sheet"),
        Gpu("l40s", 362, 48, 864, 32, 0, "NVIDIA L40S data sheet"),
        Gpu("rtx3090", 71, 24, 936, 32, 0, "NVIDIA Ampere GA102 white paper"),
        Gpu("rtx4090", 165, 24, 1008, 32, 0, "NVIDIA Ada white paper"),
    )
}


@dataclass(frozen=True)
class Fleet:
    """The GPUs of a plan.

    Args:
        nodes: machines.
        per_node: GPUs of each.
        gpu: their kind.
        network: Gbit/s that each machine sends to others.
    """

    nodes: int
    per_node: int
    gpu: Gpu
    network: float

    @property
    def size(self) -> int:
        """How many GPUs there are."""
        return self.nodes * self.per_node

    def __str__(self) -> str:
        if self.nodes == 1:
            return f"{self.per_node} x {self.gpu.name}"
        return f"{self.nodes} machines of {self.per_node} x {self.gpu.name}"


def fleet_of(text: str | None, *, dry_run: bool) -> Fleet | None:
    """Reads what ``--on`` says; None where it says nothing.

    Raises: RecipeError as `parse_fleet`, or if more than a plan is asked for.
    """
    if text is None:
        return None
    if not dry_run:
        raise RecipeError(
            f"--on '{text}': only estimates what these GPUs would take, so it goes with --dry-run. "
            "To run there, the same command without --on, on that machine."
        )
    return parse_fleet(text)


def parse_fleet(text: str) -> Fleet:
    """Reads ``8x8 h100``, ``4 l40s`` or ``2x4 a100 100gbit``.

    >>> str(parse_fleet("8x8 h100")), parse_fleet("2x4 l4 25gbit").network
    ('8 machines of 8 x h100', 25.0)

    Raises: RecipeError if it is nothing of the kind, or no GPU is called so.
    """
    found = _WORDS.fullmatch(text.strip().lower())
    if found is None:
        raise RecipeError(
            f"--on '{text}': must be machines x GPUs of each and their kind, such as '8x8 h100' or "
            "'4 l40s', and maybe what each machine sends, such as '2x4 a100 100gbit'."
        )
    nodes, per_node = int(found[1] or 1), int(found[2])
    gpu = GPUS.get(found[3])
    if gpu is None:
        raise RecipeError(
            f"--on '{text}': the kind must be one of {', '.join(GPUS)}, but is '{found[3]}'."
            f"{nearest(found[3], GPUS)}"
        )
    if not 1 <= nodes * per_node <= _MOST_GPUS:
        raise RecipeError(
            f"--on '{text}': must be 1 to {_MOST_GPUS:,} GPUs, but is {nodes * per_node:,}."
        )
    network = float(found[4] or gpu.network * per_node or _CARD_NETWORK)
    if network == 0:
        raise RecipeError(f"--on '{text}': what a machine sends must be above 0 Gbit/s.")
    return Fleet(nodes, per_node, gpu, network)
