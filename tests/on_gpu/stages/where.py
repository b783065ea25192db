"""Where the time of a compiled step goes, by the GPU's kernels."""

import re
import time
from typing import Any, Final

from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile, schedule

import mimkit
from on_gpu.recipes import at_224
from on_gpu.work import Work

_WARM_UP, _PROFILED = 2, 5
_SHOWN: Final = 15
_KINDS: Final = {
    "attention": r"flash|fmha|attention|sdpa",
    "convolutions": r"conv|implicit|wgrad|dgrad|winograd|cudnn",
    "matrix products": r"gemm|nvjet|cutlass|cublas|addmm|\bmm\b|bmm",
    "compiled": r"triton",
    "optimizer": r"adam|multi_tensor|foreach",
    "copies": r"memcpy|memset|copy",
}
"""Kinds of kernels by their names; the first that is found counts."""


def run(work: Work, recipe: str) -> None:
    """Trains a few steps, compiled, and profiles five of them."""
    after = work.sizes.profile_after
    cuda = work.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    found: list[Any] = []
    ends: list[float] = []
    with profile(
        activities=activities,
        schedule=schedule(wait=after, warmup=_WARM_UP, active=_PROFILED, repeat=1),
        on_trace_ready=lambda it: found.extend(it.key_averages()),
    ) as profiler:

        def step(*_: object) -> None:
            profiler.step()
            ends.append(time.perf_counter())

        handle = register_optimizer_step_post_hook(step)
        mimkit.run(
            recipe,
            preset=work.sizes.preset,
            settings=[
                *at_224(work, recipe),
                f"train.total_steps={after + _WARM_UP + _PROFILED + 1}",
                "train.warmup_steps=0",
                f'train.compile="{"on" if cuda else "off"}"',
                "evaluate=[]",
            ],
            data=str(work.photos),
            device=work.device,
            out=work.scratch / "where",
        )
        handle.remove()
    spent = ends[after + _WARM_UP + _PROFILED - 1] - ends[after + _WARM_UP - 1]
    _tell(work, _kernels(found, cuda), spent)


def _kernels(found: list[Any], cuda: bool) -> list[tuple[str, float]]:
    """Returns name and seconds of each kernel, the longest first; of operations on a CPU."""
    times = [
        (each.key, (each.self_device_time_total if cuda else each.self_cpu_time_total) / 1e6)
        for each in found
        if each.device_type.name == ("CUDA" if cuda else "CPU")
    ]
    return sorted(times, key=lambda one: -one[1])


def _tell(work: Work, kernels: list[tuple[str, float]], spent: float) -> None:
    busy = sum(seconds for _, seconds in kernels)
    work.tell("wall time of a step, profiled", 1000 * spent / _PROFILED, "ms")
    work.tell("of it kernels run", 100 * busy / spent, "%")
    kinds = dict.fromkeys([*_KINDS, "others"], 0.0)
    for name, seconds in kernels:
        kinds[kind_of(name)] += seconds
    for name, seconds in kinds.items():
        work.tell(name, 100 * seconds / busy, "%")
    for name, seconds in kernels[:_SHOWN]:
        work.tell(f"`{name[:70]}`", 100 * seconds / busy, "%")


def kind_of(kernel: str) -> str:
    """Tells the kind of a kernel by its name."""
    found = (kind for kind, words in _KINDS.items() if re.search(words, kernel, re.IGNORECASE))
    return next(found, "others")
