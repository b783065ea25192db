"""The command line. What a command needs is imported when it runs, so that help answers at once.

Exit codes: 0 done, 1 it failed, 2 the user can mend it.
"""

import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from mimkit.errors import MimkitError


class _Program(TyperGroup):
    """Turns errors that the user can mend into one message and exit code 2."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except MimkitError as error:
            if ctx.params["debug"]:
                traceback.print_exception(error)
            console = Console(stderr=True)
            console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Program,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A TOML file, or a registered recipe.")
]
RunnableArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A TOML file, a registered recipe, or the folder of a run to go on."
    ),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="One of the recipe's presets.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key: train.total_steps=40."),
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="PATH", help="Where to look for the data first.")
]
ExportFormat = Literal["timm", "safetensors"]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; default: cuda where there is one.")
]


@app.callback()
def mimkit(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Masked image modeling from exchangeable parts, compared honestly."""


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="maskers, encoders, targets, heads, losses, ...")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One of them: its options.")] = None,
) -> None:
    """List parts, data sets and recipes; with a name: its options, source and file."""
    from mimkit.recipe import listing

    if kind is None:
        listing.show_all(Console())
    elif name is None:
        listing.show_kind(kind, Console())
    else:
        from mimkit.recipe import details

        details.show(kind, name, Console())


@app.command()
def check(recipe: RecipeArgument, preset: PresetOption = None, settings: SetOption = None) -> None:
    """Check a recipe without running it: every problem at once, or a summary and 'ok'."""
    from mimkit.recipe import summary

    summary.check(recipe, preset, settings or [], Console())


@app.command()
def run(
    recipe: RunnableArgument,
    *,
    preset: PresetOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; default: 0.")] = None,
    device: DeviceOption = None,
    out: Annotated[Path, typer.Option(help="The run lies in OUT/<name>/<seed>.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, removing that run.")] = False,
) -> None:
    """Pre-train, evaluate, report; an interrupted run goes on where it stopped."""
    from mimkit.pipeline import run as pipeline
    from mimkit.recipe.schema import load
    from mimkit.train.signals import Interrupted

    held = Path(recipe) / "recipe.toml"
    folder = held.parent if held.is_file() else None
    reference = str(held) if folder else recipe
    chosen = load(reference, preset=preset, overrides=settings or [], seed=seed, data_path=data)
    command = shlex.join(["mimkit", *sys.argv[1:]])
    try:
        pipeline.run(chosen, out=out, folder=folder, device=device, fresh=fresh, command=command)
    except Interrupted as error:
        Console(stderr=True).print(f"{error}. To go on: {command.replace(' --fresh', '')}")
        raise typer.Exit(error.exit_code) from error


@app.command()
def bench(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="One or several.")],
    *,
    preset: PresetOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    steps: Annotated[int, typer.Option(help="Steps to measure.")] = 10,
) -> None:
    """Measure where the time of a training step goes, and its memory."""
    from mimkit.bench import bench as measure
    from mimkit.recipe.schema import load

    console = Console()
    for reference in recipes:
        chosen = load(reference, preset=preset, overrides=settings or [], data_path=data)
        console.print(measure(chosen, device=device, steps=steps, console=console).table())


@app.command(name="import")
def import_(
    importer: Annotated[str, typer.Argument(metavar="FORMAT", help="See: mimkit list importers")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other project's checkpoint.")],
    *,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    recipe: Annotated[
        str | None, typer.Option(help="Gives data and training; default: the importer's choice.")
    ] = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    data: DataOption = None,
) -> None:
    """Make a run of another project's checkpoint, to go on with, evaluate or export."""
    from mimkit.pipeline.importing import import_run

    import_run(
        importer,
        file,
        out,
        recipe=recipe,
        preset=preset,
        overrides=settings or [],
        data_path=data,
        console=Console(),
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    *,
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="timm's own state dict, or mimkit's.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: RUN/FORMAT.safetensors.")
    ] = None,
) -> None:
    """Write the encoder of a run for use elsewhere."""
    from mimkit.pipeline.exporting import export_run

    export_run(run, format_, out, console=Console())


def main() -> None:
    """Runs the command line."""
    app()
