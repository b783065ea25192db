"""What one run has in hand: data, parts, and the folder in which it is written down."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich.console import Console

from mimkit.data.batches import Batches, default_workers, stream
from mimkit.data.pixels.augment import Augment
from mimkit.data.pixels.views import render
from mimkit.data.source import Source
from mimkit.errors import TrainingError, in_one_line, memory_is_full
from mimkit.evaluate.base import Evaluator, Result, Subject, silent
from mimkit.evaluate.fractions import held_back
from mimkit.evaluate.images import evenly_spaced
from mimkit.folder import RunFolder
from mimkit.parts.records import Batch
from mimkit.parts.target import Preparation
from mimkit.pipeline.start.begin import Start
from mimkit.recipe.build import Parts, build, construct
from mimkit.recipe.schema import Recipe
from mimkit.train.distributed import World
from mimkit.train.loop import Hooks, Loop
from mimkit.train.sharding import gathered, spread
from mimkit.train.step import Pretrainer
from mimkit.train.trial import StepTrial, try_out


@dataclass
class Run:
    """Everything one run has in hand; built by `mimkit.pipeline.assemble`.

    Args:
        recipe: what to do; settled by `prepare`.
        folder: where it is written down.
        train: training split. test: held-out split.
        parts: as built from the recipe.
        pretrainer: the parts as one module, on the device.
        world: this process among others.
        console: where people look.
        command: what the user typed.
        seconds: time spent, by phase, with that of earlier calls: "prepare"; "evaluating", which
            becomes "evaluate" when the last evaluation is done; "repeated", on steps that a kill
            threw away, as far as the log tells.
        prepared: what each target did before training, by its name.
        labelled: both splits of ``data.labelled``, for evaluators that need labels; None where
            the recipe names none.
        verbose: whether also the details of evaluations are told.
        pieces: into which each process cuts its share of a batch; None until that is known.
        evaluators: those of the recipe, which have been asked whether they can work.
        start: the weights that it begins with, if it begins now and not with random ones.
    """

    recipe: Recipe
    folder: RunFolder
    train: Source
    test: Source
    parts: Parts
    pretrainer: Pretrainer
    world: World
    console: Console
    command: str
    seconds: dict[str, float] = field(default_factory=dict)
    prepared: dict[str, Preparation] = field(default_factory=dict)
    labelled: tuple[Source, Source] | None = None
    verbose: bool = False
    pieces: int | None = None
    evaluators: list[Evaluator] = field(default_factory=list)
    start: Start | None = None

    @contextmanager
    def spends(self, phase: str) -> Iterator[None]:
        """Adds the time until leaving, also by an error, to the phase's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    @property
    def augment(self) -> Augment:
        """The recipe's augmentation."""
        return Augment(**self.recipe.augment.model_dump())

    def heldout_batch(self, num_images: int) -> Batch:
        """A few whole held-out images, always the same, with masks that follow from the seed."""
        index = evenly_spaced(self.test, num_images)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        views = {
            view.name: render(self.test, index, view, None, self.augment)
            for view in self.parts.views
        }
        mask = self.parts.masker.sample(len(index), generator)
        return Batch(views, mask, None, index).to(self.world.device)

    def say_warning(self, text: str) -> None:
        """Prints a line that people should see."""
        self.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def say_unread(self) -> None:
        """Tells of images that could not be read when they were first met."""
        broken = self.train.unread()[len(self.train.skipped) :]
        if broken:
            self.console.print(
                f"{len(broken):,} training images could not be read, all listed in the ledger; "
                f"another stands in the place of each. The first: {broken[0].path} "
                f"{broken[0].reason}",
                markup=False,
            )

    def batches(self, processes: int = 1, batch_size: int | None = None) -> Batches:
        """This process's share of the training batches.

        Args:
            processes: share them among at least so many, whether they are there or not.
            batch_size: None: the recipe's.
        """
        return Batches(
            self.train,
            views=self.parts.views,
            augment=self.augment,
            masker=self.parts.masker,
            batch_size=batch_size or self.recipe.train.batch_size,
            seed=self.recipe.seed,
            rank=self.world.rank,
            world_size=max(self.world.size, processes),
        )

    @property
    def workers(self) -> int:
        """Loader processes of pre-training."""
        return default_workers(self.recipe.data, self.train)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The training batches from one step to another, prepared ahead, on the device."""
        return stream(self.batches(), start, stop, workers=self.workers, device=self.world.device)

    def loop(self, hooks: Hooks = Hooks()) -> Loop:  # noqa: B008 -- it is frozen
        """The loop of pre-training, at its first step."""
        loop = Loop(
            self._trained(),
            train=self.recipe.train,
            num_images=len(self.train),
            seed=self.recipe.seed,
            world=self.world,
            folder=self.folder.checkpoints,
            hooks=hooks,
        )
        if self.pieces is not None:
            loop.cut(self.pieces)
        if self.start is not None:
            for line in self.start.optimizer(loop.pretrainer, loop.optimizer):
                self.console.print(line)
        return loop

    def _trained(self) -> Pretrainer:
        """What is trained: the module itself, or a copy spread over all processes.

        Then the module itself waits on the CPU of the leading process, for evaluations.
        """
        if self.recipe.train.parallel == "ddp" or self.world.size == 1:
            return self.pretrainer
        trained = copy.deepcopy(self.pretrainer.cpu())
        spread(trained, self.world, self.recipe.train.precision)
        if not self.world.leads:
            self.pretrainer.to("meta")
        return trained

    def fetch(self, loop: Loop) -> None:
        """Brings what a loop has trained into the leading process's own module, on its device.

        All processes must call it at once, also where the loop trains that module itself.
        """
        if not loop.spread:
            return
        mine = self.pretrainer.state_dict() if self.world.leads else {}
        for name, value in gathered(loop.pretrainer):
            if self.world.leads:
                mine[name].copy_(value)
        if self.world.leads:
            self.pretrainer.to(self.world.device)

    def release(self, loop: Loop) -> None:
        """Lets the device's memory be used by the loop again after `fetch`."""
        if loop.spread and self.world.leads:
            self.pretrainer.cpu()

    def try_out(self, loop: Loop, *, processes: int = 1) -> StepTrial:
        """Measures the next step of pre-training, and decides how it will be computed.

        Args:
            loop: about to run, on the device of this run.
            processes: measure what one of so many will do, where they are not there yet.
        """
        if not loop.spread:
            loop.eager = loop.forward = self.world.wrap(self.pretrainer)
        shares = self.batches(processes)

        def batches(start: int, stop: int) -> Iterator[Batch]:
            return stream(shares, start, stop, workers=self.workers, device=self.world.device)

        trial = try_out(loop, batches, workers=self.workers)
        self.pieces = loop.progress.choice.accumulate
        return trial


