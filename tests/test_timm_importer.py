"""Weights of timm's own transformers, under every wrapper, give the features of timm."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from mimkit import DataError, Geometry, Grid, import_vit, sincos, sincos_grid
from mimkit.builtin.encoders import ViT
from mimkit.builtin.importers import TimmImporter
from mimkit.cli import app
from mimkit.pipeline.exporting import export_run
from mimkit.pipeline.importing import import_run
from mimkit.train.encoder_file import load_encoder

FILE = Path("x.pth")
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1}
FORMS = {
    "plain": {},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "mean of the normed": {"global_pool": "avg", "fc_norm": False},
    "norm of the mean": {"global_pool": "avg"},
    "positions of patches alone": {"no_embed_class": True},
    "layer scale": {"init_values": 0.1},
    "classifier": {"num_classes": 5},
    "narrow MLP": {"mlp_ratio": 1.37},
    "wide heads": {"embed_dim": 80},
    "three heads": {"embed_dim": 192, "num_heads": 3},
    "sixteen wide heads": {"embed_dim": 1280, "num_heads": 16, "depth": 1, "mlp_ratio": 0.1},
    "other patches": {"patch_size": 2, "img_size": 8},
    "one block": {"depth": 1},
}


def timm_vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**({"num_classes": 0} | SMALL | options)).eval()
    with torch.no_grad():  # nothing is left at the zero or the one that it starts with
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def rebuilt(found) -> ViT:
    data = found.settings["data"]
    rows, cols = (size // data["patch_size"] for size in data["image_size"])
    options = dict(found.settings["encoder"])
    assert options.pop("part") == "vit"
    encoder = ViT(Geometry(Grid(rows, cols, data["patch_size"])), **options)
    encoder.load_state_dict(dict(found.encoder), strict=True)
    return encoder.eval()


def features(encoder: ViT, image: torch.Tensor) -> torch.Tensor:
    tokens = encoder.features(image)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_features_are_those_of_timm(form, tmp_path):
    model = timm_vit(**FORMS[form])
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    found = TimmImporter().read(tmp_path / "x.pth")
    encoder = rebuilt(found)
    side = found.settings["data"]["image_size"][0]
    image = torch.randn(2, 3, side, side)
    theirs = model.forward_features(image)
    torch.testing.assert_close(features(encoder, image), theirs, atol=1e-5, rtol=1e-5)
    if "global_pool" in FORMS[form]:
        pooled = model.forward_head(theirs, pre_logits=True)
        torch.testing.assert_close(encoder.backbone()(image), pooled, atol=1e-5, rtol=1e-5)
    assert any("how pixels were normalised" in note for note in found.notes)
    assert any("number of heads" in note for note in found.notes)
    assert any("head.weight" in note for note in found.notes) == (form == "classifier")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors},
        lambda tensors: {"state_dict": {f"model.{k}": v for k, v in tensors.items()}},
        lambda tensors: {
            "teacher": {f"module.backbone.{k}": v for k, v in tensors.items()}
            | {"module.head.mlp.0.weight": torch.ones(2)},
            "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in tensors.items()},
        },
        lambda tensors: {f"_orig_mod.{k}": v.bfloat16().float() for k, v in tensors.items()},
        lambda tensors: {
            "model_state_dict": {f"module._orig_mod.backbone.{k}": v for k, v in tensors.items()}
        },
    ],
    ids=["plain", "Lightning", "teacher and student", "compiled", "all at once"],
)
@torch.no_grad()
def test_whatever_wraps_the_weights(wrap, tmp_path):
    model = timm_vit()
    model.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    torch.save(wrap(model.state_dict()), tmp_path / "x.pth")
    encoder, image = rebuilt(TimmImporter().read(tmp_path / "x.pth")), torch.randn(2, 3, 16, 16)
    expected = model.forward_features(image)
    torch.testing.assert_close(features(encoder, image), expected, atol=1e-5, rtol=1e-5)


def test_a_mask_token_is_kept(tmp_path):
    token = torch.randn(1, 64)  # as DINOv2 has it
    found = import_vit(timm_vit().state_dict() | {"mask_token": token}, FILE)
    encoder = rebuilt(found)
    assert encoder.takes_hidden
    assert torch.equal(encoder.mask_token[0], token)


# ------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("grid", [Grid(4, 4, 4), Grid(3, 5, 4), Grid(14, 14, 16)])
@pytest.mark.parametrize("first", ["rows", "cols"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_fixed_positions_tell_the_grid(grid, first, kind):
    table = sincos(grid, 64, first).to(kind).float()
    assert sincos_grid(table, grid.patch_size) == (grid, first)
    assert sincos_grid(table + 0.02, grid.patch_size) is None
    assert sincos_grid(torch.randn(16, 64), 4) is None
    assert sincos_grid(torch.randn(16, 6), 4) is None


@pytest.mark.parametrize("first", ["rows", "cols"])
@torch.no_grad()
def test_fixed_positions_stay_fixed_and_are_made_anew_at_another_size(first):
    tensors = timm_vit().state_dict()
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 64), sincos(Grid(4, 4, 4), 64, first)])[None]
    found = import_vit(tensors, FILE)
    assert (
        found.settings["encoder"]["positions"] == {"rows": "sincos", "cols": "sincos_cols"}[first]
    )
    encoder = rebuilt(found)
    assert "pos_embed" not in dict(encoder.named_parameters())
    larger = encoder.backbone(Grid(6, 6, 4)).vit
    assert torch.equal(larger.pos_embed[0, 1:], sincos(Grid(6, 6, 4), 64, first))


def test_rows_and_columns_that_a_file_does_not_say_are_as_square_as_can_be():
    found = import_vit(timm_vit(img_size=(12, 16)).state_dict(), FILE)
    assert found.settings["data"]["image_size"] == (12, 16)
    assert any("3 x 4 patches are taken" in note for note in found.notes)


def test_a_file_of_other_channels_says_how_many():
    found = import_vit(timm_vit(in_chans=5).state_dict(), FILE)
    assert found.settings["data"]["channels"] == 5
    assert "channels" not in import_vit(timm_vit().state_dict(), FILE).settings["data"]


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg_tokens": 4}, r"it has register tokens \(reg_token\)"),
        ({"qk_norm": True}, r"norms of queries and keys \(blocks\.0\.attn\.q_norm"),
        ({"pre_norm": True}, r"a norm before the first block \(norm_pre"),
        ({"global_pool": "map"}, r"pooling by attention \(attn_pool"),
        ({"pos_embed": "none"}, r"pos_embed must hold a position for each patch, .* is not there"),
        ({"qkv_bias": False}, r"lacks blocks\.0\.attn\.qkv\.bias"),
        ({"scale_mlp_norm": True}, r"a norm inside the MLP"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_encoder_has_not_is_refused_by_name(options, message):
    with pytest.raises(DataError, match=message):
        import_vit(timm_vit(**options).state_dict(), FILE)


def test_other_names_are_told():
    with pytest.raises(DataError, match=r"under timm's names.*but its 1 tensors are called conv1"):
        import_vit({"conv1.weight": torch.ones(1)}, FILE)


def test_a_number_of_a_block_far_beyond_the_others_is_no_depth():
    tensors = timm_vit().state_dict()
    tensors["blocks.99999999999.norm1.bias"] = tensors["norm.bias"]
    with pytest.raises(DataError, match=r"3 blocks and nothing else, but lacks blocks\.2"):
        import_vit(tensors, FILE)


@pytest.mark.parametrize("change", ["integers", "flat", "cut", "none", "scalar", "more axes"])
def test_every_damaged_tensor_is_named(change):
    sound = timm_vit(depth=1, init_values=0.1).state_dict()
    changes = {
        "integers": lambda tensor: torch.ones(tensor.shape, dtype=torch.int64),
        "flat": lambda tensor: tensor.flatten()[None, None, None],
        "cut": lambda tensor: tensor[..., :-1],
        "scalar": lambda tensor: tensor.sum(),
        "more axes": lambda tensor: tensor[None, None],
    }
    for name, tensor in sound.items():
        damaged = dict(sound)
        if change == "none":
            del damaged[name]
        else:
            damaged[name] = changes[change](tensor)
        if name == "cls_token" and change == "none":
            continue  # a model without one, of 17 positions
        with pytest.raises(DataError):
            import_vit(damaged, FILE)


# ----------------------------------------------------------------------------------- as a user


def import_here(importer, file, out, *overrides, recipe=None):
    console = Console(record=True, width=200)
    import_run(
        importer,
        file,
        out,
        recipe=recipe and str(recipe),
        preset=None,
        overrides=overrides,
        data_path=None,
        console=console,
    )
    return console.export_text()


@pytest.mark.parametrize("form", ["plain", "norm of the mean", "layer scale", "no class token"])
def test_export_gives_back_the_imported_file(form, tmp_path):
    model = timm_vit(**FORMS[form])
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    import_here("timm", tmp_path / "in.safetensors", tmp_path / "run")
    export_run(tmp_path / "run", "timm", tmp_path / "out.safetensors", Console(quiet=True))
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("in", "out"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    about = json.loads((tmp_path / "out.json").read_text())
    again = VisionTransformer(**about["options"]).eval()
    again.load_state_dict(after, strict=True)
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again.forward_features(image), model.forward_features(image))


def test_the_command_line_imports_and_lists(tmp_path):
    torch.save(timm_vit().state_dict(), tmp_path / "x.pth")
    command = ["import", "timm", str(tmp_path / "x.pth"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert load_encoder(tmp_path / "run").embed_dim == 64
    assert "timm" in CliRunner().invoke(app, ["list", "importers"]).output


def test_the_size_that_does_not_fit_is_named_with_the_one_that_would(tmp_path):
    torch.save(timm_vit().state_dict(), tmp_path / "x.pth")
    message = (
        r"pos_embed has shape \(1, 17, 64\) instead of \(1, 37, 64\).*data\.image_size is 24, but "
        r"16 in the file: leave it out, or --set data\.image_size=16\. To fine-tune at another size"
    )
    with pytest.raises(DataError, match=message) as refusal:
        import_here("timm", tmp_path / "x.pth", tmp_path / "run", "data.image_size=24")
    assert "[encoder]" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_other_rows_and_columns_of_as_many_patches_may_be_set(tmp_path):
    model = timm_vit(img_size=(8, 24))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    import_here("timm", tmp_path / "x.pth", tmp_path / "run", "data.image_size=[8, 24]")
    encoder, image = load_encoder(tmp_path / "run"), torch.randn(1, 3, 8, 24)
    expected = model.forward_features(image)
    torch.testing.assert_close(features(encoder, image), expected, atol=1e-5, rtol=1e-5)


def test_another_number_of_heads_may_be_set(tmp_path):
    torch.save(timm_vit(num_heads=4).state_dict(), tmp_path / "x.pth")
    import_here("timm", tmp_path / "x.pth", tmp_path / "run", "encoder.num_heads=4")
    encoder, image = load_encoder(tmp_path / "run"), torch.randn(1, 3, 16, 16)
    expected = timm_vit(num_heads=4).forward_features(image)
    torch.testing.assert_close(features(encoder, image), expected, atol=1e-5, rtol=1e-5)
