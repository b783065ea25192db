"""Encoder `timm` computes what the model of timm does, and lets patches be dropped or hidden."""

import json
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn

import mimkit
from mimkit import BoundaryError, Geometry, Grid, Mask, RecipeError
from mimkit.builtin.encoders import ViT
from mimkit.builtin.timm.encoder import TimmEncoder
from mimkit.conformance.examine import Examination, checks_of
from mimkit.pipeline.exporting import export_run
from mimkit.recipe.registry import find

GRID = Grid(3, 5, 8)
MODELS = (
    "test_vit",  # a class token
    "test_vit3",  # pooling by attention, layer scale
    "test_vit4",  # another form of block
    "vit_wee_patch16_reg1_gap_256",  # a register token, positions of the patches alone
    "test_resnet",
    "resnet10t",  # another stem
)


def made(name: str, grid: Grid = GRID, **options) -> tuple[TimmEncoder, torch.nn.Module]:
    """The encoder, and a model that timm makes and that has the same weights."""
    torch.manual_seed(0)
    encoder = TimmEncoder(Geometry(grid), model=name, **options).eval()
    with torch.no_grad():  # nothing is left at the zero or the one that it starts with
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    said = encoder.timm_model()
    model = timm.create_model(said.model, **said.options).eval()
    model.load_state_dict(dict(said.tensors), strict=True)
    return encoder, model


def images(grid: Grid = GRID, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, *grid.image_size, generator=torch.Generator().manual_seed(seed))


def assert_close(one, other):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_pooling_and_maps_are_those_of_timm(name):
    encoder, model = made(name)
    image = images()
    theirs = model.forward_features(image)
    tokens = encoder.features(image)
    if theirs.ndim == 4:
        assert_close(tokens.patches, theirs.flatten(2).mT)
    else:
        assert_close(torch.cat([tokens.prefix, tokens.patches], dim=1), theirs)
    assert_close(encoder.backbone().eval()(image), model(image))
    dense = encoder.dense().eval()
    maps = model.forward_intermediates(image, indices=None, intermediates_only=True)
    if theirs.ndim == 4:
        for mine, other in zip(dense(image), maps[-4:], strict=True):
            assert_close(mine, other)
    else:
        assert_close(dense(image)[-1], maps[-1])
        assert_close(dense.features(image).flatten(2).mT, tokens.patches)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_every_check_of_encoders_passes(name, monkeypatch, tmp_path):
    monkeypatch.setattr(TimmEncoder, "miniature", {"model": name, "mask_token": True})
    entry = find("encoders", "mimkit:timm")
    examination = Examination(entry, tmp_path, raises=True)
    verdicts = [examination.make(check) for check in checks_of(entry)]
    assert not [each for each in verdicts if each.outcome in ("failed", "not run")]
    assert sum(each.outcome == "passed" for each in verdicts) > 20


@torch.no_grad()
def test_it_is_encoder_vit_where_both_can_be_the_same_model():
    encoder, _ = made("test_vit", mask_token=True)
    tensors = dict(encoder.timm_model().tensors)
    tensors["mask_token"] = encoder.encoder.mask_token
    options = {"embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3.0}
    vit = ViT(Geometry(GRID), positions="learned", mask_token=True, **options).eval()
    vit.load_state_dict(tensors, strict=True)
    masked = torch.rand(2, GRID.num_patches).argsort(1) < 6
    for mask in (Mask.drop(masked, GRID), Mask.replace(masked, GRID)):
        mine = encoder(images(), mask.context, mask.hidden)
        other = vit(images(), mask.context, mask.hidden)
        assert_close(mine.patches, other.patches)
        assert_close(mine.prefix, other.prefix)
    assert_close(encoder.attention(images()), vit.attention(images()))


@pytest.mark.parametrize("name", ["test_vit", "vit_wee_patch16_reg1_gap_256"])
@torch.no_grad()
def test_weights_of_another_size_are_resampled_as_timm_does(name):
    """Outside truth: what timm makes of a file when it loads it into a model of another size."""
    before, old = made(name, Grid(4, 4, 16))
    after, new = made(name, Grid(3, 5, 8))
    theirs = checkpoint_filter_fn(dict(old.state_dict()), new)
    moved = after.regrid(before.state_dict(), Grid(4, 4, 16))
    mine = {n.removeprefix("encoder.model."): tensor for n, tensor in moved.items()}
    assert mine.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(mine[key], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_smal_patch16_224", "Did you mean 'vit_small_patch16_224'"),
        ("swin_tiny_patch4_window7_224", "'swin_tiny_patch4_window7_224' is neither"),
        ("deit_tiny_distilled_patch16_224", "is neither"),
        ("vit_tiny_r_s16_p8_224", "neither|cannot be made"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(name, reason):
    with pytest.raises(RecipeError, match=reason):
        TimmEncoder(Geometry(GRID), model=name)


def test_a_resnet_that_should_drop_patches_says_what_to_do():
    encoder, _ = made("test_resnet")
    with pytest.raises(BoundaryError, match="Use a masker that replaces patches"):
        encoder(images(), torch.tensor([[0, 1], [2, 3]]))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_run_trains_it_and_is_exported_for_timm(name, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = f'encoder={{part="timm", model="{name}", mask_token=true, drop_path=0.1}}'
    run = mimkit.run(
        tiny, settings=[part, "train.total_steps=2", "evaluate=[{part='knn', k=5}]"], device="cpu"
    )
    export_run(run, "timm", Path("out.safetensors"), Console(quiet=True))
    about = json.loads(Path("out.json").read_text())
    assert about["model"] == name
    model = timm.create_model(about["model"], **about["options"]).eval()
    model.load_state_dict(load_file("out.safetensors"), strict=True)
    image = images(Grid(4, 4, 4))
    encoder = mimkit.load_encoder(run).encoder
    with torch.no_grad():
        assert_close(encoder.backbone().eval()(image), model(image))
