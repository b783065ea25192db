"""The maps that the plain transformer gives to dense tasks, against timm's."""

import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from mimkit import (
    BoundaryError,
    DenseBackbone,
    Encoder,
    Geometry,
    Grid,
    Level,
    RecipeError,
    dense_blocks,
    sincos,
)
from mimkit.builtin.encoders import ViT

SQUARE, OBLONG = Grid(4, 4, 4), Grid(3, 5, 4)


def vit(grid=SQUARE, **options):
    """A small encoder without any parameter that is 0 or 1 throughout."""
    torch.manual_seed(0)
    defaults = {"embed_dim": 16, "depth": 6, "num_heads": 2}
    encoder = ViT(Geometry(grid), **(defaults | options)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def timms(encoder):
    """timm's model with the encoder's weights."""
    described = encoder.timm_model()
    model = timm.create_model(described.model, **described.options).eval()
    model.load_state_dict(dict(described.tensors))
    return model


def images(grid, batch_size=2):
    return torch.randn(batch_size, 3, *grid.image_size, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------- which blocks


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (1, (0, 0, 0, 0)),
        (2, (0, 0, 0, 1)),
        (4, (0, 1, 2, 3)),
        (6, (1, 2, 3, 5)),
        (12, (3, 5, 7, 11)),
        (24, (7, 11, 15, 23)),
        (32, (10, 15, 20, 31)),
    ],
)
def test_the_blocks_are_those_of_the_papers(depth, blocks):
    assert dense_blocks(depth) == blocks


def test_blocks_never_go_back_and_end_with_the_last():
    for depth in range(1, 100):
        blocks = dense_blocks(depth)
        assert list(blocks) == sorted(blocks)
        assert blocks[0] >= 0
        assert blocks[-1] == depth - 1
        assert len(set(blocks)) == 4 or depth < 6


# ------------------------------------------------------------------------------------------- maps

