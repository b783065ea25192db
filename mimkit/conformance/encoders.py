"""Checks of encoders."""

import torch
from torch import Tensor

from mimkit.conformance.checks import NotApplicableError, check, require
from mimkit.conformance.specimen import OBLONG, SQUARE, Specimen, cells_of, same, with_noise_at
from mimkit.errors import BoundaryError, RecipeError
from mimkit.parts.encoder import Encoder
from mimkit.parts.patches import take
from mimkit.parts.records import Mask, Tokens


def _values(tokens: Tokens) -> list[Tensor]:
    return [tokens.patches, tokens.prefix]


@torch.no_grad()
def _dropped(specimen: Specimen, encoder: Encoder) -> tuple[Mask, Tokens]:
    """Encodes some patches alone.

    Raises: NotApplicableError if the encoder must see all.
    """
    mask = specimen.mask(hides=False)
    try:
        return mask, encoder(specimen.image(), mask.context)
    except BoundaryError as error:
        raise NotApplicableError(f"does not drop patches: {error}") from error


@check("encoders", gate=True)
def tokens_have_the_declared_width(specimen: Specimen) -> None:
    """No head fits it, or training fails in its first step."""
    encoder = specimen.make()
    tokens = encoder(specimen.image())
    want = (2, SQUARE.num_patches, encoder.embed_dim)
    require(
        tuple(tokens.patches.shape) == want,
        f"the patches' tokens have shape {tuple(tokens.patches.shape)}, but must have {want} for "
        f"2 images of {SQUARE.num_patches} patches and embed_dim = {encoder.embed_dim}",
        "Set embed_dim to the width of its tokens.",
    )
    require(
        tokens.prefix.ndim == 3 and tokens.prefix.shape[::2] == (2, encoder.embed_dim),
        f"the prefix has shape {tuple(tokens.prefix.shape)}, but must be (2, R, "
        f"{encoder.embed_dim})",
        "Give an empty prefix, patches[:, :0], if there is no class token.",
    )
    require(
        torch.equal(tokens.index, torch.arange(SQUARE.num_patches).expand(2, -1)),
        "without a context the index must be that of all patches in order",
        "index = torch.arange(num_patches).expand(batch_size, -1)",
    )


@check("encoders")
def tokens_follow_the_context(specimen: Specimen) -> None:
    """A head reads the tokens of other patches than it thinks."""
    encoder = specimen.make()
    mask, tokens = _dropped(specimen, encoder)
    require(
        torch.equal(tokens.index, mask.context) and tokens.patches.shape[1] == 10,
        "the index must be the context, with one token for each of its patches",
        "Return index=context.",
    )
    changed = cells_of(mask.context[:, :1], SQUARE)
    with torch.no_grad():
        after = encoder(with_noise_at(specimen.image(), changed, SQUARE), mask.context)
    moved = (after.patches - tokens.patches).abs().amax(dim=(0, 2))
    require(
        bool(moved[0] == moved.max()),
        "other pixels in the first patch of the context move another token most",
        "Keep the order of the context.",
    )


@check("encoders")
def dropped_patches_have_no_influence(specimen: Specimen) -> None:
    """What must be predicted leaks into the tokens, and the loss means nothing."""
    encoder = specimen.make()
    mask, tokens = _dropped(specimen, encoder)
    absent = ~cells_of(mask.context, SQUARE)
    with torch.no_grad():
        after = encoder(with_noise_at(specimen.image(), absent, SQUARE), mask.context)
    require(
        same(_values(tokens), _values(after)),
        "other pixels in patches outside of the context change the tokens",
        "Pick the context before anything mixes patches.",
    )


@check("encoders")
@torch.no_grad()
def hidden_patches_have_no_influence(specimen: Specimen) -> None:
    """What must be predicted leaks into the tokens, and the loss means nothing."""
    encoder = specimen.make()
    if not encoder.takes_hidden:
        raise NotApplicableError("takes_hidden is False")
    mask = specimen.mask(hides=True)
    before = encoder(specimen.image(), mask.context, mask.hidden)
    noisy = with_noise_at(specimen.image(), mask.hidden, SQUARE)
    after = encoder(noisy, mask.context, mask.hidden)
    require(
        same(_values(before), _values(after)),
        "other pixels in hidden patches change the tokens",
        "Put the mask token in place of a hidden patch before anything mixes patches.",
    )
    shown = encoder(specimen.image(), mask.context)
    require(
        not same(_values(before), _values(shown)),
        "hiding patches changes nothing",
        "Use 'hidden', or declare takes_hidden = False.",
    )


@check("encoders")
@torch.no_grad()
def images_do_not_influence_each_other(specimen: Specimen) -> None:
    """Accuracies depend on which images happen to share a batch."""
    encoder = specimen.make()
    image = specimen.image()
    other = image.clone()
    other[1] = specimen.image(seed=9)[1]
    one, two = encoder(image), encoder(other)
    require(
        torch.equal(one.patches[0], two.patches[0]),
        "in evaluation mode another second image changes the tokens of the first",
        "Take no statistics over the batch in evaluation mode.",
    )


