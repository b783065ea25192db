"""What a study found, from its runs to verdicts: the records that everything that tells reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mimkit.evaluate.base import Plain
from mimkit.evaluate.uncertainty import Measured

State = Literal["finished", "failed", "missing"]
Direction = Literal["up", "down", "none"]


def direction(low: float | None, high: float | None) -> Direction:
    """Says where an interval lies: above zero, below it, or neither; None is an open end."""
    if low is None or high is None or low <= 0 <= high:
        return "none"
    return "up" if low > 0 else "down"


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
        ranked: more is better; of others methods are not compared either.
        measured: in the same order what errors follow from, where more is known than the number:
            the scores of the judged images, or how many they are.
    """

    evaluator: str
    metric: str
    protocol: Mapping[str, Plain]
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    own_task: bool = False
    ranked: bool = True
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
class Cost:
    """What one method was given and what it took.

    Means over its finished runs; before there are any, what a plan expects.

    Args:
        measured: whether any run has finished.
        images: seen in pre-training.
        steps: of the optimizer.
        flops_per_image: of a step of pre-training, forwards and backwards.
        prepare_flops: of what targets needed first, as ``prepare_seconds``.
        train_seconds: of pre-training.
        prepare_seconds: of what targets needed first, such as a tokenizer's training, when it was
            made; a run that finds it in the cache still owes it.
        evaluate_seconds: of the evaluations.
        peak_memory_bytes: the largest of its runs.
        parameters: encoder, head, targets, frozen, trainable to how many.
    """

    measured: bool
    images: float
    steps: float
    flops_per_image: float
    prepare_flops: float
    train_seconds: float
    prepare_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: float
    parameters: Mapping[str, int]

    @property
    def flops(self) -> float:
        """Floating-point operations of preparation and pre-training."""
        return self.prepare_flops + self.images * self.flops_per_image

    @property
    def seconds(self) -> float:
        """Preparation and pre-training."""
        return self.prepare_seconds + self.train_seconds


@dataclass(frozen=True)
class Arm:
    """One method of a study.

    Args:
        label: its name in this study, unique in it.
        source: the recipe that it came from.
        batch_size: images of a step.
        notes: what was changed of that recipe, and by which rule.
        recipe: file of the whole recipe; it may be missing.
        planned: what it should cost, if it was planned.
    """

    label: str
    source: str
    batch_size: int
    notes: tuple[str, ...]
    recipe: Path
    planned: Cost | None = None


@dataclass(frozen=True)
class Tried:
    """One trial of a method, before its runs.

    Args:
        method: label of the method.
        number: of the trial, from 1; the first is the recipe as it is.
        factor: of the recipe's learning rate.
        lr: that rate.
        options: of the masker, by name.
        score: on images whose labels were held back; None where training diverged.
        chosen: its setting is that of the runs.
    """

    method: str
    number: int
    factor: float
    lr: float
    options: Mapping[str, float]
    score: float | None
    chosen: bool


@dataclass(frozen=True)
class Tuning:
    """What each method tried, and what was chosen by that.

    Args:
        evaluator: by which.
        metric: of it.
        protocol: of that number.
        num_images: that judged, each a training image whose label was held back.
        num_trials: of each method.
        tried: all trials, method by method.
    """

    evaluator: str
    metric: str
    protocol: Mapping[str, Plain]
    num_images: int
    num_trials: int
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Study:
    """All that is known of runs that are judged together, for tables and pages.

    Args:
        title: what was studied.
        dataset: on which images.
        folder: where it lies.
        command: what the user typed.
        budget: of every run, in words.
        allowance: the same as a number to be seen first; "" of a single run.
        seeds: of the runs; the same for every method.
        arms: the methods, in the order that the user named them.
        outcomes: of every cell.
        verdicts: by row; label fractions ascending within an evaluator and metric.
        answer: the finding in one sentence with its uncertainty.
        refused: runs that lie there but are not comparable, and why.
        notes: what holds for all methods.
        mimkit: version that made it.
        is_run: it is a single run, in whose folder it lies.
        judgements: of a run, what was judged later on other data.
        tuning: what was tried before the runs; None where nothing was.
    """

    title: str
    dataset: str
    folder: Path
    command: str
    budget: str
    allowance: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    outcomes: tuple[Outcome, ...]
    verdicts: tuple[Verdicts, ...]
    answer: str
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mimkit: str = ""
    is_run: bool = False
    judgements: tuple["Study", ...] = ()
    tuning: Tuning | None = None

    @property
    def labels(self) -> list[str]:
        """Of its methods."""
        return [arm.label for arm in self.arms]

    @property
    def finished(self) -> list[Outcome]:
        """The runs that have been trained and evaluated."""
        return [one for one in self.outcomes if one.state == "finished"]

    @property
    def told(self) -> list[Outcome]:
        """The runs whose logs and ledgers are shown: of a single run also a part."""
        return list(self.outcomes) if self.is_run else self.finished
