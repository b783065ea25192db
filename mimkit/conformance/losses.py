"""Checks of losses."""

import torch

from mimkit.conformance.checks import check, require
from mimkit.conformance.specimen import Specimen


@check("losses", gate=True)
def values_are_float32_for_each_position(specimen: Specimen) -> None:
    """The core refuses the loss in the first step, or sums it up in half precision."""
    loss = specimen.make()
    prediction, target, valid = specimen.compared()
    for dtype in (torch.float32, torch.bfloat16):
        found = loss(prediction.to(dtype), target, valid)
        require(
            tuple(found.shape) == tuple(valid.shape),
            f"it gives {tuple(found.shape)}, but must give one value a position, "
            f"{tuple(valid.shape)}",
            "Do not reduce: the core takes the mean of the valid positions.",
        )
        require(
            found.dtype == torch.float32,
            f"for a prediction in {dtype} it gives {found.dtype}",
            "Compute in float32: prediction.float().",
        )


@check("losses")
def invalid_positions_have_no_influence(specimen: Specimen) -> None:
    """Padding decides what the model learns, or its gradient is not a number."""
    loss = specimen.make()
    prediction, target, valid = specimen.compared()
    other = torch.where(valid[..., None], prediction, float("nan")).requires_grad_()
    true = loss(prediction, target, valid)[valid]
    found = loss(other, target, valid)
    require(
        bool(torch.allclose(true, found[valid], atol=1e-5)),
        "values at valid positions depend on predictions at invalid ones",
        "Put a constant there first: torch.where(valid[..., None], prediction, 0.0).",
    )
    torch.autograd.backward(torch.where(valid, found, 0.0).sum())
    assert other.grad is not None
    require(
        bool(other.grad[valid].isfinite().all()),
        "a NaN at an invalid position reaches the gradient of valid ones",
        "Put a constant there first: torch.where(valid[..., None], prediction, 0.0).",
    )


@check("losses")
def a_gradient_reaches_every_prediction(specimen: Specimen) -> None:
    """Some positions are never learned."""
    loss = specimen.make()
    prediction, target, valid = specimen.compared()
    prediction.requires_grad_()
    torch.autograd.backward(torch.where(valid, loss(prediction, target, valid), 0.0).sum())
    require(
        prediction.grad is not None and bool(prediction.grad[valid].abs().sum(-1).gt(0).all()),
        "no gradient reaches the prediction at some valid positions",
        "Do not detach, round or clip it away.",
    )


@check("losses")
def metrics_are_single_numbers(specimen: Specimen) -> None:
    """Logging fails after the first interval, and the run with it."""
    loss = specimen.make()
    prediction, target, valid = specimen.compared()
    for name, value in loss.metrics(prediction, target, valid).items():
        require(
            isinstance(value, torch.Tensor) and value.shape == (),
            f"the metric '{name}' is {value!r:.60}, but must be a tensor of shape ()",
            "Reduce it, over valid positions only.",
        )