OPTIONS = [
    {"positions": "learned"},
    {"positions": "sincos", "layer_scale": 0.3},
    {"positions": "sincos_cols", "class_token": False},
    {"positions": "learned", "mask_token": True, "final_norm": "pooled"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("grid", [SQUARE, OBLONG])
def test_maps_are_those_of_timm(options, grid):
    encoder, image = vit(grid, **options), images(grid)
    dense, model = encoder.dense().eval(), timms(encoder)
    with torch.no_grad():
        maps = dense(image)
        last, expected = model.forward_intermediates(
            image, indices=list(dense_blocks(6)), norm=False, output_fmt="NCHW"
        )
    assert dense.levels == (Level(16, 4),) * 4
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    patches = last[:, encoder.num_prefix :].mT.unflatten(2, (grid.rows, grid.cols))
    with torch.no_grad():
        torch.testing.assert_close(dense.features(image), patches, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_features_are_the_encoders_patches_in_their_places(options):
    encoder, image = vit(OBLONG, **options), images(OBLONG)
    dense = encoder.dense().eval()
    with torch.no_grad():
        found, patches = dense.features(image), encoder.features(image).patches
    assert dense.last == Level(16, 4)
    assert found.shape == (2, 16, 3, 5)
    assert torch.equal(found[:, :, 2, 1], patches[:, 2 * 5 + 1])
    assert torch.equal(found.flatten(2).mT, patches)


def test_a_cell_belongs_to_its_place_in_the_image():
    dense, image = vit(OBLONG).dense().eval(), images(OBLONG)
    other = image.clone()
    other[:, :, 4:8, 12:16] += 1  # row 1, column 3
    with torch.no_grad():
        pairs = [*zip(dense(image), dense(other), strict=True)]
        pairs.append((dense.features(image), dense.features(other)))
    for one, two in pairs:
        moved = (one - two).abs().mean(dim=(0, 1))
        assert divmod(int(moved.argmax()), 5) == (1, 3)


def test_layer_scale_is_kept():
    encoder = vit(layer_scale=0.3)
    kept = [block.ls1.gamma for block in encoder.dense().vit.blocks]
    assert all(torch.equal(a, b.ls1.gamma) for a, b in zip(kept, encoder.blocks, strict=True))
    with torch.no_grad():
        before = encoder.dense().eval()(images(SQUARE))[3]
        for block in encoder.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        embedded = encoder.dense().eval()(images(SQUARE))
    assert all(torch.equal(each, embedded[0]) for each in embedded)
    assert not torch.allclose(before, embedded[3])


# ------------------------------------------------------------------------------------ other grids


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("source", "grid"), [(SQUARE, Grid(3, 7, 4)), (OBLONG, Grid(6, 8, 4))])
def test_learned_positions_are_resampled_as_timm_does(source, grid, class_token):
    encoder = vit(source, positions="learned", class_token=class_token)
    table = encoder.dense(grid).vit.pos_embed
    expected = resample_abs_pos_embed(
        encoder.pos_embed,
        [grid.rows, grid.cols],
        [source.rows, source.cols],
        num_prefix_tokens=int(class_token),
    )
    assert torch.equal(table, expected)
    # The whole of timm's network on images of that size, which resamples by itself.
    model, image = timms(encoder), images(grid)
    model.set_input_size(grid.image_size)
    with torch.no_grad():
        found = encoder.dense(grid).eval()(image)
        expected = model.forward_intermediates(
            image, indices=list(dense_blocks(6)), intermediates_only=True, output_fmt="NCHW"
        )
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (2, 16, grid.rows, grid.cols)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", ["rows", "cols"])
def test_fixed_positions_are_made_anew(order):
    encoder = vit(positions="sincos" if order == "rows" else "sincos_cols")
    grid = Grid(3, 7, 4)
    dense = encoder.dense(grid).eval()
    assert torch.equal(dense.vit.pos_embed[0, 1:], sincos(grid, 16, order))
    assert torch.equal(dense.vit.pos_embed[0, :1], encoder.pos_embed[0, :1])
    assert dense(images(grid))[0].shape == (2, 16, 3, 7)


def test_positions_are_those_of_fine_tuning():
    for positions in ("learned", "sincos"):
        encoder, grid = vit(positions=positions), Grid(5, 2, 4)
        tuned = encoder.backbone(grid)
        assert torch.equal(encoder.dense(grid).vit.pos_embed, tuned.vit.pos_embed)


def test_what_does_not_fit_is_told():
    with pytest.raises(RecipeError, match="must be 4 px, but are 8 px"):
        vit().dense(Grid(4, 4, 8))
    dense = vit(Grid(2, 8, 4)).dense()
    # As many patches, which would get the positions of others.
    for call in (dense, dense.features):
        with pytest.raises(
            BoundaryError, match=r"ViT was made for images of 8 x 32 px.* 32 x 8 px"
        ):
            call(images(Grid(8, 2, 4)))


def test_an_encoder_without_maps_says_so():
    class Whole(ViT):
        dense = Encoder.dense

    with pytest.raises(RecipeError, match="Whole gives no maps for segmentation and detection"):
        Whole(Geometry(SQUARE), embed_dim=16, depth=1, num_heads=2).dense()


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("options", OPTIONS)
def test_groups_hold_what_forward_trains_and_nothing_of_the_encoder(options):
    encoder = vit(**options)
    dense = encoder.dense().train()
    groups = dense.layer_groups()
    grouped = [parameter for group in groups for parameter in group]
    trained = {name: p for name, p in dense.named_parameters() if p.requires_grad}
    assert len(groups) == 1 + 6 + 1
    assert groups[-1] == []
    assert sorted(map(id, grouped)) == sorted(map(id, trained.values()))
    assert groups[3] == list(dense.vit.blocks[2].parameters())
    storages = {parameter.data_ptr() for parameter in encoder.parameters()}
    assert not storages & {parameter.data_ptr() for parameter in dense.parameters()}
    sum(each.pow(3).sum() for each in dense(images(SQUARE))).backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    rest = {name for name, _ in dense.named_parameters()} - trained.keys()
    assert rest == (set() if encoder.norm_pools else {"norm.weight", "norm.bias"})


def test_frozen_features_need_no_gradient():
    dense = vit(final_norm="tokens").dense().eval().requires_grad_(False)
    assert not dense.features(images(SQUARE)).requires_grad


def test_stochastic_depth_and_weight_decay_are_those_of_the_blocks():
    dense = vit(positions="learned").dense()
    dense.set_drop_path(0.5)
    rates = [block.drop_path2.drop_prob for block in dense.vit.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert {"vit.cls_token", "vit.pos_embed"} <= dense.no_weight_decay()


def test_a_network_without_stochastic_depth_refuses_it():
    class Plain(DenseBackbone):
        def forward(self, image):
            return (image,)

        def features(self, image):
            return image

        def layer_groups(self):
            return []

    with pytest.raises(RecipeError, match=r"Plain has no stochastic depth.* but is 0\.1"):
        Plain().set_drop_path(0.1)


def test_making_it_leaves_the_encoder_and_the_random_state_alone():
    encoder = vit(mask_token=True, positions="learned")
    before, state = {k: v.clone() for k, v in encoder.state_dict().items()}, torch.get_rng_state()
    encoder.dense(Grid(5, 2, 4))
    assert torch.equal(state, torch.get_rng_state())
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in encoder.parameters())
