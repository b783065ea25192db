"""Checks of what encoders give to dense tasks."""

import torch
from einops import rearrange
from torch import Tensor

from mimkit.conformance.checks import NotApplicableError, check, require
from mimkit.conformance.specimen import OBLONG, SQUARE, Specimen, same, with_noise_at
from mimkit.errors import RecipeError
from mimkit.parts.dense import DenseBackbone, Level
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Grid


def _dense(encoder: Encoder) -> DenseBackbone:
    """Makes the network for the grid of pre-training; parts of it that are new always the same.

    Raises: NotApplicableError if there is none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            return encoder.dense().eval()
        except RecipeError as error:
            raise NotApplicableError(f"has none: {error}") from error


def _maps(dense: DenseBackbone, image: Tensor) -> list[tuple[Level, Tensor]]:
    """Gives all maps, that of `features` last, each with what is declared of it."""
    levels = (*dense.levels, dense.last)
    return list(zip(levels, (*dense(image), dense.features(image)), strict=True))


def _places(level: Level, grid: Grid) -> tuple[int, ...]:
    """Rows and columns of a map; a rest of the image may have cells of its own."""
    return tuple(-(-side // level.stride) for side in grid.image_size)


@check("encoders")
@torch.no_grad()
def dense_maps_are_as_declared(specimen: Specimen) -> None:
    """Heads for segmentation and detection are built for maps of another width or size."""
    dense, image = _dense(specimen.make()), specimen.image()
    count = len(dense(image))
    require(
        count == len(dense.levels) > 0,
        f"its dense network gives {count} maps, but declares {len(dense.levels)} levels",
        "Declare one Level for each map that forward gives.",
    )
    for level, found in _maps(dense, image):
        want = (2, level.channels, *_places(level, SQUARE))
        require(
            tuple(found.shape) == want,
            f"a map of its dense network has shape {tuple(found.shape)}, but {level} promises "
            f"{want} for 2 images of {' x '.join(map(str, SQUARE.image_size))} px",
            "Give 'levels' and 'last' the channels and strides of what forward and features give.",
        )


@check("encoders")
@torch.no_grad()
def dense_features_are_the_encoders(specimen: Specimen) -> None:
    """A frozen probe of segmentation judges other features than those that were learned."""
    encoder = specimen.make()
    dense = _dense(encoder)
    found = rearrange(dense.features(specimen.image()), "b d rows cols -> b (rows cols) d")
    require(
        same([encoder.features(specimen.image()).patches], [found], exactly=False),
        "'features' of its dense network are not the patches of Encoder.features, row by row",
        "Apply the closing norm, if Encoder.features does, and keep the order of the patches.",
    )


@check("encoders")
@torch.no_grad()
def dense_maps_lie_in_place(specimen: Specimen) -> None:
    """Every object is looked for where it is not."""
    dense, image = _dense(specimen.make()), specimen.image()
    marked = torch.zeros(SQUARE.rows, SQUARE.cols, dtype=torch.bool)
    marked[: SQUARE.rows // 2, SQUARE.cols // 2 :] = True
    other = with_noise_at(image, marked.flatten().expand(len(image), -1), SQUARE)
    for before, after in zip(dense(image), dense(other), strict=True):
        rows, cols = before.shape[-2:]
        if rows < SQUARE.rows:  # a cell so large sees most of so small an image
            continue
        moved = (after - before).abs().mean(dim=(0, 1))  # (rows, cols)
        halves = [piece.tensor_split(2, dim=1) for piece in moved.tensor_split(2)]
        upper_left, upper_right = (float(piece.mean()) for piece in halves[0])
        lower_left, lower_right = (float(piece.mean()) for piece in halves[1])
        require(
            upper_right > max(upper_left, lower_left, lower_right),
            f"other pixels in the upper right quarter do not change that quarter most in its map "
            f"of {rows} x {cols}",
            "Patch i belongs to row i // cols and column i % cols.",
        )


@check("encoders")
@torch.no_grad()
def dense_starts_from_the_encoder(specimen: Specimen) -> None:
    """Dense tasks start from random weights, or change the pre-trained encoder."""
    encoder = specimen.make()
    dense, image = _dense(encoder), specimen.image()
    before = dense(image)
    kept = [parameter.clone() for parameter in encoder.parameters()]
    for parameter in dense.parameters():
        parameter.add_(0.1)
    require(
        same(kept, list(encoder.parameters())),
        "changing its dense network changes the encoder",
        "Copy the weights (copy.deepcopy).",
    )
    for parameter in encoder.parameters():
        parameter.mul_(1.5).add_(0.05)
    require(
        not any(same([a], [b]) for a, b in zip(before, _dense(encoder)(image), strict=True)),
        "with other weights in the encoder its dense network gives the same map",
        "Load the encoder's weights into the network.",
    )


@check("encoders")
def dense_groups_hold_what_is_trained(specimen: Specimen) -> None:
    """Part of the network is not trained, or processes that train together wait for ever."""
    dense = _dense(specimen.make())
    listed = [parameter for group in dense.layer_groups() for parameter in group]
    trained = {name: p for name, p in dense.named_parameters() if p.requires_grad}
    require(
        sorted(map(id, listed)) == sorted(map(id, trained.values())),
        "layer_groups must list every trained parameter of the dense network once",
        "Add what is lacking to a group: it would not be trained.",
    )
    total = sum((each * torch.randn_like(each)).sum() for each in dense(specimen.image()))
    assert isinstance(total, Tensor)
    torch.autograd.backward(total)
    lacking = [name for name, parameter in trained.items() if parameter.grad is None]
    require(
        not lacking,
        f"no gradient of its dense network's maps reaches {', '.join(lacking[:3])}",
        "Set requires_grad = False for what forward does not use, and leave it out of the groups.",
    )


@check("encoders")
@torch.no_grad()
def dense_takes_or_refuses_oblong_grids(specimen: Specimen) -> None:
    """Images that are not square fail with an error that nobody understands."""
    encoder = specimen.make()
    _dense(encoder)
    try:
        dense = encoder.dense(OBLONG).eval()
    except RecipeError as error:
        require(
            specimen.entry.name in str(error) or specimen.cls.__name__ in str(error),
            f"the refusal of an oblong grid does not say whose it is: {error}",
            f"Begin it with: encoder '{specimen.entry.name}'",
        )
        raise NotApplicableError(f"refuses an oblong grid: {error}") from error
    image = specimen.image(OBLONG)
    for level, found in _maps(dense, image):
        want = _places(level, OBLONG)
        require(
            tuple(found.shape[-2:]) == want,
            f"for an oblong grid its dense network gives a map of {tuple(found.shape[-2:])}, but "
            f"a stride of {level.stride} makes {want}",
            "Resample positions for the grid that dense(grid) is given.",
        )
