"""One run: run, demo."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimkit.cli.arguments import (
    DataOption,
    DeviceOption,
    LabelsOption,
    PresetOption,
    RunnableArgument,
    SetOption,
    TrackOption,
)
from mimkit.console import make_console
from mimkit.train.signals import Interrupted

if TYPE_CHECKING:
    from mimkit.recipe.schema import Recipe


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
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN|FILE|timm:ID",
            help="Begin with the encoder of a run, of a file, or public weights of timm.",
        ),
    ] = None,
    extend: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="STEPS", help="Go on with a finished run, to so many steps in all."
        ),
    ] = None,
    track: TrackOption = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also what searches find on development images."),
    ] = False,
) -> None:
    """Pre-train, evaluate, report; an interrupted run goes on where it stopped."""
    from mimkit import ownership
    from mimkit.recipe.schema import load
    from mimkit.track.base import named
    from mimkit.train.distributed import torchrun

    trackers = named(track or [])
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
        overrides=[*(settings or []), *started_from(start)],
        seed=seed,
        data_path=data,
    )
    if extend is not None:
        from mimkit.pipeline.extending import extended_run

        chosen = extended_run(Path(recipe) if folder is None else folder, chosen, extend)
    if chosen.train.processes > 1 and "RANK" not in os.environ:
        under = torchrun(chosen.train.processes, sys.argv[1:])
        os.execv(under[0], under)  # becomes torchrun, so that signals reach it
    if folder is None and held.is_file():
        lies = out / chosen.name / str(chosen.seed)
        make_console().print(f"{held}: read as a recipe; its run lies in {lies}", soft_wrap=True)
    again = shlex.join(word for word in ["mimkit", *sys.argv[1:]] if word != "--fresh")
    options = {"out": out, "folder": folder, "device": device, "fresh": fresh}
    _start(chosen, again, verbose=verbose, track=trackers, **options)


def started_from(source: str | None) -> list[str]:
    """Writes ``--from`` as a setting of the recipe."""
    return [] if source is None else [f"train.start_from={json.dumps(source)}"]


def _start(chosen: "Recipe", again: str, **options: Any) -> None:
    """Runs a recipe; ``again`` is the command that goes on if it is interrupted."""
    from mimkit.pipeline.run import run

    try:
        run(chosen, command=shlex.join(["mimkit", *sys.argv[1:]]), **options)
    except Interrupted as error:
        make_console(stderr=True).print(f"{error}. To go on: {again}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from error


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
