"""Checks of targets."""

import dataclasses

import torch
from torch import Tensor

from mimkit.conformance.checks import NotApplicableError, check, require
from mimkit.conformance.specimen import SQUARE, Specimen, moved, same


@check("targets", gate=True)
def targets_are_as_declared(specimen: Specimen) -> None:
    """The head is built for something else, and training fails in its first step."""
    target = specimen.make()
    mask = specimen.mask(hides=False)
    (found,) = specimen.outcome(target)
    width, shape = target.width, tuple(mask.target.shape)
    if width.kind == "class":
        require(
            found.dtype == torch.int64 and tuple(found.shape) == shape,
            f"it gives {tuple(found.shape)} of {found.dtype}, but its width declares classes: "
            f"{shape} of torch.int64",
            "Give the class of every target position.",
        )
        require(
            bool(((found >= 0) & (found < width.size)).all()),
            f"it gives classes outside of 0 to {width.size - 1}",
            "Set the width's size to the number of classes.",
        )
        return
    want = (*shape, width.size)
    require(
        found.is_floating_point() and tuple(found.shape) == want,
        f"it gives {tuple(found.shape)} of {found.dtype}, but its width declares vectors: {want}",
        "Set the width's size to the length of one target.",
    )
    require(bool(found.isfinite().all()), "it gives values that are not finite", "Mend them.")


@check("targets")
@torch.no_grad()
def targets_follow_their_positions(specimen: Specimen) -> None:
    """Every patch is trained to predict another one."""
    target, mask = specimen.make(), specimen.mask(hides=False)
    encoder = specimen.encoder()
    order = torch.randperm(mask.target.shape[2], generator=torch.Generator().manual_seed(0))
    other = moved(mask, mask.target[:, :, order], mask.valid[:, :, order])
    straight = target(specimen.batch(target, mask), encoder)
    mixed = target(specimen.batch(target, other), encoder)
    require(
        same([straight[:, :, order]], [mixed], exactly=False),
        "positions in another order do not give the same targets in that order",
        "Read at batch.mask.target: take(values, batch.mask.target).",
    )


@check("targets")
@torch.no_grad()
def targets_of_an_image_are_its_own(specimen: Specimen) -> None:
    """What an image is trained to predict depends on what shares its batch."""
    target, mask = specimen.make(), specimen.mask(hides=False)
    one, other = specimen.batch(target, mask), specimen.batch(target, mask, seed=5)
    views = {n: torch.stack([v[0], other.views[n][1]]) for n, v in one.views.items()}
    mixed = dataclasses.replace(one, views=views)
    encoder = specimen.encoder()
    require(
        same([target(one, encoder)[:1]], [target(mixed, encoder)[:1]], exactly=False),
        "another second image changes the targets of the first",
        "Take no statistics over the batch.",
    )


@check("targets")
@torch.no_grad()
def padding_is_harmless_if_declared(specimen: Specimen) -> None:
    """With a ragged masker the numbers of true targets depend on the padding."""
    target = specimen.make()
    if not target.ragged:
        raise NotApplicableError("ragged is False")
    mask = specimen.mask(hides=True, ragged=True)
    places = torch.where(mask.valid, mask.target, SQUARE.num_patches - 1)
    elsewhere = moved(mask, places, mask.valid)
    encoder = specimen.encoder()
    one = target(specimen.batch(target, mask), encoder)
    other = target(specimen.batch(target, elsewhere), encoder)
    require(
        same([one[mask.valid]], [other[mask.valid]]),
        "ragged is True, but other positions in the padding change true targets",
        "Set ragged = False, or keep positions apart.",
    )


@check("targets")
@torch.no_grad()
def needs_no_encoder_if_declared(specimen: Specimen) -> None:
    """It is computed before the encoder: other random numbers, and so another training."""
    target = specimen.make()
    if target.needs_encoder:
        raise NotApplicableError("needs_encoder is True")
    batch = specimen.batch(target, specimen.mask(hides=False))
    one, other = specimen.encoder(), specimen.encoder()
    for parameter in other.parameters():
        parameter.add_(1)
    target.train()
    before = torch.get_rng_state()
    require(
        same([target(batch, one)], [target(batch, other)]),
        "needs_encoder is False, but with another encoder it gives other targets",
        "Set needs_encoder = True.",
    )
    require(
        torch.equal(before, torch.get_rng_state()),
        "needs_encoder is False, but in training it draws random numbers",
        "Set needs_encoder = True, or draw nothing.",
    )


@check("targets")
def trains_nothing_of_its_own(specimen: Specimen) -> None:
    """The optimizer gets weights without a gradient, and the target may flee the prediction."""
    target, mask = specimen.make(), specimen.mask(hides=False)
    own = [name for name, p in target.named_parameters() if p.requires_grad]
    require(
        not own,
        f"its parameters {', '.join(own[:3])} require a gradient",
        "requires_grad_(False); a frozen network belongs behind mimkit.freeze.",
    )
    encoder = specimen.encoder()
    found: Tensor = target(specimen.batch(target, mask), encoder)
    if not found.requires_grad:
        return
    torch.autograd.backward(found.square().sum())
    require(
        any(parameter.grad is not None for parameter in encoder.parameters()),
        "it keeps a graph although no gradient reaches the encoder",
        "Compute it under torch.no_grad().",
    )


@check("targets")
def what_it_prepared_is_found_again(specimen: Specimen) -> None:
    """Every run prepares anew, for minutes or hours."""
    found = []
    for _ in range(2):
        target = specimen.construct()
        target.bind(specimen.encoder())
        found.append(specimen.prepare(target))
    if found[1] is None:
        raise NotApplicableError("it prepares nothing")
    require(
        found[1].cached,
        "prepared again in the same folder for the same images, it is not found there",
        "Look in the folder first; name what is kept after all that it depends on.",
    )