def build_evaluators(current: Run) -> list[Evaluator]:
    """Builds the recipe's evaluators."""
    return [
        construct(current.recipe, f"evaluate.{number}", current.parts.geometry)
        for number in range(len(current.recipe.evaluate))
    ]


def subject(current: Run, number: int) -> Subject:
    """What evaluator ``number`` of the recipe gets to judge: labelled images if it needs them."""
    recipe, view = current.recipe, current.parts.views[0]
    train, test = current.train, current.test
    judge = recipe.evaluate[number].cls
    if current.labelled is not None and judge.needs_truth():
        train, test = current.labelled
    if recipe.data.judge == "development" and judge.needs_labels:
        train, test = held_back(train)

    def fresh(seed: int) -> Pretrainer:
        again = recipe.model_copy(update={"seed": seed})
        parts = build(again, mean=view.mean, std=view.std)
        return Pretrainer(parts).to(current.world.device)

    name = f"{number}-{recipe.evaluate[number].name.split(':')[-1]}"
    return Subject(
        pretrainer=current.pretrainer,
        masker=current.parts.masker,
        views=current.parts.views,
        train=train,
        test=test,
        augment=current.augment,
        device=current.world.device,
        seed=recipe.seed,
        batch_size=recipe.train.batch_size,
        fresh=fresh,
        workdir=current.folder.path / "evaluations" / name,
        report=current.console.print,
        detail=current.console.print if current.verbose else silent,
        workers=default_workers(recipe.data, train),
        precision=recipe.train.precision,
    )


def judge_by(current: Run, number: int, evaluator: Evaluator) -> list[Result]:
    """Runs one evaluation.

    Raises: TrainingError that says what to do if memory is full.
    """
    try:
        with current.spends("evaluating"):
            return evaluator.run(subject(current, number))
    except (RuntimeError, MemoryError) as error:
        if not memory_is_full(error):
            raise
        raise TrainingError(
            f"evaluation '{current.recipe.evaluate[number].name}': memory is full "
            f"({in_one_line(error)}). What was trained and evaluated before is kept: the same "
            "command goes on from there, with more memory on another --device (cpu is one), or "
            "once other programs have left this one."
        ) from error
