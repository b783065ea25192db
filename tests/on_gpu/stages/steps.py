"""A recipe's training step at 224 px: images/s, memory, and its share of what the GPU sustains."""

import time

import torch

from mimkit.bench import Bench, bench
from mimkit.console import make_console
from mimkit.recipe.schema import load
from on_gpu.recipes import at_224
from on_gpu.work import Work


def run(work: Work, recipe: str, *changes: str) -> None:
    """Measures as ``mimkit bench`` does, then the peak by which it is judged."""
    console = make_console()
    chosen = load(
        recipe,
        preset=work.sizes.preset,
        overrides=[*at_224(work, recipe), *changes],
        data_path=str(work.photos),
    )
    measured = bench(chosen, device=work.device, steps=work.sizes.steps, console=console)
    console.print(measured.table())
    peak = sustained_peak(torch.device(work.device), work.sizes.matmul_seconds)
    _tell(work, measured, peak)


def _tell(work: Work, measured: Bench, peak: float) -> None:
    trial = measured.trial
    work.tell("images/s", measured.rate)
    work.tell("a step", 1000 * trial.step_seconds, "ms")
    work.tell("images a step", measured.batch_size)
    work.tell("images/s of its loader", measured.loader_rate)
    work.tell("compiled", str(trial.compiled))
    work.tell("peak memory", trial.peak_memory_bytes / 2**30, "GiB")
    work.tell("an image", trial.flops_per_image / 1e9, "GFLOP")
    work.tell("sustained matrix products", peak / 1e12, "TFLOP/s")
    work.tell("share of that", 100 * measured.rate * trial.flops_per_image / peak, "%")
    for phase, milliseconds in measured.milliseconds.items():
        work.tell(f"eager, {phase}", milliseconds, "ms")
    for name, value in measured.diagnoses.items():
        work.tell(name, value)


def sustained_peak(device: torch.device, seconds: float) -> float:
    """Measures FLOP/s of matrix products over a time in which a GPU comes to its steady clock.

    Random values: on zeros a GPU draws less power and runs faster.
    """
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    rate = 0.0
    for duration in (seconds / 3, seconds):  # the first warms it up
        products, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < duration:
            for _ in range(10):
                torch.mm(a, b)
            if cuda:
                torch.cuda.synchronize(device)
            products += 10
        rate = 2 * size**3 * products / spent
    return rate
