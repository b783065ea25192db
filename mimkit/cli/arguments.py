"""Arguments and options that several commands have."""

from typing import Annotated

import typer

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
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME,...",
        help="Also tell a tracker, such as tensorboard. See: mimkit list trackers",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; default: cuda where there is one.")
]
