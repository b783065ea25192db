"""Pixel and latent targets."""

import copy

import pytest
import torch
from torch import nn

from mimkit import Backbone, Encoder, Geometry, Mask, RecipeError, Tokens, Width, patchify, take
from mimkit.builtin.encoders import ViT
from mimkit.builtin.maskers import RandomMasker
from mimkit.builtin.targets import Latent, Pixels


@pytest.fixture
def batch(geometry, make_batch):
    masker = RandomMasker(geometry, mask_ratio=0.25)
    return make_batch(masker.sample(2, torch.Generator().manual_seed(0)))


@pytest.fixture
def encoder(geometry) -> ViT:
    torch.manual_seed(0)
    return ViT(geometry, embed_dim=16, depth=1, num_heads=2)


@pytest.fixture
def grouped(grid, make_batch):
    """Two overlapping groups of two targets."""
    context = torch.tensor([[0, 1, 2], [3, 4, 5]])
    target = torch.tensor([[[8, 9], [9, 10]], [[12, 13], [14, 15]]])
    valid = torch.ones_like(target, dtype=torch.bool)
    return make_batch(Mask(grid, context, torch.zeros_like(context).bool(), target, valid))


class Counting(Encoder):
    """Says for each patch how many patches entered with it, and whether it was in training."""

    embed_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, image, context=None, hidden=None):
        if context is None:
            context = torch.arange(16).expand(image.shape[0], -1)
        values = torch.tensor([context.shape[1], int(self.training)]) * self.scale
        patches = values.expand(*context.shape, 2)
        return Tokens(patches, patches[:, :0], context)

    def backbone(self) -> Backbone:
        raise NotImplementedError


# ---------------------------------------------------------------------------------------- pixels


def test_pixels_are_ordered_by_row_column_channel(geometry, batch, encoder):
    target = Pixels(geometry, normalize=False)
    pixels = target(batch, encoder)
    assert target.width == Width("vector", 4 * 4 * 3)
    position = batch.mask.target[1, 0, 2]
    row, col = divmod(int(position), 4)
    patch = batch.image[1, :, row * 4 : row * 4 + 4, col * 4 : col * 4 + 4]
    assert torch.equal(pixels[1, 0, 2], patch.permute(1, 2, 0).flatten())


