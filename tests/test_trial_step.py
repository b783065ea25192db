"""What the trial before a run measures, and that it leaves no trace."""

import dataclasses
import time

import pytest
import torch
from rich.console import Console

from mimkit.builtin.targets import Latent
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.recipe.schema import load
from mimkit.train import trial as trials
from mimkit.train.distributed import World
from mimkit.train.guard import Guard
from mimkit.train.loop import Loop
from mimkit.train.means import Means

CPU = torch.device("cpu")
SMALL = {
    "selfie_shapes": {"encoder": {"width": 8}},
    "beit_shapes": {"encoder": {"depth": 2}},
    "cae_shapes": {"encoder": {"depth": 2}},
    "mae_shapes": {"encoder": {"depth": 2}, "head": {"depth": 1}},
}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Opens a recipe and gives the run and its loop."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))

    def start(name, **tables):
        train = {"total_steps": 9, "batch_size": 8, "warmup_steps": 2, **tables.pop("train", {})}
        first = load(name)
        targets = {n: dict(t.cls.miniature) for n, t in first.targets.items()}
        fixed = {
            "data": {"num_images": 32, "num_test_images": 16},
            "targets": {n: options for n, options in targets.items() if options},
            "evaluate": [],
            **tables,
            "train": train,
        }
        folder = RunFolder(tmp_path / "run", writable=False)
        recipe = load(name, fixed=fixed)
        current = open_run(recipe, folder, World(0, 1, CPU), Console(quiet=True))
        return current, current.loop()

    return start


def tensors_of(loop: Loop) -> dict[str, torch.Tensor]:
    found = {f"model {k}": v for k, v in loop.pretrainer.state_dict().items()}
    names = {id(p): n for n, p in loop.pretrainer.named_parameters()}
    for parameter, entries in loop.optimizer.state.items():
        found |= {f"optimizer {names[id(parameter)]} {k}": v for k, v in entries.items()}
    found["random"] = torch.random.get_rng_state()
    return {name: tensor.clone() for name, tensor in found.items()}


def train(current, loop, start, stop):
    guard, means = Guard(loop.pretrainer, []), Means(loop.world)
    loop.pretrainer.train()
    for step, batch in zip(range(start, stop), current.stream(start, stop), strict=True):
        loop.advance(step, batch, guard, means)
        loop.progress.step = step + 1


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.stride() == other[name].stride(), name


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("selfie_shapes", 0),
        ("mae_shapes", 2),
        *(
            pytest.param(name, 2, marks=pytest.mark.slow)
            for name in sorted(SMALL)
            if name != "mae_shapes"
        ),
    ],
)
def test_a_run_ends_with_the_same_bits_whether_it_was_tried_out_or_not(started, name, done):
    ends = []
    for tried in (False, True):
        torch.manual_seed(0)
        current, loop = started(name, **SMALL[name])
        train(current, loop, 0, done)
        if tried:
            before = tensors_of(loop)
            lr = [group["lr"] for group in loop.optimizer.param_groups]
            current.try_out(loop)
            assert_same(tensors_of(loop), before)
            assert [group["lr"] for group in loop.optimizer.param_groups] == lr
            assert all(p.grad is None for p in loop.pretrainer.parameters())
        train(current, loop, done, done + 2)
        ends.append(tensors_of(loop))
    assert_same(*ends)


def test_a_teacher_is_put_back(started, tiny):
    text = tiny.read_text().replace(
        'part = "pixels"', 'part = "latent"\nsees = "all"\nmomentum = 0.9'
    )
    tiny.write_text(text)
    current, loop = started(str(tiny))
    assert any(isinstance(target, Latent) for target in current.parts.targets.values())
    before = tensors_of(loop)
    current.try_out(loop)
    assert_same(tensors_of(loop), before)


@pytest.fixture
def now(monkeypatch):
    held = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: held[0])
    return held


