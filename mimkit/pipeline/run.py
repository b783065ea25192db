"""One run from its recipe to its report."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from mimkit.data import cache
from mimkit.data.batches import Batches, default_workers, stream
from mimkit.data.sources import Source, open_labelled, open_source
from mimkit.data.views import Augment, render
from mimkit.errors import DataError
from mimkit.evaluate.base import Evaluator, Result, Subject
from mimkit.evaluate.fractions import labels_in
from mimkit.evaluate.statistics import summarise
from mimkit.files import write_text
from mimkit.parts.records import Batch, Preparation
from mimkit.pipeline.ledger import ledger
from mimkit.pipeline.pictures import draw_predictions, draw_preparation
from mimkit.recipe.build import Parts, build, construct
from mimkit.recipe.schema import Recipe, load, resolved
from mimkit.recipe.settle import settle, settle_as
from mimkit.report.folder import RunFolder
from mimkit.report.page import write_report
from mimkit.report.progress import Progress
from mimkit.train.distributed import World, join
from mimkit.train.encoder_file import save_encoder
from mimkit.train.loop import Hooks, Loop
from mimkit.train.loop import Progress as TrainingProgress
from mimkit.train.signals import listen
from mimkit.train.step import Pretrainer
from mimkit.train.trial import Trial, choose_forward, duration

PATIENT_SECONDS = 12 * 3600
"""A CPU run longer than this is answered with the advice to take a smaller preset."""


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


def run(
    recipe: Recipe,
    *,
    out: Path = Path("runs"),
    folder: Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    command: str = "",
    console: Console | None = None,
) -> Path:
    """Pre-trains, evaluates and reports; goes on where an interrupted run stopped.

    Args:
        recipe: a loaded recipe.
        out: the run folder is ``out/<name>/<seed>``, unless ``folder`` says which it is.
        folder: the run folder.
        device: see `mimkit.train.distributed.join`.
        fresh: start anew, removing what the folder held.
        command: what the user typed, for the report.
        console: where to talk; None makes one.

    Returns: the run folder.
    Raises: MimkitError for everything a user can mend; Interrupted after a signal.
    """
    console = console or Console()
    path = folder or out / recipe.name / str(recipe.seed)
    with join(device) as world:
        if not world.leads:
            console = Console(quiet=True)
        with RunFolder(path, writable=world.leads, say=console.print) as run_folder:
            if world.leads:
                recipe = _adopt(run_folder, recipe, fresh, console)
            world.wait()
            if not world.leads:  # what was open in the recipe, the leading process has settled
                recipe = load(str(run_folder.recipe))
            current = open_run(recipe, run_folder, world, console, command)
            trial, progress = pretrain(current)
            if world.leads:
                finish(current, trial, progress)
    return path


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
    prepared = _prepare(parts, train, world, console) if _needs_targets(recipe) else {}
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


def _needs_targets(recipe: Recipe) -> bool:
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


def pretrain(current: Run) -> tuple[Trial | None, TrainingProgress]:
    """Trains to the last step, from the last checkpoint if there is one.

    Returns: what the steps cost in a trial, None if none was left to do, and how far it is.
    """
    recipe, folder, world = current.recipe, current.folder, current.world
    batches = current.batches()
    evaluators = build_evaluators(current)
    for number, evaluator in enumerate(evaluators):
        evaluator.check(subject(current, number))

    def log(step: int, values: Mapping[str, float]) -> None:
        folder.log(step, values)
        rate = recipe.train.batch_size / (values["time/step_ms"] / 1000)
        metrics = {
            name.removeprefix("metric/"): value
            for name, value in values.items()
            if name.startswith("metric/")
        }
        bar.update(step, rate, values["loss/total"], metrics)
        warn(step, metrics)

    warned: set[str] = set()

    def warn(step: int, metrics: Mapping[str, float]) -> None:
        for term in current.pretrainer.terms:
            own = {
                name.removeprefix(f"{term.name}/"): value
                for name, value in metrics.items()
                if name.startswith(f"{term.name}/")
            }
            text = term.loss.warning(own)
            if text is not None and term.name not in warned:
                warned.add(term.name)
                current.console.print(f"[yellow]step {step:,}, loss '{term.name}': {text}[/]")

    def evaluate(step: int) -> None:
        due = [n for n, e in enumerate(evaluators) if e.every_steps and step % e.every_steps == 0]
        for number in due:
            if world.leads:
                results = evaluators[number].run(subject(current, number))
                prefix = recipe.evaluate[number].name
                folder.log(
                    step,
                    {f"{prefix}/{r.metric}": r.value for r in results if r.init == "pretrained"},
                )
        if due:
            world.wait()

    loop = Loop(
        current.pretrainer,
        train=recipe.train,
        num_images=len(current.train),
        seed=recipe.seed,
        world=world,
        folder=folder.checkpoints,
        hooks=Hooks(log, evaluate, current.console.print),
    )
    loop.resume()
    start = loop.progress.step
    if world.leads:
        folder.truncate(start)
    trial = None
    if start < loop.total:
        loop.forward, trial = choose_forward(
            current.pretrainer,
            world.wrap(current.pretrainer),
            batches[0].to(world.device),
            recipe.train,
        )
        _announce(current, trial, loop)
    if start == 0:
        evaluate(0)
    workers = default_workers(recipe.data, current.train)
    with (
        listen() as request,
        Progress(loop.total, start, current.console) as bar,
    ):
        try:
            loop.run(
                stream(batches, start, loop.total, workers=workers, device=world.device), request
            )
        finally:  # also when it stops early: what was skipped must be written down
            _write_ledger(current, trial, loop.progress)
    return trial, loop.progress


def finish(current: Run, trial: Trial | None, progress: TrainingProgress) -> None:
    """Keeps the encoder, evaluates, draws, reports."""
    recipe, folder = current.recipe, current.folder
    view = current.parts.views[0]
    save_encoder(
        folder.path, current.pretrainer.encoder, recipe.encoder, current.parts.geometry, view
    )
    if _needs_targets(recipe):
        draw_predictions(current.pretrainer, current.heldout_batch(12), view, folder.pictures)
    start = time.perf_counter()
    results: list[Result] = []
    for number, evaluator in enumerate(build_evaluators(current)):
        current.console.print(f"[bold]evaluate[/] {recipe.evaluate[number].name}")
        results += evaluator.run(subject(current, number))
        # Rewritten after each: whatever happens later, what is known can be read.
        folder.write_results({"results": [asdict(r) for r in results], **summarise(results)})
        write_report(folder)
    current.seconds["evaluate"] = time.perf_counter() - start
    _write_ledger(current, trial, progress)
    current.console.print(f"[bold]report[/] {write_report(folder)}")


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


def _adopt(folder: RunFolder, recipe: Recipe, fresh: bool, console: Console) -> Recipe:
    """Makes the run folder this recipe's, or refuses one that belongs to another.

    Returns: the recipe with everything settled.
    """
    if fresh:
        folder.clear()
    settled = settle(recipe, console.print) if _needs_targets(recipe) else recipe
    if not folder.recipe.is_file():
        write_text(folder.recipe, resolved(settled))
        return settled
    held = load(str(folder.recipe))
    if recipe.same_as(held):  # an import leaves open what its first run settles
        write_text(folder.recipe, resolved(settled))
        return settled
    settled = settle_as(recipe, settled, held)
    if not settled.same_as(held):
        raise DataError(
            f"{folder.path}: this folder holds a run of another recipe than the one asked for "
            f"(its own is {folder.recipe}). Choose another folder with --out, or start anew with "
            "--fresh, which removes that run."
        )
    return settled


def _write_ledger(current: Run, trial: Trial | None, progress: TrainingProgress) -> None:
    if not current.world.leads:
        return
    current.folder.write_ledger(
        ledger(
            command=current.command,
            pretrainer=current.pretrainer,
            geometry=current.parts.geometry,
            training=current.train,
            test=current.test,
            labelled=current.labelled,
            train=current.recipe.train,
            device=current.world.device,
            trial=trial,
            earlier=current.folder.read_ledger(),
            progress=progress,
            seconds={**current.seconds, "train": progress.seconds},
            prepared=current.prepared,
        )
    )


def _announce(current: Run, trial: Trial, loop: Loop) -> None:
    left = loop.total - loop.progress.step
    if loop.progress.step:
        current.console.print(f"going on at step {loop.progress.step:,} of {loop.total:,}")
    cost = trial.describe(left, current.recipe.train.batch_size)
    current.console.print(f"[bold]pre-training[/] {cost}")
    seconds = left * trial.seconds_per_step
    if seconds > PATIENT_SECONDS and current.world.device.type == "cpu":
        current.console.print(
            f"[yellow]This recipe is made for a GPU; here it needs {duration(seconds)}. "
            "For a quick look add --preset demo.[/]"
        )
