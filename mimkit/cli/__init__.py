"""The command line. What a command needs is imported when it runs, so that help answers at once.

Exit codes: 0 done, 1 it failed, 2 the user can mend it, 75 another process of the run has ended.
"""

from typing import Final

import typer

from mimkit.cli import comparing, exchanging, judging, looking, running
from mimkit.cli.program import make_program

app: Final = make_program()
# In this order help lists them.
app.command("list")(looking.list_)
app.command()(looking.check)
app.command()(running.run)
app.command()(running.demo)
app.command()(looking.bench)
app.command()(comparing.compare)
app.command()(judging.evaluate)
app.command("import")(exchanging.import_)
app.command()(exchanging.export)
app.command()(exchanging.push)
app.command()(exchanging.pack)
plugin: Final = typer.Typer(no_args_is_help=True, help="Write a plugin.")
plugin.command()(exchanging.new)
app.add_typer(plugin, name="plugin")


def main() -> None:
    """Runs the command line."""
    app()
