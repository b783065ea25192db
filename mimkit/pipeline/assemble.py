"""Getting a run ready: opens data, builds parts, refuses what cannot be, prepares targets."""

import time

from rich.console import Console

from mimkit.data import cache
from mimkit.data.opening import find, open_labelled, open_sources
from mimkit.data.source import Source, described
from mimkit.errors import RecipeError
from mimkit.evaluate.fractions import labels_in
from mimkit.evaluate.truth import masks_in
from mimkit.folder import RunFolder
from mimkit.parts.target import Preparation
from mimkit.pipeline.current import Run, build_evaluators, subject
from mimkit.pipeline.ledger import seconds_before
from mimkit.pipeline.start.begin import Start, begin
from mimkit.recipe.build import Parts, build
from mimkit.recipe.schema import Recipe, TrainSection
from mimkit.recipe.settle import settle
from mimkit.report.predictions import draw_preparation
from mimkit.train.distributed import World
from mimkit.train.sharding import refuse_unshardable
from mimkit.train.step import Pretrainer


def assemble(
    recipe: Recipe,
    folder: RunFolder,
    world: World,
    console: Console,
    command: str = "",
    *,
    announce: bool = True,
    verbose: bool = False,
    fresh: bool = False,
) -> Run:
    """Opens the data and builds the parts; nothing is prepared yet.

    Whatever can be refused is refused here, before anything that takes long: the recipe need not be
    settled for that.

    Args:
        recipe: what to do.
        folder: where it is written down.
        world: this process among others.
        console: where people look.
        command: what the user typed.
        announce: whether the data are described.
        verbose: whether also the details of evaluations are told.
        fresh: whether what the folder holds of an earlier run will be removed.

    Raises: MimkitError if data, batch size, first weights or an evaluation cannot be had.
    """
    for note in recipe.notes:
        console.print(note)
    _refuse_uneven(recipe.train, world)
    found = world.share(lambda: find(recipe.data))
    if not world.leads:
        world.wait()  # the leading process looks at a new data set, the others read what it found
    train, test = open_sources(recipe.data, found)
    labelled = open_labelled(recipe.data, found)
    if world.leads:
        world.wait()
    if announce:
        _announce(recipe, console, train, test, *(labelled or ()))
    _refuse_untold(recipe, *(labelled or (train, test)))
    if world.device.type == "cuda":
        train, test = train.to(world.device), test.to(world.device)
        if labelled is not None:
            labelled = labelled[0].to(world.device), labelled[1].to(world.device)
    recipe, start = begin(recipe, folder, world, fresh=fresh)
    parts = _build(recipe, train, start)
    if announce and start is not None:
        for line in start.lines(parts.views[0]):
            console.print(line, soft_wrap=True)
    current = Run(
        recipe=recipe,
        folder=folder,
        train=train,
        test=test,
        parts=parts,
        pretrainer=Pretrainer(parts).to(world.device),
        world=world,
        console=console,
        command=command,
        labelled=labelled,
        verbose=verbose,
        start=start,
    )
    if recipe.train.parallel == "fsdp":
        refuse_unshardable(current.pretrainer, recipe.train)
    current.evaluators = build_evaluators(current)
    for number, evaluator in enumerate(current.evaluators):
        evaluator.check(subject(current, number))
    return current


def prepare(current: Run, settled: Recipe, images: Source | None = None) -> None:
    """Lets the targets of the settled recipe prepare themselves, which may take hours.

    Args:
        current: the run.
        settled: its recipe.
        images: that they prepare themselves on; None for those to train on.
    """
    begun = current.start
    if begun is None:  # a run that stood in the way may be gone since
        settled, current.start = begin(settled, current.folder, current.world, fresh=False)
    if current.start is not begun or not settled.same_as(current.recipe):
        current.parts = _build(settled, current.train, current.start)
        current.pretrainer = Pretrainer(current.parts).to(current.world.device)
    current.recipe = settled
    current.seconds = seconds_before(current.folder.read_ledger())
    start = time.perf_counter()
    if needs_targets(settled):
        current.prepared = _prepare(
            current.parts, images or current.train, current.world, current.console
        )
        current.pretrainer.to(current.world.device)
    # What a target made may have been begun by a call that was killed: its own count has that too.
    made = sum(done.seconds for done in current.prepared.values() if not done.cached)
    current.seconds["prepare"] += max(made, time.perf_counter() - start)
    if current.folder.writable:
        for name, preparation in current.prepared.items():
            draw_preparation(preparation, current.folder.pictures / f"prepared_{name}.png")


def open_run(
    recipe: Recipe,
    folder: RunFolder,
    world: World,
    console: Console,
    command: str = "",
    *,
    announce: bool = True,
) -> Run:
    """Does both: what can be refused is refused, then the targets prepare themselves."""
    current = assemble(recipe, folder, world, console, command, announce=announce)
    prepare(current, settle(recipe, console.print))
    return current


def rehearse(current: Run) -> None:
    """Makes a run ready to be measured within seconds, and to nothing else (`Target.rehearse`)."""
    workdir, device = cache.folder() / "prepared", current.world.device
    for name, target in current.parts.targets.items():
        done = target.rehearse(current.train, workdir, device=device)
        if done is not None:
            current.prepared[name] = done
    current.pretrainer.to(device)


def _announce(recipe: Recipe, console: Console, *sources: Source) -> None:
    for line in described(*sources):
        console.print(line)
    if recipe.data.judge == "development":
        console.print(
            "evaluations judge by labels of one training image in ten, which are held back "
            "(data.judge)"
        )


def _refuse_uneven(train: TrainSection, world: World) -> None:
    """Refuses a batch that processes and pieces cannot share out evenly.

    A comparison asks in one process what its runs will do in several.
    """
    processes = world.size if world.size > 1 else train.processes
    accumulate = 1 if train.accumulate == "auto" else train.accumulate
    if train.batch_size % (processes * accumulate):
        pieces = f", each with {accumulate} pieces (accumulate)," * (accumulate > 1)
        raise RecipeError(
            f"[train] batch_size: must be a multiple of the {processes} processes{pieces} but is "
            f"{train.batch_size}."
        )


def _refuse_untold(recipe: Recipe, train: Source, test: Source) -> None:
    """Refuses evaluations by labels or masks that the images do not have."""
    for table in recipe.evaluate:
        if table.cls.needs_labels:
            labels_in(train, test, table.name)
        if table.cls.needs_masks:
            masks_in(train, test, table.name)


def _build(recipe: Recipe, train: Source, start: Start | None) -> Parts:
    mean, std = recipe.data.mean or train.mean, recipe.data.std or train.std
    if start is None:
        return build(recipe, mean=mean, std=std)
    parts = build(recipe, mean=mean, std=std, start=start.encoder)
    start.others(parts)
    return parts


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
