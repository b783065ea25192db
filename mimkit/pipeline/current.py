"""What one run has in hand: data, parts, and the folder in which it is written down."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from rich.console import Console

from mimkit.data import cache
from mimkit.data.batches import Batches, default_workers, stream
from mimkit.data.sources import Source, open_labelled, open_source
from mimkit.data.views import Augment, render
from mimkit.evaluate.base import Evaluator, Subject
from mimkit.evaluate.fractions import labels_in
from mimkit.parts.records import Batch, Preparation
from mimkit.pipeline.pictures import draw_preparation
from mimkit.recipe.build import Parts, build, construct
from mimkit.recipe.schema import Recipe
from mimkit.report.folder import RunFolder
from mimkit.train.distributed import World
from mimkit.train.loop import Hooks, Loop
from mimkit.train.step import Pretrainer
from mimkit.train.trial import Trial, try_out


@dataclass
class Run:
    """Everything one run has in hand; built by `open_run`.

    Args:
        recipe: what to do.
        folder: where it is written down.
        train: training split. test: held-out split.
        parts: as built from the recipe.
        pretrainer: the parts as one module, on the device.
        world: this process among others.
        console: where people look.
        command: what the user typed.
        seconds: time spent, by phase.
        prepared: what each target did before training, by its name.
        labelled: both splits of ``data.labelled``, for evaluators that need labels; None where
            the recipe names none.
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

    @property
    def augment(self) -> Augment:
        """The recipe's augmentation."""
        return Augment(**self.recipe.augment.model_dump())

    def heldout_batch(self, num_images: int) -> Batch:
        """A few whole held-out images, always the same, with masks that follow from the seed."""
        index = torch.arange(min(num_images, len(self.test)))
        generator = torch.Generator().manual_seed(self.recipe.seed)
        views = {
            view.name: render(self.test, index, view, None, self.augment)
            for view in self.parts.views
        }
        mask = self.parts.masker.sample(len(index), generator)
        return Batch(views, mask, None, index).to(self.world.device)

    def batches(self) -> Batches:
        """This process's share of the training batches."""
        return Batches(
            self.train,
            views=self.parts.views,
            augment=self.augment,
            masker=self.parts.masker,
            batch_size=self.recipe.train.batch_size,
            seed=self.recipe.seed,
            rank=self.world.rank,
            world_size=self.world.size,
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
        return Loop(
            self.pretrainer,
            train=self.recipe.train,
            num_images=len(self.train),
            seed=self.recipe.seed,
            world=self.world,
            folder=self.folder.checkpoints,
            hooks=hooks,
        )

    def try_out(self, loop: Loop) -> Trial:
        """Measures the next step of pre-training, and decides how it will be computed."""
        loop.forward = self.world.wrap(self.pretrainer)
        return try_out(loop, self.stream, workers=self.workers)


def open_run(
    recipe: Recipe, folder: RunFolder, world: World, console: Console, command: str = ""
) -> Run:
    """Opens the data, builds the parts, lets the targets prepare themselves."""
    for note in recipe.notes:
        console.print(note)
    if not world.leads:
        world.wait()  # the leading process looks at a new data set, the others read what it found
    train = open_source(recipe.data, "train")
    test = open_source(recipe.data, "test")
    labelled = open_labelled(recipe.data)
    if world.leads:
        world.wait()
    for source in (train, test, *(labelled or ())):
        console.print(source.describe())
    for table in recipe.evaluate:  # told now, for targets may take hours to prepare
        if table.cls.needs_labels:
            labels_in(*(labelled or (train, test)), table.name)
    mean, std = recipe.data.mean or train.mean, recipe.data.std or train.std
    parts = build(recipe, mean=mean, std=std)
    start = time.perf_counter()
    prepared = _prepare(parts, train, world, console) if needs_targets(recipe) else {}
    seconds = {"prepare": time.perf_counter() - start}
    pretrainer = Pretrainer(parts).to(world.device)
    if folder.writable:
        for name, preparation in prepared.items():
            draw_preparation(preparation, folder.pictures / f"prepared_{name}.png")
    if world.device.type == "cuda":
        train, test = train.to(world.device), test.to(world.device)
        if labelled is not None:
            labelled = labelled[0].to(world.device), labelled[1].to(world.device)
    return Run(
        recipe,
        folder,
        train,
        test,
        parts,
        pretrainer,
        world,
        console,
        command,
        seconds,
        prepared,
        labelled,
    )


def needs_targets(recipe: Recipe) -> bool:
    """Whether a run ever asks its targets: one that only judges features has no use for them."""
    return recipe.train.total_steps != 0 or any(t.cls.needs_targets for t in recipe.evaluate)


def _prepare(parts: Parts, train: Source, world: World, console: Console) -> dict[str, Preparation]:
    """Lets every target prepare itself: first in the leading process, which fills the cache."""
    found = {}
    for name, target in parts.targets.items():
        for leading in (True, False):
            if world.leads is leading:
                done = target.prepare(
                    train, cache.folder() / "prepared", device=world.device, say=console.print
                )
                if done is not None:
                    found[name] = done
            world.wait()
    return found


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
    if current.labelled is not None and recipe.evaluate[number].cls.needs_labels:
        train, test = current.labelled

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
        workers=default_workers(recipe.data, train),
    )
