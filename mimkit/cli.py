"""The command line. What a command needs is imported when it runs, so that help answers at once.

Exit codes: 0 done, 1 it failed, 2 the user can mend it.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from mimkit.comparison.server import serve
from mimkit.console import headed, make_console
from mimkit.errors import mendable
from mimkit.train.signals import Interrupted

if TYPE_CHECKING:
    from mimkit.recipe.schema import Recipe


class _Program(TyperGroup):
    """Turns every error into one message and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            with mendable():
                return super().invoke(ctx)
        except Interrupted as error:  # in what has no more to say of how to go on
            make_console(stderr=True).print(f"{error}. To go on, repeat the same command.")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise
            from mimkit.failure import tell

            raise typer.Exit(tell(error, debug=ctx.params["debug"])) from error


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
        metavar="RECIPE",
        help="A TOML file or a folder with a recipe.toml, a registered recipe, or the folder of a "
        "run to go on.",
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
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="PATH",
        help="Where the data have no labels: a table of files and labels, or labelled images.",
    ),
]
ExportFormat = Literal["timm", "safetensors"]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; default: cuda where there is one.")
]


def _version(asked: bool) -> None:
    if asked:
        from mimkit.recipe import listing

        listing.show_versions(make_console())
        raise typer.Exit


@app.callback()
def mimkit(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Of mimkit, torch and plugins."
        ),
    ] = False,
) -> None:
    """Masked image modeling from exchangeable parts, compared honestly."""


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="maskers, encoders, ..., recipes; or a table: data, augment, train."),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One of them: its options.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="A JSON schema of recipes, for editors.")
    ] = False,
) -> None:
    """List parts, data sets and recipes; with a name: its options, source and file."""
    from mimkit.recipe import listing

    if schema:
        from mimkit.recipe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=1))  # noqa: T201 -- to be redirected to a file
    elif kind is None:
        listing.show_all(make_console())
    elif kind in ("data", "augment", "train"):
        from mimkit.recipe import details

        details.show_section(kind, make_console())
    elif name is None:
        listing.show_kind(kind, make_console())
    else:
        from mimkit.recipe import details

        details.show(kind, name, make_console())


@app.command()
def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|DISTRIBUTION", help="A recipe, or an installed package with parts."
        ),
    ],
    preset: PresetOption = None,
    settings: SetOption = None,
) -> None:
    """Check a recipe without running it, or all parts of a plugin against the contract."""
    from mimkit.recipe import registry, summary

    if registry.is_distribution(what):
        from mimkit.conformance.table import check_distribution

        check_distribution(what, make_console())
    else:
        summary.check(what, preset, settings or [], make_console())


@app.command()
def run(
    recipe: RunnableArgument,
    *,
    preset: PresetOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    labels: LabelsOption = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; default: 0.")] = None,
    device: DeviceOption = None,
    out: Annotated[Path, typer.Option(help="The run lies in OUT/<name>/<seed>.")] = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, removing what that run wrote.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also what searches find on development images."),
    ] = False,
) -> None:
    """Pre-train, evaluate, report; an interrupted run goes on where it stopped."""
    from mimkit import ownership
    from mimkit.recipe.schema import load
    from mimkit.train.distributed import torchrun

    held = Path(recipe) / "recipe.toml"
    folder = held.parent if ownership.kind_of(held.parent) == "run" else None
    reference = str(held) if held.is_file() else recipe
    tables = None
    if labels is not None:
        from mimkit.data.intake.locate import labels_key

        tables = {"data": {labels_key(labels): labels}}
    chosen = load(
        reference,
        preset=preset,
        fixed=tables,
        overrides=settings or [],
        seed=seed,
        data_path=data,
    )
    if chosen.train.processes > 1 and "RANK" not in os.environ:
        under = torchrun(chosen.train.processes, sys.argv[1:])
        os.execv(under[0], under)  # becomes torchrun, so that signals reach it
    if folder is None and held.is_file():
        lies = out / chosen.name / str(chosen.seed)
        make_console().print(f"{held}: read as a recipe; its run lies in {lies}", soft_wrap=True)
    again = shlex.join(word for word in ["mimkit", *sys.argv[1:]] if word != "--fresh")
    options = {"out": out, "folder": folder, "device": device, "fresh": fresh}
    _start(chosen, again, verbose=verbose, **options)