@check("encoders")
@torch.no_grad()
def every_visible_patch_is_read(specimen: Specimen) -> None:
    """Part of each image is never learned from."""
    encoder = specimen.make()
    image = specimen.image()
    before = encoder(image).patches
    for cell in range(SQUARE.num_patches):
        changed = torch.zeros(2, SQUARE.num_patches, dtype=torch.bool)
        changed[:, cell] = True
        after = encoder(with_noise_at(image, changed, SQUARE)).patches
        require(
            not torch.equal(before[:, cell], after[:, cell]),
            f"other pixels in patch {cell} do not change its token",
            "Embed every patch of the image.",
        )


@check("encoders")
def every_parameter_is_trained(specimen: Specimen) -> None:
    """Processes that train together wait for a gradient that never comes."""
    encoder = specimen.make()
    if encoder.takes_hidden:
        mask = specimen.mask(hides=True)
        tokens = encoder(specimen.image(), mask.context, mask.hidden)
    else:
        tokens = encoder(specimen.image())
    total = sum((value * torch.randn_like(value)).sum() for value in _values(tokens))
    assert isinstance(total, Tensor)
    torch.autograd.backward(total)
    lacking = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    require(
        not lacking,
        f"no gradient reaches {', '.join(lacking[:3])}",
        "Leave out what the tokens do not depend on, or set requires_grad = False for it.",
    )


@check("encoders")
@torch.no_grad()
def places_and_layers_agree_with_forward(specimen: Specimen) -> None:
    """Pre-training and probes look at different features."""
    encoder = specimen.make()
    everywhere = torch.arange(SQUARE.num_patches).expand(2, -1)
    wanted = torch.tensor([[0, 3, 9], [6, 6, 15]])
    whole = encoder(specimen.image(), everywhere)
    some = encoder.at(specimen.image(), everywhere, None, wanted)
    require(
        same([take(whole.patches, wanted)], [some.patches], exactly=False)
        and torch.equal(some.index, wanted),
        "'at' gives other tokens than 'forward' at the same places",
        "Compute in 'at' what 'forward' computes, or leave it out.",
    )
    features, last = encoder.features(specimen.image()), encoder.layers(specimen.image())[-1]
    require(
        same(_values(features), _values(last)),
        "the last of 'layers' must be what 'features' gives",
        "Override both, or neither.",
    )


@check("encoders")
def its_backbone_starts_from_it(specimen: Specimen) -> None:
    """Fine-tuning starts from random weights, or changes the pre-trained encoder."""
    encoder = specimen.make()
    backbone = encoder.backbone().eval()
    with torch.no_grad():
        before = backbone(specimen.image())
        shape = (2, backbone.num_features)
        require(
            tuple(before.shape) == shape,
            f"its backbone gives {tuple(before.shape)}, but must give {shape}",
            "Set num_features to the width of its output.",
        )
        groups = [parameter for group in backbone.layer_groups() for parameter in group]
        own = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        require(
            sorted(map(id, groups)) == sorted(map(id, own)),
            "layer_groups must list every trained parameter of the backbone once",
            "Add what is lacking to a group: it would not be trained.",
        )
        kept = [parameter.clone() for parameter in encoder.parameters()]
        for parameter in backbone.parameters():
            parameter.add_(0.1)
        require(
            same(kept, list(encoder.parameters())),
            "changing its backbone changes the encoder",
            "Copy the weights (copy.deepcopy).",
        )
        for parameter in encoder.parameters():
            parameter.mul_(1.5).add_(0.05)
        after = encoder.backbone().eval()(specimen.image())
    require(
        not same([before], [after], exactly=False),
        "with other weights in the encoder its backbone computes the same",
        "Load the encoder's weights into the backbone.",
    )


@check("encoders")
def a_foreign_grid_is_refused_or_works(specimen: Specimen) -> None:
    """Fine-tuning at another resolution fails with an error that nobody understands."""
    encoder = specimen.make()
    grid = SQUARE.__class__(6, 6, SQUARE.patch_size)
    try:
        backbone = encoder.backbone(grid).eval()
    except RecipeError as error:
        raise NotApplicableError(f"refuses another grid: {error}") from error
    with torch.no_grad():
        found = backbone(specimen.image(grid))
    require(
        tuple(found.shape) == (2, backbone.num_features),
        f"for another grid its backbone gives {tuple(found.shape)}",
        "Resample positions for the grid that backbone(grid) is given.",
    )


@check("encoders")
@torch.no_grad()
def weights_of_another_grid_fit(specimen: Specimen) -> None:
    """A run cannot start from weights that were trained at another size."""
    encoder = specimen.make()
    try:
        other = specimen.make(OBLONG, seed=1).state_dict()
    except RecipeError as error:
        raise NotApplicableError(f"refuses a grid of 3 x 5: {error}") from error
    own = encoder.state_dict()
    moved = encoder.regrid(other, OBLONG)
    strange = [name for name in moved if name not in own]
    unlike = [name for name in moved.keys() & own.keys() if moved[name].shape != own[name].shape]
    require(
        not strange and not unlike,
        f"weights of a grid of 3 x 5 patches, regridded, do not fit one of 4 x 4: "
        f"{', '.join(sorted(strange + unlike)[:3])}",
        "Resample in 'regrid' what belongs to the grid, or leave it out.",
    )
    encoder.load_state_dict(dict(moved), strict=False)
    require(
        all(value.isfinite().all() for value in specimen.outcome(encoder)),
        "with weights of another grid its tokens are not finite",
        "Resample learned positions; leave out what is made for the grid.",
    )
