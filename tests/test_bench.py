import io
import time

import pytest
import torch
from rich.console import Console
from torch import nn

from mimkit.bench import PHASES, bench, matmul_peak
from mimkit.data.batches import Batches
from mimkit.recipe.schema import load
from mimkit.train.loop import Loop
from mimkit.train.step import Pretrainer
from mimkit.train.stopwatch import Stopwatch


@pytest.fixture
def now(monkeypatch):
    """The time, which passes only when a test says so."""
    held = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: held[0])
    return held


class Slow(nn.Module):
    def __init__(self, now, seconds, inner=None):
        super().__init__()
        self.now, self.seconds, self.inner = now, seconds, inner

    def forward(self, x):
        self.now[0] += self.seconds
        return x if self.inner is None else self.inner(x)


def test_a_phase_inside_another_is_counted_once(now):
    clock = Stopwatch(torch.device("cpu"))
    encoder, head = Slow(now, 20), Slow(now, 10)
    with clock.watch(encoder, "encoder"), clock.watch(head, "head"), clock.phase("core"):
        head(encoder(torch.zeros(1)))
        now[0] += 5
    assert clock.seconds == {"encoder": 20, "head": 10, "core": 5}


def test_an_encoder_run_by_a_target_counts_as_target(now):
    clock = Stopwatch(torch.device("cpu"))
    encoder = Slow(now, 2)
    target = Slow(now, 1, inner=encoder)
    with clock.watch(encoder, "encoder"), clock.watch(target, "target"):
        target(torch.zeros(1))
    assert clock.seconds == {"target": 3}


def test_the_matmul_peak_is_a_rate():
    assert matmul_peak(torch.device("cpu"), bfloat16=False) > 1e8


def test_a_bench_runs_the_loops_own_steps(tiny, monkeypatch):
    calls = {"advance": 0, "step": 0, "after_step": 0, "piece": 0}

    def count(cls, name, method):
        kept = getattr(cls, method)

        def call(*arguments, **options):
            calls[name] += 1
            return kept(*arguments, **options)

        monkeypatch.setattr(cls, method, call)

    count(Loop, "advance", "advance")
    count(Loop, "step", "gradients")
    count(Pretrainer, "after_step", "after_step")
    count(Pretrainer, "piece", "forward")
    recipe = load(str(tiny), overrides=["train.accumulate=4"])
    measured = bench(recipe, device="cpu", steps=5, console=Console(quiet=True))
    steps = calls["advance"]
    assert steps >= 5 + 2
    assert calls == {"advance": steps, "step": steps, "after_step": steps, "piece": 4 * steps}
    assert measured.loader_rate == pytest.approx(8 / measured.trial.load_seconds)


def test_a_bench_splits_the_whole_step_of_one_batch(tiny, monkeypatch):
    made = []
    cut = Batches.cut
    monkeypatch.setattr(Batches, "cut", lambda self, step: made.append(step) or cut(self, step))
    measured = bench(load(str(tiny)), device="cpu", steps=20, console=Console(quiet=True))
    # Eight show how long the next batch takes; one is enough for all that follows.
    assert len(made) == 8 + 1
    assert set(measured.milliseconds) == set(PHASES)
    assert all(value > 0 for value in measured.milliseconds.values())
    assert measured.milliseconds["data"] == pytest.approx(1000 * measured.trial.load_seconds)
    assert measured.rate == pytest.approx(8 / measured.trial.step_seconds)
    assert measured.loader_rate > 0
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(measured.table())
    assert "images/s" in console.export_text()
