"""Tables of what is registered, drawn from metadata alone."""

import platform

import importlib_metadata
from rich.console import Console
from rich.table import Table

from mimkit.recipe.registry import KINDS, Entry, entries


def show_all(console: Console) -> None:
    """Prints everything that is registered."""
    table = plain_table("kind", "name", "from")
    for kind in KINDS:
        for number, entry in enumerate(entries(kind)):
            table.add_row(kind if number == 0 else "", entry.name, origin(entry))
    console.print(table)
    console.print("Options and source of one: mimkit list KIND NAME")


def show_kind(kind: str, console: Console) -> None:
    """Prints what is registered under one kind.

    Raises: PluginError if there is no such kind.
    """
    table = plain_table("name", "from", "file" if kind == "recipes" else "object")
    for entry in entries(kind):
        table.add_row(entry.name, origin(entry), entry.value)
    console.print(table)
    console.print(f"Options and source of one: mimkit list {kind} NAME")


def show_versions(console: Console) -> None:
    """Prints the versions of mimkit, of Python and torch, and of all that offers parts."""
    offering = {entry.distribution: entry.version for kind in KINDS for entry in entries(kind)}
    for name in dict.fromkeys(("mimkit", "torch", *sorted(offering))):
        console.print(f"{name} {offering.get(name) or importlib_metadata.version(name)}")
    console.print(f"python {platform.python_version()}")


def plain_table(*columns: str) -> Table:
    """Makes a table without lines, whose cells fold instead of being cut; names stay whole."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    return table


def origin(entry: Entry) -> str:
    """Returns the distribution that offers an entry, with its version."""
    return f"{entry.distribution} {entry.version}"
