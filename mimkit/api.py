"""The command line as functions, for notebooks and scripts."""

import json
import os
import shlex
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor

from mimkit.errors import RecipeError, mendable
from mimkit.launch.devices import default_jobs
from mimkit.launch.local import LocalLauncher
from mimkit.ownership import kind_of
from mimkit.parts.encoder import Encoder
from mimkit.parts.part import Module
from mimkit.pipeline import run as pipeline
from mimkit.pipeline.extending import extended_run
from mimkit.pipeline.judgement import Wish
from mimkit.recipe.schema import load
from mimkit.report.findings import Study
from mimkit.study.budget import parse_budget, parse_within
from mimkit.study.conduct import conduct
from mimkit.study.folder import default_folder
from mimkit.study.judging import Judging
from mimkit.study.judging import evaluate as judge_runs
from mimkit.study.question import Asked, Question
from mimkit.track.base import named
from mimkit.train import encoder_file


@mendable()
def run(
    recipe: str | PathLike[str],
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
    data: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    out: str | PathLike[str] = "runs",
    fresh: bool = False,
    start_from: str | PathLike[str] | None = None,
    extend: int | None = None,
    track: Sequence[str] = (),
) -> Path:
    """Pre-trains, evaluates and reports, as ``mimkit run`` does, in this process.

    >>> folder = run(tiny, settings=["train.total_steps=4"])
    >>> (folder / "report.html").is_file()
    True

    Args:
        recipe: a TOML file, the name of a registered recipe, or the folder of a run to go on.
        preset: one of the recipe's presets.
        settings: ``"a.b=VALUE"``, as ``--set``.
        data: where to look for the data first.
        seed: of everything random; None for the recipe's own.
        device: "cpu", "cuda", "cuda:1"; None for cuda where there is one.
        out: the run lies in ``out/<name>/<seed>``; an interrupted run there goes on.
        fresh: start anew, removing what that run wrote.
        start_from: a run folder, a file, or ``"timm:ID"``: weights to begin with, as ``--from``.
        extend: go on with the finished run in ``recipe``, its folder, to so many steps in all.
        track: names of trackers to tell of it.

    Returns: the run folder.
    Raises: MimkitError for everything a user can mend; RecipeError if the recipe asks for several
        processes, which only the command line starts.
    """
    trackers = named(track)
    held = Path(recipe) / "recipe.toml"
    folder = Path(recipe) if held.is_file() and kind_of(Path(recipe)) == "run" else None
    start = [] if start_from is None else [f"train.start_from={json.dumps(fspath(start_from))}"]
    chosen = load(
        fspath(recipe if folder is None else held),
        preset=preset,
        overrides=[*settings, *start],
        seed=seed,
        data_path=data,
    )
    if extend is not None:
        chosen = extended_run(Path(recipe), chosen, extend)
    if chosen.train.processes > 1 and "RANK" not in os.environ:
        raise RecipeError(
            f"{fspath(recipe)}, train.processes: must be 1 here, but is {chosen.train.processes}; "
            f"several processes are started by: {_command('run', fspath(recipe))}"
        )
    command = _command(
        "run",
        fspath(recipe),
        preset=preset,
        set=settings,
        data=data,
        seed=seed,
        device=device,
        out=out,
        extend=extend,
        track=track,
        **{"from": start_from},
    )
    return pipeline.run(
        chosen,
        out=Path(out),
        folder=folder,
        device=device,
        fresh=fresh,
        command=command,
        track=trackers,
    )


@mendable()
def compare(
    methods: Sequence[str | PathLike[str]],
    *,
    dataset: str | None = None,
    labels: str | None = None,
    against: Sequence[str | PathLike[str]] = (),
    start_from: Sequence[str | PathLike[str]] = (),
    budget: str | None = None,
    within: str | None = None,
    seeds: int = 3,
    tune: int = 0,
    evaluate: Sequence[str] | None = None,
    preset: str | None = None,
    settings: Sequence[str] = (),
    data: str | None = None,
    device: str | None = None,
    jobs: int | None = None,
    out: str | PathLike[str] | None = None,
    track: Sequence[str] = (),
) -> Study:
    """Compares methods at an equal budget, as ``mimkit compare`` does; runs are own processes.

    >>> found = compare([tiny], budget="steps=4", seeds=1, evaluate=["knn"], jobs=1)
    >>> [outcome.state for outcome in found.outcomes]
    ['finished']
    >>> (found.folder / "report.html").is_file()
    True

    Args:
        methods: m of a recipe m_DATASET, or a recipe.
        dataset: a registered name, a folder, a Hugging Face id, an address; None: each recipe's
            own.
        labels: labelled images, or a table of files and labels, where the data have none.
        against: run folders, files or ``"timm:ID"``: weights that are judged too.
        start_from: likewise; each method is run once more, beginning with them.
        budget: ``"steps=400"``, ``"images=20k"``, ``"time=30m"`` or ``"flops=1e17"`` for each run;
            None: the fewest images of these recipes.
        within: ``"1h"``: time for all of it, from which preset and budget follow.
        seeds: runs of each method.
        tune: trials of each method, a tenth of the budget each; 0, or 2 to 9.
        evaluate: names of evaluators; None: all that the data allow.
        preset: of every recipe.
        settings: ``"a.b=VALUE"`` for every recipe.
        data: where to look for the data first.
        device: see `run`.
        jobs: runs at once; None: one a GPU, else one a core, up to eight.
        out: folder of the comparison; None: ``comparisons/METHODS-DATASET``.
        track: names of trackers that each run tells of itself.

    Returns: all that was found: ``answer`` is it in one sentence.
    Raises: MimkitError for everything a user can mend.
    """
    trackers = named(track)
    names = tuple(fspath(method) for method in methods)
    rivals = tuple(fspath(source) for source in against)
    starts = tuple(fspath(source) for source in start_from)
    question = Question(
        methods=names,
        recipes=Asked(dataset, preset, tuple(settings), data, labels),
        budget=None if budget is None else parse_budget(budget),
        seeds=seeds,
        evaluate=None if evaluate is None else tuple(evaluate),
        device=device,
        jobs=jobs or default_jobs(device),
        command=_command(
            "compare",
            *names,
            dataset=dataset,
            labels=labels,
            against=rivals,
            budget=budget,
            within=within,
            seeds=seeds,
            tune=tune or None,
            evaluate=None if evaluate is None else ",".join(evaluate),
            preset=preset,
            set=settings,
            data=data,
            device=device,
            jobs=jobs,
            out=out,
            track=track,
            **{"from": starts},
        ),
        within=parse_within(within, preset),
        against=rivals,
        start_from=starts,
        tune=tune,
    )
    folder = default_folder(names, dataset) if out is None else Path(out)
    return conduct(question, folder, LocalLauncher(), track=trackers)


