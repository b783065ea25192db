"""What is finished, judged once more: evaluate."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mimkit.cli.arguments import DataOption, DeviceOption, LabelsOption, SetOption


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of finished or imported runs, or folders with such below them.",
        ),
    ],
    *,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="A registered name, a folder, a Hugging Face id, an address (s3://, ...); "
            "default: the run's own.",
        ),
    ] = None,
    labels: LabelsOption = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--evaluate", metavar="NAME,...", help="Default: the evaluations of the run's recipe."
        ),
    ] = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also what searches find on development images."),
    ] = False,
) -> None:
    """Judge finished runs again, on their own or other data; what is known is not repeated."""
    from mimkit.pipeline.judgement import Wish
    from mimkit.study.judging import Judging
    from mimkit.study.judging import evaluate as judge

    judge(
        Judging(
            runs=tuple(runs),
            wish=Wish(dataset, labels, data, settings=tuple(settings or ())),
            names=None if names is None else tuple(names.split(",")),
            device=device,
            command=shlex.join(["mimkit", *sys.argv[1:]]),
            verbose=verbose,
        )
    )