@pytest.fixture
def costly(started, tiny, now, monkeypatch):
    """A run of which a piece takes 2 s, the optimizer 3 s, following 0.5 s, a batch 4 s."""
    current, loop = started(str(tiny), train={"accumulate": 2})
    calls = {"piece": 0, "optimizer": 0, "after_step": 0, "batch": 0}

    def counted(name, seconds, function):
        def call(*arguments, **options):
            calls[name] += 1
            now[0] += seconds
            return function(*arguments, **options)

        return call

    pretrainer = current.pretrainer
    monkeypatch.setattr(pretrainer, "forward", counted("piece", 2, pretrainer.forward))
    monkeypatch.setattr(pretrainer, "after_step", counted("after_step", 0.5, pretrainer.after_step))
    monkeypatch.setattr(loop.optimizer, "step", counted("optimizer", 3, loop.optimizer.step))

    def stream(start, stop):
        for step in range(start, stop):
            now[0] += 4
            calls["batch"] += 1
            yield current.batches()[step]

    return current, loop, stream, calls


def test_the_announced_time_holds_accumulation_optimizer_targets_and_data(costly):
    _, loop, stream, calls = costly
    trial = trials.try_out(loop, stream, workers=0)
    assert trial.step_seconds == pytest.approx(2 * 2 + 3 + 0.5)
    assert trial.load_seconds == pytest.approx(4)
    assert trial.seconds_per_step == pytest.approx(2 * 2 + 3 + 0.5 + 4)
    assert calls["piece"] == 2 * calls["optimizer"] == 2 * calls["after_step"]


def test_loader_processes_hide_their_time_behind_a_gpu_but_not_behind_the_processor(costly):
    _, loop, stream, _ = costly
    trial = trials.try_out(loop, stream, workers=2)
    assert not trial.overlaps
    beside = dataclasses.replace(trial, overlaps=True)
    assert beside.seconds_per_step == pytest.approx(max(7.5, 4))


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        (1.0, 0.25, 0.25),  # four at once after a second, then one every quarter of a second
        (9.0, 0.25, 9.0 / 4),  # too slow to wait for a second round: more rather than less
    ],
)
def test_batches_that_were_prepared_while_waiting_do_not_count_as_speed(
    now, first, later, expected
):
    def stream(start, stop):
        for place in range(stop - start):
            now[0] += first if place == 0 else 0.0 if place < 4 else later
            yield place

    assert trials._time_data(stream, 0, 4, CPU)[1] == pytest.approx(expected)


@pytest.mark.parametrize("workers", [1, 2, 15])
@pytest.mark.parametrize("seconds", [0.1, 3.0, 13.0])
def test_processes_that_work_side_by_side_are_as_fast_as_all_of_them(now, workers, seconds):
    """Simulated: each makes every so-manieth batch, in its own time; batches come in order."""

    def stream(start, stop):
        begun, ready = now[0], [now[0]] * workers
        for place in range(stop - start):
            ready[place % workers] += seconds
            now[0] = max(now[0], ready[place % workers])
            taken.append(now[0] - begun)
            yield place

    taken = []
    assert trials._time_data(stream, 0, workers, CPU)[1] == pytest.approx(seconds / workers)
    assert taken[-1] <= max(2 * seconds, 5 + seconds)


def test_memory_is_read_with_the_optimizers_state_and_flops_are_counted_apart(costly, monkeypatch):
    _, loop, stream, _ = costly
    seen = []
    count = trials.count_flops
    monkeypatch.setattr(trials, "count_flops", lambda run: seen.append("flops") or count(run))
    monkeypatch.setattr(trials, "_forget_peak", lambda _: seen.append("forget"))
    monkeypatch.setattr(
        trials, "_peak_memory", lambda _: seen.append(len(loop.optimizer.state)) or 1
    )
    monkeypatch.setattr(torch, "compile", lambda module: module)
    loop.train = loop.train.model_copy(update={"compile": "on"})
    trial = trials.try_out(loop, stream, workers=0)
    trained = sum(p.requires_grad for p in loop.pretrainer.parameters())
    assert seen == ["flops", "forget", trained, "forget", trained, "forget"]
    assert trial.compiled
    assert not loop.optimizer.state


def test_the_flops_are_those_of_the_whole_batch(started, tiny):
    found = set()
    for accumulate in (1, 2):
        current, loop = started(str(tiny), train={"accumulate": accumulate})
        found.add(current.try_out(loop).flops_per_image)
    assert len(found) == 1