@mendable()
def evaluate(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    dataset: str | None = None,
    labels: str | None = None,
    evaluate: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    data: str | None = None,
    device: str | None = None,
) -> Study:
    """Judges finished runs once more, as ``mimkit evaluate`` does, in this process.

    >>> folder = run(tiny, settings=["train.total_steps=4"])
    >>> found = evaluate(folder, evaluate=["knn"])
    >>> [one.row.evaluator for one in found.verdicts if not one.row.own_task]
    ['knn']

    Results are added to ``results.json`` and the report of each run, under the data's name; what
    was judged before is not repeated.

    Args:
        runs: a run folder, one that was imported, a folder with such below it; or several.
        dataset: a registered name, a folder, a Hugging Face id, an address; None: each run's own.
        labels: labelled images, or a table of files and labels, where the data have none.
        evaluate: names of evaluators, each with the options that the recipe gives it, of several
            runs where all give the same, else those of a comparison, else its defaults; None: all
            of each run's recipe.
        settings: ``"a.b=VALUE"`` of ``data`` and ``evaluate``, as ``--set``.
        data: where to look for the data first.
        device: see `run`.

    Returns: of one run all that is known of it on these data; of several all side by side, where
        runs that differ in nothing but their seed are one method.
    Raises: MimkitError for everything a user can mend.
    """
    paths = [runs] if isinstance(runs, str | PathLike) else runs
    command = _command(
        "evaluate",
        *(fspath(path) for path in paths),
        dataset=dataset,
        labels=labels,
        evaluate=None if evaluate is None else ",".join(evaluate),
        set=settings,
        data=data,
        device=device,
    )
    judging = Judging(
        runs=tuple(map(Path, paths)),
        wish=Wish(dataset, labels, data, settings=tuple(settings)),
        names=None if evaluate is None else tuple(evaluate),
        device=device,
        command=command,
    )
    return judge_runs(judging)


@mendable()
def load_encoder(run: str | PathLike[str]) -> "Features":
    """Loads the encoder of a finished run as a module that gives features.

    >>> model = load_encoder(run(tiny, settings=["train.total_steps=4"]))
    >>> model(torch.rand(2, 3, 16, 16)).shape
    torch.Size([2, 16])

    Args:
        run: the run folder.

    Raises: DataError if the folder holds no encoder; PluginError if its plugin is not installed.
    """
    folder = Path(run)
    encoder = encoder_file.load_encoder(folder)
    record = encoder_file.read_record(folder)
    return Features(encoder, record["mean"], record["std"]).eval()


class Features(Module):
    """An encoder that takes images as they come: in [0, 1], not normalised.

    >>> model = load_encoder(run(tiny, settings=["train.total_steps=4"]))
    >>> model.encoder.features(model.normalised(torch.rand(1, 3, 16, 16))).patches.shape
    torch.Size([1, 16, 16])

    Args:
        encoder: of a run.
        mean: of the data set it was trained on, by channel.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def normalised(self, image: Tensor) -> Tensor:
        """Subtracts the mean and divides by the deviation.

        Shape: (B, C, H, W) in [0, 1].
        """
        return (image - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        """Gives the mean of the patches' tokens.

        Shape: (B, C, H, W) in [0, 1], of the size of pre-training; (B, D).
        """
        return self.encoder.features(self.normalised(image)).patches.mean(dim=1)


def _command(*words: str, **options: str | int | PathLike[str] | Sequence[str] | None) -> str:
    """What to type for the same: each option that is given, once for each of several values."""
    said = ["mimkit", *words]
    for name, value in options.items():
        given = [value] if isinstance(value, str | int | PathLike) else value or []
        for one in given:
            said += [f"--{name}", str(one)]
    return shlex.join(said)
