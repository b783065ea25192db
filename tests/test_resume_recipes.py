"""Every shipped recipe, interrupted and gone on with, ends as if it had not been interrupted."""

import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mimkit.data.batches import stream
from mimkit.evaluate import trainer
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.current import build_evaluators, subject
from mimkit.recipe import registry
from mimkit.recipe.schema import load
from mimkit.train.distributed import World
from mimkit.train.loop import Hooks, Loop
from mimkit.train.signals import Interrupted, Request

SHIPPED = (Path(__file__).parent.parent / "recipes").rglob("*.toml")
REGISTERED = (Path(entry.value) for entry in registry.entries("recipes"))
RECIPES = sorted({path.resolve() for path in (*SHIPPED, *REGISTERED)})
# One of each method and a cross-over; the slow suite has all.
QUICK = ("selfie_cifar", "beit_shapes", "cae_shapes", "mae_shapes", "tokens_from_patches")
CASES = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
    for path in RECIPES
]
CPU = torch.device("cpu")
TRAIN = {
    "total_steps": 4,
    "batch_size": 4,
    "processes": 1,
    "warmup_steps": 1,
    "log_every_steps": 3,  # so that the run stops inside of an interval
    "checkpoint_every_steps": 2,
}
# Fewer and narrower blocks; what they are made of and how it lies in memory stays.
SIZES = {
    "encoder": {"embed_dim": 48, "depth": 2, "num_heads": 3, "width": 8, "depths": [1, 1, 1, 1]},
    "head": {
        "embed_dim": 48,
        "depth": 1,
        "depth_regressor": 1,
        "depth_decoder": 1,
        "num_heads": 4,
        "mlp_dim": 32,
    },
}


def miniature(path, *, images=12, evaluate=(), settings=()):
    whole = load(str(path))
    small = {
        # What is not given follows from another part, and still does.
        section: {
            k: size for k, size in sizes.items() if options(whole, section).get(k) is not None
        }
        for section, sizes in SIZES.items()
    }
    targets = {name: dict(table.cls.miniature) for name, table in whole.targets.items()}
    return load(
        str(path),
        fixed={
            "data": {
                "name": "shapes",
                "labelled": "none",
                "num_images": images,
                "num_test_images": 4,
                "workers": 0,
            },
            "train": TRAIN,
            "targets": {name: options for name, options in targets.items() if options},
            "evaluate": list(evaluate),
            **small,
        },
        overrides=settings,
    )


def options(recipe, section):
    return getattr(recipe, section).options


def train(recipe, folder, stop_at=None):
    """Builds everything anew and trains from the last checkpoint; gives the run, loop and log."""
    console, world, request, rows = Console(quiet=True), World(0, 1, CPU), Request(), []
    run = open_run(recipe, RunFolder(folder), world, console)

    def stop(step):
        if step == stop_at:
            request.number = signal.SIGTERM

    loop = Loop(
        run.pretrainer,
        train=recipe.train,
        num_images=len(run.train),
        seed=recipe.seed,
        world=world,
        folder=folder / "checkpoints",
        hooks=Hooks(lambda step, values: rows.append({"step": step, **values}), stop, pytest.fail),
    )
    loop.resume()
    steps = stream(run.batches(), loop.progress.step, loop.total, workers=0, device=CPU)
    try:
        loop.run(steps, request)
    except Interrupted:
        assert loop.progress.step == stop_at
    for row in rows:
        row.pop("time/step_ms")
    return run, loop, rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all recipes, so that each tokenizer is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", CASES)
def test_interrupted_and_gone_on_with_it_ends_alike(path, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(cache))
    recipe = miniature(path)
    _, undisturbed, expected = train(recipe, tmp_path / "whole")
    _, _, before = train(recipe, tmp_path / "parts", stop_at=2)
    _, resumed, after = train(recipe, tmp_path / "parts")
    assert resumed.progress.step == 4
    assert before + after == expected
    assert [row["step"] for row in expected] == [3, 4]
    weights = resumed.pretrainer.state_dict()
    for name, value in undisturbed.pretrainer.state_dict().items():
        assert torch.equal(value, weights[name]), name
    held = {name: resumed.optimizer.state[p] for name, p in resumed.pretrainer.named_parameters()}
    assert any(held.values())
    for name, parameter in undisturbed.pretrainer.named_parameters():
        for key, value in undisturbed.optimizer.state.get(parameter, {}).items():
            assert torch.equal(value, held[name][key]), (name, key)
            assert value.stride() == held[name][key].stride(), (name, key)


FINE_TUNE = {
    "part": "finetune",
    "label_fractions": [1.0],
    "seeds": 1,
    "total_steps": 3,
    "batch_size": 4,
    "lrs": [0.01],
    "warmup_steps": 0,
}


@pytest.mark.parametrize(
    "name",
    [
        "selfie_shapes",
        *(pytest.param(f"{m}_shapes", marks=pytest.mark.slow) for m in ("beit", "cae", "mae")),
    ],
)
def test_fine_tuning_killed_inside_of_its_second_cell_ends_alike(
    name, cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("MIMKIT_CACHE", str(cache))
    (path,) = (path for path in RECIPES if path.stem == name)
    recipe = miniature(path, images=60, evaluate=[FINE_TUNE])

    def fine_tune(folder):
        run, _, _ = train(recipe, folder)  # from the last checkpoint, where there is one
        (evaluator,) = build_evaluators(run)
        return evaluator.run(subject(run, 0))

    def die(network, *arguments, **options):
        """Trains the second cell to its end, and dies before that is written down."""
        train_classifier(network, *arguments, **options)
        trained.append(network)
        if len(trained) == 2:
            raise ZeroDivisionError

    trained, train_classifier = [], trainer.train_classifier
    expected = fine_tune(tmp_path / "whole")
    assert len(expected) == 2
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_classifier", die)
        with pytest.raises(ZeroDivisionError):
            fine_tune(tmp_path / "killed")
    assert fine_tune(tmp_path / "killed") == expected
    cells = [next((tmp_path / place).rglob("cells.jsonl")) for place in ("whole", "killed")]
    assert cells[0].read_text() == cells[1].read_text()
