"""Heads of segmentation, against those of transformers, and on batches too small for a norm."""

import pytest
import torch
import torch.nn.functional as F
import upernet_oracle

from mimkit import Level, RecipeError
from mimkit.evaluate.conv_norm import BatchNorm, make_norm, require_images
from mimkit.evaluate.upernet import AuxiliaryHead, LinearHead, UPerNet

LEVELS = (Level(8, 4), Level(12, 8), Level(16, 16), Level(20, 32))
SIZES = [(32, 32), (16, 16), (8, 8), (4, 4)]
ODD = [(15, 20), (8, 10), (4, 5), (2, 3)]
NUM_CLASSES = 5


def maps(sizes, batch_size=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch_size, level.channels, *size, generator=generator)
        for level, size in zip(LEVELS, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def theirs():
    """UPerNet's two heads of transformers."""
    transformers = pytest.importorskip("transformers")
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    sizes = {"hidden_size": 24, "auxiliary_channels": 10, "num_labels": NUM_CLASSES}
    config = transformers.UperNetConfig(**sizes)
    channels = [level.channels for level in LEVELS]
    return [
        upernet_oracle.shaken(kind(config, in_channels=channels))
        for kind in (upernet.UperNetHead, upernet.UperNetFCNHead)
    ]


@pytest.mark.parametrize("sizes", [SIZES, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_that_of_transformers(theirs, sizes, training):
    head = UPerNet(LEVELS, NUM_CLASSES, width=24, dropout=0.0)
    head.load_state_dict(upernet_oracle.decode_head(theirs[0]))
    given = maps(sizes, batch_size=4)
    with torch.no_grad():
        found = head.train(training)(given)
        expected = theirs[0].train(training)(given)
    assert found.shape == (4, NUM_CLASSES, *sizes[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("sizes", [SIZES, ODD], ids=["even", "odd"])
def test_its_helper_is_that_of_transformers(theirs, sizes):
    head = AuxiliaryHead(LEVELS, NUM_CLASSES, width=10).eval()
    head.load_state_dict(upernet_oracle.auxiliary_head(theirs[1]))
    with torch.no_grad():
        found, expected = head(maps(sizes)), theirs[1].eval()(maps(sizes))
    assert found.shape == (2, NUM_CLASSES, *sizes[2])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_linear_head_is_one_linear_layer_of_normalised_cells():
    head, x = LinearHead(LEVELS[3], NUM_CLASSES, dropout=0.0).train(), maps(ODD)[3]
    cells = x.permute(0, 2, 3, 1)
    normalised = (cells - cells.mean(dim=(0, 1, 2))) / (
        cells.var(dim=(0, 1, 2), unbiased=False) + 1e-5
    ).sqrt()
    weight, bias = head.classifier.weight[:, :, 0, 0], head.classifier.bias
    expected = F.linear(normalised, weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(head(x), expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------- small batches


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batch_norm_of_one_or_two_pooled_cells_is_refused(batch_size):
    head = UPerNet(LEVELS, NUM_CLASSES, width=24).train()
    with pytest.raises(
        RecipeError, match=f"{batch_size} images with maps of 1 x 1 have {batch_size}"
    ):
        head(maps(SIZES, batch_size))
    assert head.eval()(maps(SIZES, batch_size)).isfinite().all()


def test_what_is_refused_would_say_nothing():
    """Two values, normalised, are 1 and -1 whatever they were, and pass no gradient."""
    x = torch.randn(2, 6, 1, 1, requires_grad=True)
    plain = torch.nn.BatchNorm2d(6)(x)
    torch.testing.assert_close(plain.abs(), torch.ones_like(plain), atol=0.05, rtol=0)
    (gradient,) = torch.autograd.grad((plain * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)).sum(), x)
    three = torch.randn(3, 6, 1, 1, requires_grad=True)
    weights = torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1, 1)
    (passed,) = torch.autograd.grad((BatchNorm(6)(three) * weights).sum(), three)
    assert gradient.abs().median() < 0.01 < passed.abs().median()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_group_norm_trains_every_layer_on_any_number_of_images(batch_size):
    torch.manual_seed(0)
    head = UPerNet(LEVELS, NUM_CLASSES, width=24, norm="group").train()
    head(maps(SIZES, batch_size)).pow(2).mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("channels", [3, 8, 24, 32, 96, 100, 256, 512, 768, 1031])
def test_group_norm_keeps_what_a_map_of_one_cell_says(channels):
    norm = make_norm("group", channels)
    assert norm.num_groups <= 32
    assert channels // norm.num_groups >= min(channels, 16)
    one, other = norm(torch.randn(2, channels, 1, 1))
    assert (one - other).abs().max() > 0.1
    assert len(one.abs().unique()) > 1


def test_a_batch_too_small_for_batch_norm_is_refused_before_training():
    where = "evaluator 'segmentation'"
    for images in (1, 2):
        with pytest.raises(RecipeError, match=f"'segmentation', batch_size: .* but is {images}"):
            require_images("batch", images, where)
        require_images("group", images, where)
    require_images("batch", 3, where)
    with pytest.raises(RecipeError, match="at least 3 channels, but there are 2"):
        make_norm("group", 2)


# ---------------------------------------------------------------------------------- training


def test_dropout_leaves_out_whole_channels_in_training_only():
    head = LinearHead(Level(64, 4), 3, dropout=0.5)
    seen = []
    head.dropout.register_forward_hook(lambda _, __, output: seen.append(output))
    x = 1 + torch.rand(4, 64, 3, 3)
    head.train()(x)
    out = seen[0].eq(0).flatten(2)
    assert torch.equal(out.any(dim=2), out.all(dim=2))
    assert 0.3 < out.float().mean() < 0.7
    assert torch.equal(head.eval()(x), head(x))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_it_learns_which_cells_belong_to_which_class(norm):
    """A map whose first channel tells the class of each cell, which the other maps do not."""
    torch.manual_seed(0)
    classes = torch.randint(3, (4, 1, 8, 8))
    given = [torch.randn(4, level.channels, 8 >> i, 8 >> i) for i, level in enumerate(LEVELS)]
    given[0][:, :1] = classes.float() - 1
    head = UPerNet(LEVELS, 3, width=16, norm=norm, dropout=0.0).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(given), classes[:, 0])
        loss.backward()
        optimizer.step()
    assert (head.eval()(given).argmax(dim=1) == classes[:, 0]).float().mean() > 0.9
