"""What the pieces of a comparison hand to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mimkit.report.findings import Cell

Unit = Literal["steps", "images", "time", "flops"]


@dataclass(frozen=True)
class Budget:
    """What every method may spend on pre-training, once for each seed.

    Args:
        unit: optimizer steps, images seen, seconds, or floating-point operations.
        amount: how many; of unit "time" seconds.
    """

    unit: Unit
    amount: float


@dataclass(frozen=True)
class Trial:
    """What a few measured steps of one method showed on this machine.

    Args:
        seconds_per_step: of pre-training.
        flops_per_image: of a step, forwards and backwards.
        peak_memory_bytes: of the device on CUDA, of the process on the CPU.
        prepare_seconds: what targets needed before training when they were made, such as a
            tokenizer's training.
        prepared: those of them that need any: what it is to the seconds.
        parameters: encoder, head, targets, frozen, trainable to how many.
        encode_seconds: of one image through the frozen encoder.
        train_seconds: of one image through fine-tuning, forward and backward.
        fingerprint: of the training images.
        num_images: how many those are.
        device: where it was measured.
        prepare_flops: floating-point operations of what targets needed before training.
        owed: what targets still need, by a name that methods share where they share the thing, to
            estimated seconds.
    """

    seconds_per_step: float
    flops_per_image: float
    peak_memory_bytes: int
    prepare_seconds: float
    prepared: Mapping[str, float]
    parameters: Mapping[str, int]
    encode_seconds: float
    train_seconds: float
    fingerprint: str
    num_images: int
    device: str
    prepare_flops: float = 0.0
    owed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One method as it will be run.

    Args:
        label: its name in this comparison, unique in it.
        reference: what the user called it.
        source: the recipe that it came from.
        batch_size: images of a step.
        total_steps: of pre-training, from the budget.
        notes: what was changed of that recipe, and by which rule.
        trial: what it costs.
        evaluate_seconds: estimate for the evaluations of one run.
        disk_bytes: estimate for one run folder.
        digest: of that recipe with all that the command line says of it.
    """

    label: str
    reference: str
    source: str
    batch_size: int
    total_steps: int
    notes: tuple[str, ...]
    trial: Trial
    evaluate_seconds: float
    disk_bytes: int = 0
    digest: str = ""

    @property
    def images(self) -> int:
        """Images seen in pre-training."""
        return self.total_steps * self.batch_size

    @property
    def flops(self) -> float:
        """Floating-point operations of pre-training, with what its targets need before it."""
        return self.trial.prepare_flops + self.images * self.trial.flops_per_image

    @property
    def pretrain_seconds(self) -> float:
        """Estimate for pre-training."""
        return self.total_steps * self.trial.seconds_per_step

    @property
    def seconds(self) -> float:
        """Estimate for pre-training, with what its targets need before it."""
        return self.trial.prepare_seconds + self.pretrain_seconds


@dataclass(frozen=True)
class Plan:
    """A comparison before it runs; kept as ``plan.json``.

    Args:
        command: what the user typed.
        dataset: which images.
        budget: of each run.
        seeds: of the runs; the same for every method.
        methods: in the order that the user named them.
        mimkit: version that made it.
        notes: what holds for all methods.
        asked: what the command line said; another comparison in the same folder is refused.
        sizes: of the evaluations, the same for all methods.
    """

    command: str
    dataset: str
    budget: Budget
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    mimkit: str
    notes: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tune(self) -> int:
        """Trials of each method before its runs."""
        return int(self.asked.get("tune", 0))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All runs, seed by seed: whatever is finished early is paired."""
        return tuple(Cell(m.label, seed) for seed in self.seeds for m in self.methods)
