"""``mimkit check DISTRIBUTION``: the verdicts as a table."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimkit.conformance.examine import Verdict, entries_of, examine
from mimkit.errors import PluginError
from mimkit.recipe.describe.listing import plain_table
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
    """Lays the verdicts out in 80 columns: a part's name above its checks, reasons beside them."""
    table = plain_table("check", "time", "verdict")
    table.columns[1].no_wrap = True
    last = ""
    for verdict in verdicts:
        if (name := _name(verdict)) != last:
            table.add_row(Text(name, "bold"))
        last = name
        told = Text(verdict.outcome, _STYLES[verdict.outcome])
        if verdict.reason and verdict.outcome != "failed":
            told.append(f": {verdict.reason}")
        table.add_row(f"  {verdict.check.name}", f"{verdict.seconds:.1f} s", told)
    return table


def _name(verdict: Verdict) -> str:
    return f"{KINDS[verdict.entry.kind].singular} {verdict.entry.name}"
