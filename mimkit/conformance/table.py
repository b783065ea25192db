"""``mimkit check DISTRIBUTION``: the verdicts as a table."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimkit.conformance.examine import Verdict, entries_of, examine
from mimkit.errors import PluginError
from mimkit.recipe.listing import plain_table
from mimkit.recipe.registry import KINDS

_STYLES = {"passed": "green", "failed": "red", "not applicable": "dim", "not run": "yellow"}


def check_distribution(distribution: str, console: Console) -> None:
    """Makes all checks and prints what failed, with the reason and what to do.

    Raises: PluginError if the distribution offers nothing, or something failed.
    """
    num_parts = len(entries_of(distribution))
    verdicts: list[Verdict] = []
    with console.status(Text()) as status:
        for verdict in examine(distribution):
            verdicts.append(verdict)
            status.update(Text(f"{_name(verdict)}: {verdict.check.name}"))
    console.print(_table(verdicts))
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in _STYLES}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    console.print(f"{distribution}: {num_parts} registered, {told}")
    for verdict in failed:
        console.print(f"\n{_name(verdict)}: {verdict.check.name}", style="bold red")
        console.print(verdict.reason, soft_wrap=True)
        console.print(f"To do: {verdict.advice}", soft_wrap=True)
        harm = " ".join(verdict.check.harm.split())
        console.print(f"Else: {harm}", soft_wrap=True)
    if failed:
        raise PluginError(f"{distribution} fails {len(failed)} of {len(verdicts)} checks.")
    console.print("ok", style="green")


def _table(verdicts: list[Verdict]) -> Table:
    table = plain_table("part", "check", "verdict", "time", "reason")
    last = ""
    for verdict in verdicts:
        name = _name(verdict)
        style = _STYLES[verdict.outcome]
        table.add_row(
            "" if name == last else name,
            verdict.check.name,
            Text(verdict.outcome, style),
            f"{verdict.seconds:.1f} s",
            "" if verdict.outcome == "failed" else verdict.reason,
        )
        last = name
    return table


def _name(verdict: Verdict) -> str:
    return f"{KINDS[verdict.entry.kind].singular} {verdict.entry.name}"
