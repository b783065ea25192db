"""One run from its recipe to its report."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mimkit import words
from mimkit.console import headed, make_console
from mimkit.evaluate.base import Evaluator, Result
from mimkit.evaluate.statistics import summarise
from mimkit.files import sweep
from mimkit.folder import RunFolder
from mimkit.pipeline.adopt import adopt, refuse_another
from mimkit.pipeline.assemble import assemble, needs_targets, prepare
from mimkit.pipeline.current import Run, build_evaluators, judge_by
from mimkit.pipeline.identity import refuse_other_data, splits, write_data
from mimkit.pipeline.ledger import seconds_after, write_ledger
from mimkit.recipe.registry import entries
from mimkit.recipe.schema import Recipe, load
from mimkit.report import ending, of_run
from mimkit.report.findings import Study
from mimkit.report.page import write_report
from mimkit.report.predictions import draw_predictions
from mimkit.report.progress import Display
from mimkit.track.follow import Followers
from mimkit.train.distributed import join
from mimkit.train.encoder_file import save_encoder
from mimkit.train.loop import Hooks, Loop
from mimkit.train.progress import Progress
from mimkit.train.restarts import is_restart
from mimkit.train.signals import listen
from mimkit.train.trial import StepTrial

_SEEDS = 3
"""Runs that the end of a run proposes to compare."""
PATIENT_SECONDS = 12 * 3600
"""A CPU run longer than this is answered with the advice to take a smaller preset."""


def run(
    recipe: Recipe,
    *,
    out: Path = Path("runs"),
    folder: Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    command: str = "",
    verbose: bool = False,
    track: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Pre-trains, evaluates and reports; goes on where an interrupted run stopped.

    Args:
        recipe: a loaded recipe.
        out: the run folder is ``out/<name>/<seed>``, unless ``folder`` says which it is.
        folder: the run folder.
        device: see `mimkit.train.distributed.join`.
        fresh: start anew, removing what an earlier run wrote into the folder.
        command: what the user typed, for the report.
        verbose: also tell what searches find on development images.
        track: trackers to tell of it, as `mimkit.track.base.named` gives them.
        console: where to talk; None makes one.

    Returns: the run folder.
    Raises: MimkitError for everything a user can mend; Interrupted after a signal.
    """
    console = console or make_console()
    path = folder or out / recipe.name / str(recipe.seed)
    with join(device) as world:
        # After a restart, what to go on from is what this very command has made.
        fresh = fresh and not world.any(is_restart())
        if not world.leads:
            console = make_console(quiet=True)
        with RunFolder(path, writable=world.leads, say=console.print) as run_folder:
            if world.leads:
                refuse_another(run_folder, recipe, fresh)
            current = assemble(
                recipe, run_folder, world, console, command, verbose=verbose, fresh=fresh
            )
            recipe = current.recipe
            if world.leads:
                data = splits(current.train, current.test, current.labelled)
                if not fresh:
                    refuse_other_data(run_folder, data)
                recipe = adopt(run_folder, recipe, fresh, console)
                write_data(run_folder.data, data)
            world.wait()
            if not world.leads:  # what was open in the recipe, the leading process has settled
                recipe = load(str(run_folder.recipe))
            prepare(current, recipe)
            with Followers(track, path, current.say_warning) as followers:
                trial, progress = pretrain(current, followers)
                if world.leads:
                    finish(current, trial, progress)
                    followers.finish()
    return path


