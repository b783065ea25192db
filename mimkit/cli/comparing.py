"""Many runs: compare."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.arguments import (
    DataOption,
    DeviceOption,
    LabelsOption,
    PresetOption,
    SetOption,
    TrackOption,
)
from mimkit.console import make_console
from mimkit.study.server import serve
from mimkit.train.signals import Interrupted


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(metavar="METHOD...", help="m of a recipe m_DATASET, or a recipe."),
    ],
    *,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="A registered name, a folder (of tar shards too), a Hugging Face id, or s3://, "
            "gs://, hf://datasets/ or https://.",
        ),
    ] = None,
    labels: LabelsOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|FILE|timm:ID", help="Also judge these weights, alike; may be repeated."
        ),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="RUN|FILE|timm:ID",
            help="Also run each method beginning with these weights; may be repeated.",
        ),
    ] = None,
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
    tune: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Trials of each method, a tenth of the budget each; 0, or 2 to 9.",
        ),
    ] = 0,
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
        str, typer.Option(metavar="NAME", help="Where runs start. See: mimkit list launchers")
    ] = "local",
    launcher_set: Annotated[
        list[str] | None,
        typer.Option(
            *("--launcher-set", "--slurm"),
            metavar="KEY=VALUE",
            help="For the launcher: partition=gpu.",
        ),
    ] = None,
    track: TrackOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: comparisons/METHODS-DATASET."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few steps, plan; train and write nothing.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="GPUS",
            help="With --dry-run: estimate for other GPUs, '8x8 h100' (machines x GPUs).",
        ),
    ] = None,
) -> None:
    """Compare methods at an equal budget; an interrupted comparison goes on where it stopped."""
    if dry_run or within or preset == "auto":
        serve()  # processes that measure, which have imported all by the time that this one has
    from mimkit import ownership
    from mimkit.launch.base import make
    from mimkit.launch.devices import default_jobs
    from mimkit.study.budget import parse_budget, parse_within
    from mimkit.study.conduct import conduct, foretell, outline
    from mimkit.study.folder import default_folder
    from mimkit.study.gpus import fleet_of
    from mimkit.study.question import Asked, Question
    from mimkit.track.base import named

    fleet = fleet_of(on, dry_run=dry_run)
    trackers = named(track or [])
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
        tune=tune,
        against=tuple(against or ()),
        start_from=tuple(start or ()),
    )
    if fleet is not None:
        foretell(question, fleet)
        return
    if launcher != "local":
        ownership.claim(folder, "comparison")  # a launcher makes files of its own in it
    chosen = make(launcher, folder / launcher, launcher_set or [])
    try:
        if dry_run:
            outline(question, folder, chosen)
        else:
            conduct(question, folder, chosen, track=trackers)
    except Interrupted as error:
        make_console(stderr=True).print(f"{error}. To go on: {command}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
