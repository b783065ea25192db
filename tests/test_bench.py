import io
import time

import pytest
import torch
from rich.console import Console
from torch import nn

from mimkit.bench import PHASES, Stopwatch, bench, matmul_peak
from mimkit.recipe.schema import load


class Slow(nn.Module):
    def __init__(self, seconds, inner=None):
        super().__init__()
        self.seconds, self.inner = seconds, inner

    def forward(self, x):
        time.sleep(self.seconds)
        return x if self.inner is None else self.inner(x)


def test_a_phase_inside_another_is_counted_once():
    clock = Stopwatch(torch.device("cpu"))
    encoder, head = Slow(0.02), Slow(0.01)
    with clock.watch(encoder, "encoder"), clock.watch(head, "head"), clock.phase("core"):
        head(encoder(torch.zeros(1)))
        time.sleep(0.005)
    assert set(clock.seconds) == {"encoder", "head", "core"}
    assert clock.seconds["encoder"] > clock.seconds["head"] > clock.seconds["core"]


def test_an_encoder_run_by_a_target_counts_as_target():
    clock = Stopwatch(torch.device("cpu"))
    encoder = Slow(0.002)
    target = Slow(0.001, inner=encoder)
    with clock.watch(encoder, "encoder"), clock.watch(target, "target"):
        target(torch.zeros(1))
    assert set(clock.seconds) == {"target"}


def test_the_matmul_peak_is_a_rate():
    assert matmul_peak(torch.device("cpu"), bfloat16=False) > 1e8


def test_a_bench_splits_the_whole_step(tiny):
    measured = bench(load(str(tiny)), device="cpu", steps=2, console=Console(quiet=True))
    assert set(measured.milliseconds) == set(PHASES)
    assert all(value > 0 for value in measured.milliseconds.values())
    assert measured.rate == pytest.approx(8 / measured.trial.seconds_per_step)
    assert measured.loader_rate > 0
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(measured.table())
    assert "images/s" in console.export_text()