def pretrain(
    current: Run,
    followers: Followers = Followers((), Path(), print),  # noqa: B008 -- of nobody
) -> tuple[StepTrial | None, Progress]:
    """Trains to the last step, from the last checkpoint if there is one.

    Args:
        current: the run.
        followers: what is told of the log, once it ends where training goes on.

    Returns: what the steps cost in a trial, None if none was left to do, and how far it is.
    """
    recipe, folder, world = current.recipe, current.folder, current.world
    evaluators = build_evaluators(current)

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
        followers.look()

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
                current.say_warning(f"step {step:,}, loss '{term.name}': {text}")

    def evaluate(step: int) -> None:
        due = [n for n, e in enumerate(evaluators) if e.every_steps and step % e.every_steps == 0]
        if not due:
            return
        current.fetch(loop)
        world.lead(lambda: _judge(current, {n: evaluators[n] for n in due}, step))
        write_ledger(current, trial, loop.progress)
        current.release(loop)

    loop = current.loop(Hooks(log, evaluate, current.console.print))
    loop.resume()
    start = loop.progress.step
    if world.leads:
        sweep(folder.path)
        # At step 0 everything is done again, also the evaluations before the first step.
        forgotten = folder.truncate(start or -1)
        current.seconds["repeated"] += seconds_after(start, forgotten)
        followers.start()
    trial = None
    if start < loop.total:
        trial = current.try_out(loop)
        _announce(current, trial, loop)
    write_ledger(current, trial, loop.progress)  # what was spent is known if this is killed
    if not loop.progress.evaluated:  # at step 0, or where memory was full
        evaluate(start)
        loop.progress.evaluated = True
        if start:
            loop.save()
    with (
        listen() as request,
        Display(loop.total, start, current.console) as bar,
    ):
        try:
            loop.run(current.stream(start, loop.total), request)
        finally:  # also when it stops early: what was skipped must be written down
            write_ledger(current, trial, loop.progress)
    current.fetch(loop)
    return trial, loop.progress


def _judge(current: Run, due: Mapping[int, Evaluator], step: int) -> None:
    """Evaluates amid the training, for the log."""
    for number, evaluator in due.items():
        results = judge_by(current, number, evaluator)
        prefix = current.recipe.evaluate[number].name
        current.folder.log(
            step,
            {f"{prefix}/{r.metric}": r.value for r in results if r.init == "pretrained"},
        )


def finish(current: Run, trial: StepTrial | None, progress: Progress) -> None:
    """Keeps the encoder, evaluates, draws, reports."""
    recipe, folder = current.recipe, current.folder
    view = current.parts.views[0]
    encoder, geometry = current.pretrainer.encoder, current.parts.geometry
    save_encoder(folder.path, encoder, recipe.encoder, geometry, view, scale=current.train.scale)
    if needs_targets(recipe):
        draw_predictions(current.pretrainer, current.heldout_batch(12), view, folder.pictures)
    results: list[Result] = []
    for number, evaluator in enumerate(build_evaluators(current)):
        if number:
            write_report(of_run.study(folder))
        current.console.print(headed("evaluate", recipe.evaluate[number].name))
        results += judge_by(current, number, evaluator)
        # Rewritten after each, as the report is: whatever happens later, what is known can be read.
        folder.write_results({"results": [r.record for r in results], **summarise(results)})
        write_ledger(current, trial, progress)
    current.seconds["evaluate"] = current.seconds.pop("evaluating")
    current.say_unread()
    write_ledger(current, trial, progress)
    _end(current, of_run.study(folder), progress)


def _end(current: Run, found: Study, progress: Progress) -> None:
    """Ends with the report, its own answer, a small table, and what to do next."""
    ours = {entry.name for entry in entries("evaluators") if entry.distribution == "mimkit"}
    rows = [one.row for one in found.verdicts if one.row.evaluator in ours]
    # What repeats pre-training a comparison adds by itself; by what does not rank it cannot judge.
    judged = dict.fromkeys(row.evaluator for row in rows if row.ranked and not row.own_task)
    steps = []
    if judged and progress.step:
        said = ["mimkit", "compare", str(current.folder.recipe), "--seeds", str(_SEEDS)]
        command = shlex.join([*said, "--evaluate", ",".join(judged)])
        seconds = _SEEDS * (progress.seconds + current.seconds["evaluate"])
        steps = [ending.Next("whether it holds for other seeds of pre-training", command, seconds)]
    ending.show(current.console, found, write_report(found), steps)


def _announce(current: Run, trial: StepTrial, loop: Loop) -> None:
    left = loop.total - loop.progress.step
    if loop.progress.step:
        current.console.print(f"going on at step {loop.progress.step:,} of {loop.total:,}")
    cost = trial.describe(left, current.recipe.train.batch_size)
    current.console.print(headed("pre-training", cost))
    seconds = left * trial.seconds_per_step
    if seconds > PATIENT_SECONDS and current.world.device.type == "cpu":
        current.console.print(
            f"This recipe is made for a GPU; here it needs {words.duration(seconds)}. "
            "For a quick look add --preset demo.",
            style="yellow",
        )
