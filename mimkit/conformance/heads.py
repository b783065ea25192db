"""Checks of heads."""

import torch
from torch import Tensor

from mimkit.conformance.checks import NotApplicableError, check, require
from mimkit.conformance.specimen import SQUARE, Specimen, moved, needs_hidden, same
from mimkit.parts.head import Head
from mimkit.parts.records import Mask, Tokens


def _given(specimen: Specimen, head: Head) -> tuple[Tokens, Mask]:
    mask = specimen.mask(hides=needs_hidden(head))
    return specimen.tokens(head, mask), mask


@check("heads", gate=True)
def predictions_are_those_asked_for(specimen: Specimen) -> None:
    """Training fails in its first step."""
    head = specimen.make()
    tokens, mask = _given(specimen, head)
    found = head(tokens, mask)
    outputs = {**specimen.head_geometry.outputs, **head.own_widths}
    require(
        set(found) == set(outputs),
        f"it gives {', '.join(sorted(found))}, but was asked for {', '.join(sorted(outputs))}",
        "Predict every name in geometry.outputs, and no other.",
    )
    for name, width in outputs.items():
        want = (*mask.target.shape, width.size)
        require(
            tuple(found[name].shape) == want,
            f"'{name}' has shape {tuple(found[name].shape)}, but must have {want}",
            "Take the widths from geometry.outputs, or say in own_widths which is another.",
        )


@check("heads")
def translated_targets_fit_and_train_nothing(specimen: Specimen) -> None:
    """A target follows the prediction, or training fails in its first step."""
    head = specimen.make()
    if not head.own_widths:
        raise NotApplicableError("own_widths is empty")
    mask = specimen.mask(hides=needs_hidden(head))
    for name, width in head.own_widths.items():
        theirs = specimen.head_geometry.outputs[name].size
        target = torch.randn(*mask.target.shape, theirs, requires_grad=True)
        translated = head.translate(name, target)
        want = (*mask.target.shape, width.size)
        require(
            tuple(translated.shape) == want,
            f"the target of '{name}' becomes {tuple(translated.shape)}, but must be {want}",
            "Give translate the width that own_widths says.",
        )
        torch.autograd.backward(translated.square().sum())
        reached = [n for n, p in head.named_parameters() if p.grad is not None]
        require(
            not reached,
            f"a gradient from the target of '{name}' reaches {', '.join(reached[:3])}",
            "Use weights.detach() in translate.",
        )


@check("heads")
@torch.no_grad()
def every_token_has_influence(specimen: Specimen) -> None:
    """Predictions do not depend on what the encoder saw, so nothing is learned."""
    head = specimen.make()
    tokens, mask = _given(specimen, head)
    before = head(tokens, mask)
    for place in range(tokens.patches.shape[1]):
        patches = tokens.patches.clone()
        patches[:, place] = torch.randn_like(patches[:, place])
        after = head(Tokens(patches, tokens.prefix, tokens.index), mask)
        require(
            any(not torch.equal(before[name], after[name]) for name in before),
            f"another token {place} changes no prediction",
            "Read all tokens of the context, or declare only_targets = True.",
        )


@check("heads")
@torch.no_grad()
def predictions_know_their_position(specimen: Specimen) -> None:
    """All hidden patches of an image get the same prediction."""
    head = specimen.make()
    tokens, mask = _given(specimen, head)
    found = head(tokens, mask)
    alike = [name for name, v in found.items() if torch.allclose(v[:, :, :1], v, atol=1e-6)]
    require(
        not alike,
        f"'{', '.join(alike)}' is the same at all targets",
        "Add positions (mimkit.sincos) to what stands for a target.",
    )


@check("heads")
@torch.no_grad()
def predictions_follow_their_positions(specimen: Specimen) -> None:
    """Every patch is compared with the target of another one."""
    head = specimen.make()
    tokens, mask = _given(specimen, head)
    order = torch.randperm(mask.target.shape[2], generator=torch.Generator().manual_seed(0))
    other = moved(mask, mask.target[:, :, order], mask.valid[:, :, order])
    straight = head(tokens, mask)
    mixed = head(specimen.tokens(head, other) if head.only_targets else tokens, other)
    require(
        all(same([v[:, :, order]], [mixed[name]], exactly=False) for name, v in straight.items()),
        "targets in another order do not give the same predictions in that order",
        "Predict at mask.target, in its order.",
    )


@check("heads")
@torch.no_grad()
def predictions_of_an_image_are_its_own(specimen: Specimen) -> None:
    """Images of a batch help each other, and the loss means nothing."""
    head = specimen.make()
    tokens, mask = _given(specimen, head)
    patches = tokens.patches.clone()
    patches[1] = torch.randn_like(patches[1])
    one, other = head(tokens, mask), head(Tokens(patches, tokens.prefix, tokens.index), mask)
    require(
        all(torch.allclose(one[name][0], other[name][0], atol=1e-5) for name in one),
        "other tokens of the second image change the predictions of the first",
        "Mix nothing along the batch.",
    )


@check("heads")
@torch.no_grad()
def padded_positions_are_harmless_if_declared(specimen: Specimen) -> None:
    """With a ragged masker predictions depend on the padding."""
    head = specimen.make()
    if not head.ragged:
        raise NotApplicableError("ragged is False")
    mask = specimen.mask(hides=True, ragged=True)
    places = torch.where(mask.valid, mask.target, SQUARE.num_patches - 1)
    elsewhere = moved(mask, places, mask.valid)
    one = head(specimen.tokens(head, mask), mask)
    other = head(specimen.tokens(head, elsewhere), elsewhere)
    require(
        all(torch.allclose(one[n][mask.valid], other[n][mask.valid], atol=1e-5) for n in one),
        "ragged is True, but other positions in the padding change true predictions",
        "Set ragged = False, or keep targets apart.",
    )


@check("heads")
def every_weight_is_trained(specimen: Specimen) -> None:
    """Processes that train together wait for a gradient that never comes."""
    head = specimen.make()
    tokens, mask = _given(specimen, head)
    patches = tokens.patches.requires_grad_()
    found: dict[str, Tensor] = head(Tokens(patches, tokens.prefix, tokens.index), mask)
    total = sum((value * torch.randn_like(value)).sum() for value in found.values())
    assert isinstance(total, Tensor)
    torch.autograd.backward(total)
    lacking = [n for n, p in head.named_parameters() if p.requires_grad and p.grad is None]
    require(
        not lacking and patches.grad is not None,
        f"no gradient reaches {', '.join(lacking[:3]) or 'the tokens'}",
        "Leave out what no prediction depends on.",
    )
