"""Multinomial logistic regression on standardised features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.evaluate.score import Score

_EPSILON = 1e-6
_MAX_ITERATIONS = 200
_TRIAL_IMAGES: Final = 2048
_TRIAL_ITERATIONS: Final = 5
_USUAL_ITERATIONS: Final = _MAX_ITERATIONS // 2


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Args:
        mean: (D,) that is subtracted from features.
        scale: (D,) by which they are multiplied after that.
        weight: (num_classes, D).
        bias: (num_classes,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Gives logits: (n, D) to (n, num_classes)."""
        return F.linear((features - self.mean) * self.scale, self.weight, self.bias)

    def score(self, features: Tensor, labels: Tensor) -> Score:
        """Judges images whose labels, (n,) int64, are known."""
        logits, labels = self(features), labels.to(features.device)
        return Score.of(logits.argmax(1) == labels, float(F.cross_entropy(logits, labels)))


def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weight_decay: float,
    start: Probe | None = None,
    max_iterations: int = _MAX_ITERATIONS,
) -> Probe:
    """Minimises the mean cross-entropy + weight_decay / 2 x squared weights, by L-BFGS.

    At weak weight decay 200 iterations from zero end short of the optimum, so `LinearProbe` goes
    from strong to weak and starts each fit from the one before.

    Args:
        features: (n, D) float32.
        labels: (n,) int64.
        num_classes: how many classes there are, also if ``labels`` lack some.
        weight_decay: factor of the penalty; biases pay none.
        start: where to start; None for zero.
        max_iterations: where to stop at the latest.
    """
    labels = labels.to(features.device)
    mean = features.mean(0)
    scale = (features.var(0, correction=0) + _EPSILON).rsqrt()
    standard = (features - mean) * scale
    size = (num_classes, features.shape[1])
    weight = standard.new_zeros(size) if start is None else start.weight.clone()
    bias = standard.new_zeros(num_classes) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), labels)
        loss = loss + 0.5 * weight_decay * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Probe(mean, scale, weight.detach(), bias.detach())


def seconds_of_fit(num_images: int, width: int, num_classes: int, device: torch.device) -> float:
    """Estimates what one fit takes, from a few iterations on random features."""
    count = min(num_images, _TRIAL_IMAGES)
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(count, device=device) % num_classes
    for iterations in (1, _TRIAL_ITERATIONS):  # the first time is slower
        start = time.perf_counter()
        probe = fit(features, labels, num_classes, weight_decay=0.1, max_iterations=iterations)
        float(probe.bias.sum())  # waits for the device
    seconds = (time.perf_counter() - start) / _TRIAL_ITERATIONS
    return seconds * _USUAL_ITERATIONS * num_images / count
