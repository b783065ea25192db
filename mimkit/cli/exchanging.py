"""What comes from elsewhere and goes there: import, export, pack, plugin new."""

from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.arguments import DataOption, LabelsOption, PresetOption, SetOption
from mimkit.console import headed, make_console


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


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    *,
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="See: mimkit list exporters")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Default: RUN/FORMAT, with its ending.")
    ] = None,
) -> None:
    """Write the encoder of a run for use elsewhere, in one of several formats."""
    from mimkit.pipeline.exporting import export_run

    export_run(run, format_, out, console=make_console())


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    *,
    to: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Where it goes on the Hub.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write this folder, upload nothing.")
    ] = None,
    license_: Annotated[
        str, typer.Option("--license", help="Of the weights, in the Hub's words: mit, cc-by-4.0.")
    ] = "unknown",
    private: Annotated[bool, typer.Option("--private", help="For its owners' eyes only.")] = False,
) -> None:
    """Put the encoder of a run on the Hugging Face Hub, with a card written from its results."""
    from mimkit.pipeline.pushing import push_run

    push_run(run, to, out, license_=license_, private=private, console=make_console())


def pack(
    data_set: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Or anything else that data.name may be.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="SHARDS", help="The folder of shards to make.")],
    data: DataOption = None,
    labels: LabelsOption = None,
    shard_mb: Annotated[
        int, typer.Option(min=1, max=100_000, help="Size of a shard, in units of 10^6 bytes.")
    ] = 128,
) -> None:
    """Pack images, labels and splits into tar shards; what was interrupted goes on."""
    from mimkit.data.packing import pack as write

    write(data_set, out, path=data, labels=labels, shard_bytes=shard_mb * 10**6)


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