def _start(chosen: "Recipe", again: str, **options: Any) -> None:
    """Runs a recipe; ``again`` is the command that goes on if it is interrupted."""
    from mimkit.pipeline.run import run

    try:
        run(chosen, command=shlex.join(["mimkit", *sys.argv[1:]]), **options)
    except Interrupted as error:
        make_console(stderr=True).print(f"{error}. To go on: {again}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from error


@app.command()
def demo(
    *,
    seed: Annotated[int | None, typer.Option(help="Of everything random; default: 0.")] = None,
    device: DeviceOption = None,
    out: Annotated[Path, typer.Option(help="The run lies in OUT/demo/<seed>.")] = Path("runs"),
) -> None:
    """Run the registered recipe 'demo' anew: minutes on embedded images, ends with a report."""
    from mimkit.recipe.schema import load

    words = ["--seed", str(seed)] * (seed is not None) + ["--device", str(device)] * bool(device)
    again = shlex.join(["mimkit", "run", "demo", *words, "--out", str(out)])
    _start(load("demo", seed=seed), again, out=out, device=device, fresh=True)


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

    console = make_console()
    for reference in recipes:
        chosen = load(reference, preset=preset, overrides=settings or [], data_path=data)
        console.print(measure(chosen, device=device, steps=steps, console=console).table())


@app.command()
def compare(
    methods: Annotated[
        list[str],
        typer.Argument(metavar="METHOD...", help="m of a recipe m_DATASET, or a recipe."),
    ],
    *,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="D", help="A registered name, a folder, a Hugging Face id."),
    ] = None,
    labels: LabelsOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="UNIT=N",
            help="steps=400, images=20k, time=30m or flops=1e17 for each run; default: the "
            "fewest images of these recipes.",
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="30m, 1h, 2d: preset and budget so that all fits; the preset auto means 1h.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 3,
    evaluate: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Default: all that the data allow.")
    ] = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; default: GPUs, else up to 8 cores.")
    ] = None,
    launcher: Annotated[
        Literal["local", "slurm"], typer.Option(help="Where runs are started.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", metavar="KEY=VALUE", help="For Slurm: partition=gpu."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: comparisons/METHODS-DATASET."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few steps, plan; train and write nothing.")
    ] = False,
) -> None:
    """Compare methods at an equal budget; an interrupted comparison goes on where it stopped."""
    if dry_run or within or preset == "auto":
        serve()  # processes that measure, which have imported all by the time that this one has
    from mimkit.comparison.budget import parse_budget, parse_within
    from mimkit.comparison.conduct import conduct, outline
    from mimkit.comparison.launchers import default_jobs, make_launcher
    from mimkit.comparison.methods import Asked, default_folder
    from mimkit.comparison.question import Question

    folder = out or default_folder(methods, dataset)
    command = shlex.join(["mimkit", *sys.argv[1:]])
    question = Question(
        methods=tuple(methods),
        recipes=Asked(dataset, preset, tuple(settings or ()), data, labels),
        budget=None if budget is None else parse_budget(budget),
        seeds=seeds,
        evaluate=None if evaluate is None else tuple(evaluate.split(",")),
        device=device,
        jobs=jobs or default_jobs(device),
        command=command,
        within=parse_within(within, preset),
    )
    chosen = make_launcher(launcher, folder, slurm or [])
    try:
        (outline if dry_run else conduct)(question, folder, chosen)
    except Interrupted as error:
        make_console(stderr=True).print(f"{error}. To go on: {command}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from error


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
        console=make_console(),
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

    export_run(run, format_, out, console=make_console())


plugin = typer.Typer(no_args_is_help=True, help="Write a plugin.")
app.add_typer(plugin, name="plugin")


@plugin.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package: mimkit-mine.")],
    *,
    kinds: Annotated[
        str, typer.Option("--with", metavar="KIND,...", help="masker, encoder, target, head, loss.")
    ] = "masker,target",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to make; default: NAME.")
    ] = None,
) -> None:
    """Write a complete, tested package with one small part of each kind and a recipe."""
    from mimkit.plugin.new import write_plugin

    folder = write_plugin(name, kinds.split(","), out or Path(name))
    commands = f"  pip install -e '{folder}[dev]'\n  pytest {folder}\n  mimkit check {name}"
    make_console().print(headed("wrote", f"{folder}. To use it:\n{commands}"), soft_wrap=True)


def main() -> None:
    """Runs the command line."""
    app()
