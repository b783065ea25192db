"""What the pieces of a comparison hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mimkit.evaluate.base import Plain
from mimkit.evaluate.uncertainty import Measured
from mimkit.report.findings import Direction, direction

Unit = Literal["steps", "images", "time", "flops"]
State = Literal["finished", "failed", "missing"]


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
    def cells(self) -> tuple["Cell", ...]:
        """All runs, seed by seed: whatever is finished early is paired."""
        return tuple(Cell(m.label, seed) for seed in self.seeds for m in self.methods)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        method: label of the method.
        seed: of the run.
    """

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of one cell.

    Args:
        cell: which.
        state: "finished"; "failed", with a reason; or "missing", not run yet.
        folder: its run folder.
        command: how to repeat it.
        reason: why it failed, in the words of the run; else "".
        ledger: content of its ``ledger.json``; empty if there is none.
        results: the list of its ``results.json`` (`mimkit.evaluate.base.Result` as dictionaries).
    """

    cell: Cell
    state: State
    folder: Path
    command: str
    reason: str = ""
    ledger: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Row:
    """One metric under one protocol: every number that was measured, by method, start and seed.

    Args:
        evaluator: its name.
        metric: what was measured.
        protocol: how; equal for all numbers of the row.
        values: method label to start ("pretrained", "scratch", "random", "pixels") to seed to the
            number.
        own_task: measured on the pre-training task, which is another for each method: such
            numbers are not compared.
        measured: in the same order what errors follow from, where more is known than the number:
            the scores of the judged images, or how many they are.
    """

    evaluator: str
    metric: str
    protocol: Mapping[str, Plain]
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    own_task: bool = False
    measured: Mapping[str, Mapping[str, Mapping[int, Measured]]] = field(
        default_factory=dict, repr=False
    )

    def series(self, label: str, start: str) -> Mapping[int, Measured]:
        """All that is known of the numbers of one method and start, by seed."""
        known = self.measured.get(label, {}).get(start, {})
        values = self.values[label][start]
        return {seed: known.get(seed, Measured(value)) for seed, value in values.items()}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and how sure it is.

    Args:
        mean: over seeds; of differences where two are compared.
        low: lower end of the interval for other seeds and other test images; None with fewer than
            two seeds, and where a number of which single images tell nothing is the same in all.
        high: upper end; None likewise.
        num_seeds: n.
        image_error: standard error that the choice of test images adds and no further seed takes
            away; None with fewer than two seeds.
    """

    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    image_error: float | None = None

    @property
    def direction(self) -> Direction:
        """Where the interval of a difference lies: above zero, below it, or neither."""
        return direction(self.low, self.high)


@dataclass(frozen=True)
class Pair:
    """The difference of two methods, or of a method and its baseline, paired by seed.

    Args:
        first: method label, or ``"<label> <start>"`` of a baseline.
        second: what is subtracted.
        difference: first minus second, in the metric's unit.
        p_value: two-sided, of no difference; None where there is no interval.
        adjusted: the same after Holm's correction for all pairs of methods in the row; None for a
            baseline.
        verdict: in words: "better", "worse", "not distinguishable at n=3", "one seed: no interval",
            "the same in every seed: no interval".
            Of two methods it follows ``adjusted``, so that it may be less sure than the interval.
        seeds_needed: how many seeds would show a true difference of this size with 80 % chance, on
            as many test images; None where no error or no difference was seen, or over 1,000, as
            it is where the test images are too few. Not corrected for the number of pairs.
    """

    first: str
    second: str
    difference: Interval
    p_value: float | None
    adjusted: float | None
    verdict: str
    seeds_needed: int | None


@dataclass(frozen=True)
class Verdicts:
    """What one row says.

    Args:
        row: the numbers.
        means: (method label, start) to mean and interval over seeds.
        pairs: every pair of methods, pre-trained.
        gains: every method, pre-trained minus its own baseline of the same evaluation ("scratch",
            else "random", else "pixels").
        ranking: groups of labels from best to worst, where methods of one group cannot be told
            apart and every method of a group differs from every method of the next ones; None
            where the data allow no ranking.
    """

    row: Row
    means: Mapping[tuple[str, str], Interval]
    pairs: tuple[Pair, ...]
    gains: tuple[Pair, ...]
    ranking: tuple[tuple[str, ...], ...] | None


@dataclass(frozen=True)
class Comparison:
    """All that is known of a comparison, for the tables and the report.

    Args:
        plan: what was asked for.
        folder: where it lies.
        outcomes: of every cell, in the order of the plan.
        verdicts: by row; label fractions ascending within an evaluator and metric.
        answer: the finding in one sentence with its uncertainty.
        refused: runs that lie there but are not comparable, and why.
    """

    plan: Plan
    folder: Path
    outcomes: tuple[Outcome, ...]
    verdicts: tuple[Verdicts, ...]
    answer: str
    refused: tuple[str, ...] = ()
