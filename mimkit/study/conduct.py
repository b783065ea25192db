"""One comparison from the question to the report."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from mimkit.console import make_console
from mimkit.files import write_text
from mimkit.launch.base import Launcher
from mimkit.report.ending import show
from mimkit.report.findings import Study
from mimkit.report.page import write_report
from mimkit.report.same_pictures import draw
from mimkit.report.tables import markdown, write_csv, write_json
from mimkit.study import ending, forecast, within
from mimkit.study.budget import LONG_SECONDS
from mimkit.study.execute import execute
from mimkit.study.folder import claim, is_finished
from mimkit.study.gather import gather
from mimkit.study.gauge import Gauge, Thorough, rehearsing
from mimkit.study.gpus import Fleet
from mimkit.study.outlook import seconds_of, table, warnings
from mimkit.study.plan import make_plan
from mimkit.study.question import Question
from mimkit.study.records import Plan
from mimkit.study.refusals import holds_work
from mimkit.study.stage import WHOLE
from mimkit.study.trials import choose, plan_trials, runs_after, tell_trials, tuning_of
from mimkit.study.tuning import refuse_number


def conduct(
    question: Question,
    folder: Path,
    launcher: Launcher,
    *,
    track: Sequence[str] = (),
    console: Console | None = None,
) -> Study:
    """Plans, runs what is not finished yet, and reports; the same call goes on after a kill.

    Args:
        question: what is compared.
        folder: of the comparison.
        launcher: starts the runs.
        track: trackers that each run tells of itself, as `mimkit.track.base.named` gives them.
        console: where to talk; None makes one.

    Raises: MimkitError for everything a user can mend; Interrupted after a signal.
    """
    console = console or make_console()
    with claim(folder):
        question = _timed(question, folder, console)
        gauge = Thorough(folder, question.device, question.jobs, console)
        run = partial(
            execute,
            jobs=question.jobs,
            launcher=launcher,
            device=question.device,
            track=track,
            console=console,
        )
        stage = WHOLE
        if question.tune:
            trials = plan_trials(question, folder, console, gauge)
            tell_trials(trials, console)
            run(trials.open, trials.folder)
            choose(trials)
            stage = runs_after(trials)
        plan = make_plan(question, folder, console, gauge, stage)
        _show(plan, question, folder, launcher, console)
        run(plan, folder)
        study = gather(plan, folder)
        if question.tune:
            study = replace(study, tuning=tuning_of(folder, study.labels, question.tune))
        draw(study, console=console)
        write_csv(study, folder / "results.csv")
        write_json(study, asdict(plan), folder / "results.json")
        write_text(folder / "results.md", markdown(study))
        page = write_report(study)
    show(console, study, page, list(ending.steps(study, question.jobs)))
    return study


def outline(
    question: Question, folder: Path, launcher: Launcher, *, console: Console | None = None
) -> Plan:
    """Plans within seconds and shows the plan; trains and downloads nothing.

    Nothing is written but what is kept of data that were never looked at.

    Args:
        question: what would be compared.
        folder: where the comparison would lie; what lies there already is part of the plan.
        launcher: would start the runs.
        console: where to talk; None makes one.

    Raises: MimkitError for everything a user can mend.
    """
    console = console or make_console()
    question = _timed(question, folder, console)
    with rehearsing(question.device, question.jobs) as gauge:
        plan = _sketch(question, folder, console, gauge)
    _show(plan, question, folder, launcher, console)
    return plan


def foretell(question: Question, fleet: Fleet, *, console: Console | None = None) -> Plan:
    """Plans for GPUs that are not here, and shows the plan and what bounds it; writes nothing.

    Args:
        question: what would be compared; what earlier comparisons measured is left aside.
        fleet: where.
        console: where to talk; None makes one.

    Raises: MimkitError for everything a user can mend.
    """
    console = console or make_console()
    refuse_number(question)
    for line in forecast.assumptions(fleet):
        console.print(line, soft_wrap=True)
    with TemporaryDirectory() as nowhere, forecast.foreseeing(fleet, question.jobs) as gauge:
        folder, alone = Path(nowhere, "comparison"), replace(question, jobs=1)
        if question.within is not None:
            alone = within.chosen(alone, folder, console, gauge)
        plan = _sketch(alone, folder, console, gauge)
    console.print(table(plan, alone.jobs))
    _print_notes(plan, console)
    console.print(forecast.table(plan, gauge.forecasts, fleet))
    for line in forecast.remarks(plan, gauge.forecasts):
        console.print(line, soft_wrap=True)
    if question.tune:
        console.print("GPU-hours are of the runs, without the trials.")
    return plan


def _sketch(question: Question, folder: Path, console: Console, gauge: Gauge) -> Plan:
    """Makes a plan that is only shown, with what its trials would take."""
    stage = WHOLE
    if question.tune:
        trials = plan_trials(question, folder, console, gauge, keep=False)
        tell_trials(trials, console)
        stage = runs_after(trials)
    return make_plan(question, folder, console, gauge, stage, keep=False)


def _timed(question: Question, folder: Path, console: Console) -> Question:
    """Lets the time decide on preset and budget where it is to."""
    refuse_number(question)
    if question.within is None:
        return question
    with rehearsing(question.device, question.jobs) as gauge:
        return within.chosen(question, folder, console, gauge)


def _show(
    plan: Plan, question: Question, folder: Path, launcher: Launcher, console: Console
) -> None:
    finished = [cell for cell in plan.cells if is_finished(cell, folder)]
    console.print(table(plan, question.jobs, finished))
    _print_notes(plan, console)
    jobs_here = question.jobs if launcher.shares_machine else 0
    for warning in warnings(plan, jobs_here, folder):
        console.print(warning, style="yellow")
    long = (
        question.within is None
        and not question.tune
        and seconds_of(plan, question.jobs) > LONG_SECONDS
    )
    if long and not holds_work(folder):  # else its runs are what they are
        with rehearsing(question.device, question.jobs) as gauge:
            for line in within.suggestions(question, plan, gauge):
                console.print(line)


def _print_notes(plan: Plan, console: Console) -> None:
    for method in plan.methods:
        for note in method.notes:
            console.print(f"  {method.label}: {note}")
