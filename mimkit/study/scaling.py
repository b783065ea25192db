"""What a step of many GPUs needs: memory, bytes over the network, seconds; formulas alone.

Sizes are in bytes, weights in numbers of them. ``n`` is the number of processes, one a GPU.
`docs/scaling.md` tells where each formula was held against what was counted.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from mimkit.study.gpus import Fleet

Way = Literal["ddp", "fsdp"]

FULL: Final = 4
"""Bytes of a weight and of a gradient: both are float32, whatever the products are in."""
HALF: Final = 2
UTILISATION: Final = 0.35
"""Share of a GPU's peak that matrix products of a transformer's step are taken to reach."""
LINKS: Final = 0.8
"""Share of a link's speed that collectives are taken to reach."""
LAUNCH: Final = 6e-6
"""Seconds that a processor is taken to need until it has called an operator that a GPU does."""
LOADERS: Final = 12
"""Loader processes a GPU, each with a core."""
CONTEXT: Final = 2**30
"""Bytes that CUDA, its libraries and NCCL are taken to hold."""
ROOM: Final = 0.9
"""Share of what is then left that a step may use, as the trial before a run has it."""
_TOUCHED: Final = 7 * FULL
"""Bytes of a weight that AdamW moves: it reads four tensors and writes three."""


@dataclass(frozen=True)
class Weights:
    """Weights that come and go together.

    Args:
        all: how many there are.
        trained: how many of them are trained.
    """

    all: int
    trained: int


@dataclass(frozen=True)
class Footprint:
    """What was counted of one method, on any device.

    Args:
        units: that come and go one by one with "fsdp" (`Module.units`).
        rest: what belongs to none.
        constants: bytes of what is no weight but lies with them, such as a tokenizer.
        buffers: bytes of it that DDP hands on before each step.
        step_bytes: that a step holds at most beside weights, whatever its images; the gradients
            among them.
        image_bytes: that each image of a piece adds to it.
        input_bytes: of an image and its masks, as they come to the device.
        flops_per_image: of a step, forwards and backwards.
        operators: that a piece calls, forwards and backwards.
        load_seconds: of one loader process until an image is there; 0 if they are on the device.
        moments: tensors that the optimizer keeps for each one that is trained.
        half: whether products, and so gathered units, are in bfloat16.
        unspreadable: why "fsdp" refuses it, or nothing.
    """

    units: tuple[Weights, ...]
    rest: Weights
    constants: int
    buffers: int
    step_bytes: int
    image_bytes: int
    input_bytes: int
    flops_per_image: float
    operators: int
    load_seconds: float
    moments: int
    half: bool
    unspreadable: str = ""

    @property
    def all(self) -> int:
        """All weights that are no constants."""
        return self.rest.all + sum(unit.all for unit in self.units)

    @property
    def trained(self) -> int:
        """All weights that are trained."""
        return self.rest.trained + sum(unit.trained for unit in self.units)

    @property
    def sent(self) -> int:
        """Bytes of a weight of a unit that is gathered."""
        return HALF if self.half else FULL


def ddp_memory(made: Footprint, n: int, piece: int) -> int:
    """Bytes of a GPU where each holds the whole model.

    Weights and the optimizer's moments; gradients, twice where there are several processes, for DDP
    sums them in buckets of its own; and what a piece of the batch keeps.
    """
    buckets = FULL * made.trained if n > 1 else 0
    held = FULL * (made.all + made.moments * made.trained) + made.constants
    return held + buckets + made.step_bytes + piece * made.image_bytes


def fsdp_memory(made: Footprint, n: int, piece: int) -> int:
    """Bytes of a GPU where each holds a share.

    A share of weights, gradients and moments; two gathered units, as the next one comes while one
    runs, with their gradients before these are shared out; what belongs to no unit, whole, with its
    gradients; and what a piece of the batch keeps.
    """
    share = FULL * (made.all + (made.moments + 1) * made.trained) // n
    largest = max((unit.all for unit in made.units), default=0)
    trained = max((unit.trained for unit in made.units), default=0)
    gathered = 2 * (made.sent * largest + FULL * trained)
    whole = FULL * (made.rest.all + made.rest.trained)
    # Neither gradients nor copies of weights in half precision are those of the whole model.
    copies = HALF * made.trained if made.half else 0
    beside = max(0, made.step_bytes - FULL * made.trained - copies)
    return share + gathered + whole + made.constants + beside + piece * made.image_bytes