def test_normalised_pixels_have_mean_0_and_unbiased_deviation_1_per_patch(geometry, batch, encoder):
    pixels = Pixels(geometry)(batch, encoder)
    torch.testing.assert_close(pixels.mean(-1), torch.zeros(2, 1, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels.std(-1), torch.ones(2, 1, 4), atol=1e-5, rtol=0)


def test_a_flat_patch_normalises_to_zero(geometry, batch, encoder):
    batch.image.fill_(0.3)
    assert Pixels(geometry)(batch, encoder).abs().max() < 1e-3


@pytest.mark.parametrize("normalize", [True, False])
def test_rendering_the_right_pixels_gives_the_image_back(geometry, batch, encoder, normalize):
    target = Pixels(geometry, normalize=normalize)
    [picture] = target.render(target(batch, encoder), batch)
    torch.testing.assert_close(picture.image, batch.image, atol=1e-5, rtol=1e-5)


def test_rendering_changes_the_targets_only(geometry, batch, encoder):
    target = Pixels(geometry)
    [picture] = target.render(target(batch, encoder) + 1, batch)
    changed = (patchify(picture.image, 4) - patchify(batch.image, 4)).abs().amax(dim=(2, 3, 4))
    assert take(changed, batch.mask.target).gt(0.1).all()
    assert take(changed, batch.mask.context).eq(0).all()


# ---------------------------------------------------------------------------------------- latent


def test_targets_see_the_targets_only(geometry, batch, encoder):
    latent = Latent(geometry)(batch, encoder)
    expected = encoder(batch.image, batch.mask.target[:, 0]).patches
    assert torch.equal(latent[:, 0], expected)
    assert Latent(geometry).width == Width("vector", 16)


def test_all_sees_the_whole_image(geometry, batch, encoder):
    latent = Latent(geometry, sees="all")(batch, encoder)
    assert torch.equal(latent, take(encoder(batch.image).patches, batch.mask.target))


def test_each_group_is_encoded_on_its_own(geometry, grouped, encoder):
    latent = Latent(geometry)(grouped, encoder)
    assert latent.shape == (2, 2, 2, 16)
    for group in range(2):
        alone = encoder(grouped.image, grouped.mask.target[:, group]).patches
        torch.testing.assert_close(latent[:, group], alone, atol=1e-5, rtol=1e-5)
    assert Latent(geometry)(grouped, Counting())[..., 0].eq(2).all()


def test_only_a_pass_over_everything_stands_padding(geometry):
    assert Latent(geometry, sees="all").ragged
    assert not Latent(geometry, sees="targets").ragged


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_flows_only_if_asked_for(geometry, batch, encoder, detach):
    latent = Latent(geometry, detach=detach)(batch, encoder)
    assert latent.requires_grad == (not detach)


def test_no_gradient_flows_under_no_grad(geometry, batch, encoder):
    with torch.no_grad():
        assert not Latent(geometry, detach=False)(batch, encoder).requires_grad


@pytest.mark.parametrize("momentum", [None, 0.5])
@pytest.mark.parametrize("eval_mode", [True, False])
def test_eval_mode_holds_for_this_pass_alone(geometry, batch, momentum, eval_mode):
    encoder = Counting().train()
    target = Latent(geometry, momentum=momentum, eval_mode=eval_mode).train()
    target.bind(encoder)
    assert target(batch, encoder)[..., 1].eq(int(not eval_mode)).all()
    assert encoder.training
    assert target.training


def test_norm_gives_each_target_mean_0_and_deviation_1(geometry, batch, encoder):
    latent = Latent(geometry, norm=True)(batch, encoder)
    torch.testing.assert_close(latent.mean(-1), torch.zeros(2, 1, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.var(-1, correction=0), torch.ones(2, 1, 4), atol=1e-3, rtol=0)


def test_without_a_teacher_nothing_is_registered(geometry, encoder):
    target = Latent(geometry)
    target.bind(encoder)
    assert not target.state_dict()


def test_the_teacher_starts_equal_needs_no_gradient_and_is_in_the_state(geometry, batch, encoder):
    target = Latent(geometry, momentum=0.5)
    target.bind(encoder)
    assert torch.equal(
        target(batch, encoder), encoder(batch.image, batch.mask.target[:, 0]).patches[:, None]
    )
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert {f"teacher.{name}" for name in encoder.state_dict()} == set(target.state_dict())


def test_the_teacher_moves_by_a_momentum_that_rises_to_one(geometry):
    encoder = Counting()
    target = Latent(geometry, momentum=0.5)
    target.bind(encoder)
    with torch.no_grad():
        encoder.scale.fill_(2.0)
        encoder.count.fill_(7)
    target.after_step(encoder, progress=0.0)
    assert target.teacher.scale.item() == pytest.approx(1.5)
    assert target.teacher.count.item() == 7
    target.after_step(encoder, progress=0.5)  # momentum 0.75
    assert target.teacher.scale.item() == pytest.approx(1.625)
    before = copy.deepcopy(target.teacher.scale)
    target.after_step(encoder, progress=1.0)
    assert torch.equal(target.teacher.scale, before)


def test_with_lag_the_teacher_is_the_encoder_of_one_step_earlier(geometry):
    encoder = Counting()
    target = Latent(geometry, lag=True)
    target.bind(encoder)
    seen = []
    for step in range(1, 4):  # the encoder is 1 in step 1, 2 in step 2, ...
        seen.append((encoder.scale.item(), target.teacher.scale.item()))
        with torch.no_grad():
            encoder.scale.fill_(step + 1)
            encoder.count.fill_(step)
        target.after_step(encoder, progress=step / 3)
    assert seen == [(1, 1), (2, 1), (3, 2)]
    assert target.teacher.count.item() == 2
    assert {"teacher.scale", "next_teacher.scale"} <= set(target.state_dict())  # resuming needs it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.9, "detach": False}, "detach: must be true with a teacher"),
        ({"lag": True, "detach": False}, "is false with lag = true"),
        ({"lag": True, "momentum": 0.9}, "lag: must be false with a moving average"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Latent(Geometry(grid=None, embed_dim=2), **options)
