"""One comparison from the question to the report."""

from pathlib import Path

from rich.console import Console

from mimkit.comparison import ending
from mimkit.comparison.execute import claim, execute
from mimkit.comparison.gather import gather
from mimkit.comparison.launchers import Launcher
from mimkit.comparison.outlook import table, warnings
from mimkit.comparison.pictures import draw
from mimkit.comparison.plan import make_plan
from mimkit.comparison.question import Question
from mimkit.comparison.records import Comparison
from mimkit.comparison.report import write_report
from mimkit.comparison.tables import markdown, write_csv, write_json
from mimkit.console import make_console
from mimkit.files import write_text
from mimkit.report.ending import show


def conduct(
    question: Question,
    folder: Path,
    launcher: Launcher,
    *,
    dry_run: bool = False,
    console: Console | None = None,
) -> Comparison | None:
    """Plans, runs what is not finished yet, and reports; the same call goes on after a kill.

    Args:
        question: what is compared.
        folder: of the comparison.
        launcher: starts the runs.
        dry_run: only plan.
        console: where to talk; None makes one.

    Returns: what was found; None after a dry run.
    Raises: MimkitError for everything a user can mend; Interrupted after a signal.
    """
    console = console or make_console()
    with claim(folder):
        plan = make_plan(question, folder, console)
        console.print(table(plan, question.jobs))
        for method in plan.methods:
            for note in method.notes:
                console.print(f"  {method.label}: {note}")
        jobs_here = question.jobs if launcher.shares_machine else 0
        for warning in warnings(plan, jobs_here, folder):
            console.print(warning, style="yellow")
        if dry_run:
            return None
        execute(
            plan,
            folder,
            jobs=question.jobs,
            launcher=launcher,
            device=question.device,
            console=console,
        )
        draw(plan, folder, console=console)
        comparison = gather(plan, folder)
        write_csv(comparison, folder / "results.csv")
        write_json(comparison, folder / "results.json")
        write_text(folder / "results.md", markdown(comparison))
        page = write_report(comparison)
    lines, steps = ending.lines(comparison), ending.steps(comparison, question.jobs)
    show(console, comparison.answer, list(lines), page, list(steps))
    return comparison