def ddp_sent(made: Footprint, n: int) -> float:
    """Bytes that each process sends in a step: a ring adds up the gradients and hands them on."""
    return 2 * (n - 1) / n * FULL * made.trained + (n - 1) / n * made.buffers


def fsdp_sent(made: Footprint, n: int, pieces: int) -> float:
    """Bytes that each process sends in a step.

    For every piece of the batch: each unit's weights forwards, and backwards again if it is
    trained; the rest once; all gradients, in float32.
    """
    units = sum(made.sent * unit.all * (2 if unit.trained else 1) for unit in made.units)
    gathered = units + FULL * made.rest.all
    return pieces * (n - 1) / n * (gathered + FULL * made.trained)


def link_speed(fleet: Fleet) -> float:
    """Bytes a second that each process sends, all at once, where a ring through all is slowest.

    There are as many rings as network cards, each with its part of the bytes: what leaves a machine
    is once what one process sends.
    """
    within, between = fleet.gpu.link * 1e9, fleet.network / 8 * 1e9
    return LINKS * (within if fleet.nodes == 1 else min(within, between))


@dataclass(frozen=True)
class Step:
    """What a step is estimated to take, each by itself; they are taken to run beside each other.

    Args:
        compute: seconds of products, at `UTILISATION`, and of the optimizer.
        launch: seconds until all operators are called.
        network: seconds of exchange.
        reading: seconds until the images of the next one are there.
        memory: bytes of a GPU.
        pieces: into which each process cuts its share of the batch.
        sent: bytes that each process sends.
        fits: whether the memory of a GPU is enough.
    """

    compute: float
    launch: float
    network: float
    reading: float
    memory: int
    pieces: int
    sent: float
    fits: bool

    @property
    def seconds(self) -> float:
        """From one step to the next."""
        return max(self._times.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = self._times
        return max(times, key=lambda name: times[name])

    @property
    def _times(self) -> dict[str, float]:
        return {
            "compute": self.compute,
            "launch": self.launch,
            "network": self.network,
            "reading": self.reading,
        }


def step(made: Footprint, way: Way, fleet: Fleet, share: int, accumulate: int | None) -> Step:
    """Estimates a step.

    Args:
        made: what was counted.
        way: how the model is held.
        fleet: on what.
        share: images of each process.
        accumulate: pieces of it; None for as few as fit.
    """
    n = fleet.size
    memory = partial(ddp_memory if way == "ddp" else fsdp_memory, made, n)
    waiting = 2 * share * made.input_bytes  # the next batch comes while this one is at work
    room = int(ROOM * (fleet.gpu.memory * 1e9 - CONTEXT))
    counts = [accumulate] if accumulate else [k for k in range(1, share + 1) if share % k == 0]
    pieces = next((k for k in counts if waiting + memory(share // k) <= room), counts[-1])
    held = waiting + memory(share // pieces)
    sent = 0.0 if n == 1 else ddp_sent(made, n) if way == "ddp" else fsdp_sent(made, n, pieces)
    speed = UTILISATION * fleet.gpu.tflops * 1e12
    updated = made.trained if way == "ddp" else made.trained / n
    return Step(
        compute=share * made.flops_per_image / speed
        + _TOUCHED * updated / (fleet.gpu.bandwidth * 1e9),
        launch=pieces * made.operators * LAUNCH,
        network=sent / link_speed(fleet),
        reading=share * made.load_seconds / LOADERS,
        memory=held + CONTEXT,
        pieces=pieces,
        sent=sent,
        fits=held <= room,
    )
