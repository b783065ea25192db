"""Checks of what a model spread over devices gathers and lets go of (`mimkit.Module.units`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mimkit.conformance.checks import NotApplicableError, check, require
from mimkit.conformance.specimen import Specimen, same
from mimkit.parts.encoder import Encoder
from mimkit.parts.part import Module
from mimkit.train.sharding import units_of


@check("encoders", "targets", "heads", "losses")
@torch.no_grad()
def weights_of_a_unit_are_read_in_it_alone(specimen: Specimen) -> None:
    """Training with ``train.parallel = "fsdp"`` fails in its first step."""
    part = specimen.make()
    names = {module: name for name, module in part.named_modules()}
    units = units_of(part)
    if not units:
        raise NotApplicableError("has no units")
    before, taken = _everything(specimen, part), set[nn.Parameter]()
    for unit in units:  # inner ones first: what they hold is no longer the outer one's
        own = [parameter for parameter in unit.parameters() if parameter not in taken]
        taken.update(own)
        with _absent_between_calls(unit, own):
            after = _everything(specimen, part)
        require(
            same(before, after),
            f"outside of a call of {names[unit]}, one of its units, weights of it are read",
            "Run a unit by calling it, and read its weights in its forward alone; or override "
            "'units' so that it is none.",
        )


@contextmanager
def _absent_between_calls(unit: nn.Module, own: list[nn.Parameter]) -> Iterator[None]:
    """Replaces weights by NaN wherever their unit is not running."""
    kept = [parameter.clone() for parameter in own]

    def come(*_: object) -> None:
        for parameter, value in zip(own, kept, strict=True):
            parameter.copy_(value)

    def go(*_: object) -> None:
        for parameter in own:
            parameter.fill_(torch.nan)

    hooks = [unit.register_forward_pre_hook(come), unit.register_forward_hook(go)]
    go()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        come()


def _everything(specimen: Specimen, part: Module) -> list[Tensor]:
    """What a part gives in every way in which training asks it."""
    found = specimen.outcome(part)
    if isinstance(part, Encoder):
        found.append(part.features(specimen.image()).patches)
        if part.takes_hidden:
            mask = specimen.mask(hides=True)
            wanted = mask.target.flatten(1)
            found.append(part.at(specimen.image(), mask.context, mask.hidden, wanted).patches)
    return [value.nan_to_num(nan=torch.inf) for value in found]
