"""What trains nothing: list, check, bench."""

import json
from typing import Annotated

import typer

from mimkit.cli.arguments import DataOption, DeviceOption, PresetOption, SetOption
from mimkit.console import make_console


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
    from mimkit.recipe.describe import listing

    if schema:
        from mimkit.recipe.describe.json_schema import json_schema

        print(json.dumps(json_schema(), indent=1))  # noqa: T201 -- to be redirected to a file
    elif kind is None:
        listing.show_all(make_console())
    elif kind in ("data", "augment", "train"):
        from mimkit.recipe.describe import details

        details.show_section(kind, make_console())
    elif name is None:
        listing.show_kind(kind, make_console())
    else:
        from mimkit.recipe.describe import details

        details.show(kind, name, make_console())


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
    from mimkit.recipe import registry
    from mimkit.recipe.describe import summary

    if registry.is_distribution(what):
        from mimkit.conformance.table import check_distribution

        check_distribution(what, make_console())
    else:
        summary.check(what, preset, settings or [], make_console())


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
