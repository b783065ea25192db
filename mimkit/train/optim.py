"""Optimizer, weight-decay groups and the learning rate of a step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from mimkit.parts.part import Module
from mimkit.recipe.schema import TrainSection

_LEAST_REWARMING: Final = 0.01
_MOST_REWARMING: Final = 0.5


def make_optimizer(
    module: nn.Module, train: TrainSection, layer_scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Builds the optimizer over all trainable parameters of ``module``.

    Biases, norms and what a part lists in ``no_weight_decay`` are not decayed. The fused kernels
    are used on every device: they can skip a step on the device itself (see `guard`).

    Args:
        module: what is trained.
        train: which optimizer, and its settings.
        layer_scales: factors of the learning rate of single parameters; the others have 1.
    """
    groups = _decay_groups(module, train.weight_decay)
    if layer_scales:
        groups = _scale_groups(groups, layer_scales)
    if train.optimizer == "sgd":
        nesterov = train.momentum > 0
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=train.lr, momentum=train.momentum, nesterov=nesterov, fused=True
        )
        if nesterov:
            # The fused kernel allocates these on its first step and leaves them unset if that
            # step is skipped; starting from zero is the same rule without the gap.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)


Group = dict[str, Any]


def _decay_groups(module: nn.Module, weight_decay: float) -> list[Group]:
    exempt = {
        f"{path}.{name}" if path else name
        for path, child in module.named_modules()
        if isinstance(child, Module)
        for name in child.no_weight_decay()
    }
    groups: list[Group] = param_groups_weight_decay(
        module, weight_decay, no_weight_decay_list=exempt
    )
    return groups


def _scale_groups(groups: list[Group], scales: Mapping[nn.Parameter, float]) -> list[Group]:
    scaled: dict[tuple[int, float], Group] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            scale = scales.get(parameter, 1.0)
            member = scaled.setdefault((number, scale), {**group, "params": [], "lr_scale": scale})
            member["params"].append(parameter)
    return list(scaled.values())


def total_steps(train: TrainSection, num_images: int) -> int:
    """Number of optimizer steps of the run."""
    if train.total_steps is not None:
        return train.total_steps
    assert train.total_epochs is not None  # the schema demands exactly one of the two
    return max(1, round(train.total_epochs * num_images / train.batch_size))


def warmup_steps(train: TrainSection, num_images: int) -> int:
    """Number of warm-up steps of the run."""
    if train.warmup_epochs is not None:
        return round(train.warmup_epochs * num_images / train.batch_size)
    return train.warmup_steps or 0


def learning_rate(
    step: int, *, total: int, warmup: int, peak: float, floor: float, ends: Sequence[int] = ()
) -> float:
    """Linear warm-up from 0, then half a cosine down to ``floor``, evaluated at every step.

    Where a run was extended, the same again: from ``floor`` up to ``peak``, in the share of the new
    steps that the first warm-up had of the first ones, 1 to 50 %, then down to ``floor``.

    Args:
        step: 0 for the first optimizer step.
        total: number of steps of the run.
        warmup: number of warm-up steps; step ``warmup`` is the first at ``peak``.
        peak: the recipe's ``lr``.
        floor: the recipe's ``min_lr``.
        ends: ascending steps at which the run had ended before it was extended.

    Source: re-warming and re-decaying, Ibrahim et al. 2024, arXiv 2403.08763, section 4.1.
    """
    first, *_ = bounds = [*ends, total]
    start, stop = (
        max((e for e in ends if e <= step), default=0),
        min((e for e in bounds if e > step), default=total),
    )
    bottom = 0.0
    if start:
        share = min(max(warmup / first, _LEAST_REWARMING), _MOST_REWARMING)
        warmup, bottom = round(share * (stop - start)), floor
    step, total = step - start, stop - start
    if step < warmup:
        return bottom + (peak - bottom) * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of every group, times the group's own ``lr_scale`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def guard(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Makes the next ``optimizer.step()`` do nothing where ``finite`` () is False.

    The decision stays on the device: nothing waits for it. This is the interface by which
    `torch.amp.GradScaler` drives fused optimizers.
    """
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
