"""Checkpoints of other projects: from their layout to mimkit's, and to timm's."""

import argparse

import pytest
import timm
import torch
import torch.nn.functional as F
from mimkit_beit.encoder import BEiTViT
from mimkit_beit.importer import BEiTImporter
from safetensors.torch import save_file

from mimkit import DataError, Geometry, Grid

GRID = Grid(4, 4, 4)
SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5}
PLAIN = {}
PLUS = {"positions": "relative", "layer_scale": 0.1}
FINE_TUNED = {
    "positions": "relative_per_block",
    "layer_scale": 0.1,
    "mask_token": False,
    "final_norm": "pooled",
    "num_classes": 5,
}
CLS_TUNED = FINE_TUNED | {"final_norm": "tokens"}
FORMS = {"plain": PLAIN, "plus": PLUS, "fine-tuned": FINE_TUNED, "cls": CLS_TUNED}
OPTIONS = set(BEiTViT.__init__.__kwdefaults__)


def randomise(module: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def beit(grid: Grid = GRID, **options) -> BEiTViT:
    encoder = BEiTViT(Geometry(grid), **(SMALL | options)).eval()
    randomise(encoder)
    return encoder


def released(encoder: BEiTViT) -> dict[str, torch.Tensor]:
    """The tensors as microsoft/unilm would save them, the index included."""
    tensors = dict(encoder.state_dict())
    for name, buffer in encoder.named_buffers():
        if name.endswith("relative_position_index"):
            tensors[name] = buffer
    return tensors


def rebuilt(found) -> BEiTViT:
    """The encoder that the settings name, with the tensors loaded."""
    options = dict(found.settings["encoder"])
    assert options.pop("part") == "beit_vit"
    assert set(options) == OPTIONS - {"stream"}  # of a run, not of its weights
    rows, cols = (size // found.settings["data"]["patch_size"] for size in image_size(found))
    encoder = BEiTViT(Geometry(Grid(rows, cols, found.settings["data"]["patch_size"])), **options)
    missing, unexpected = encoder.load_state_dict(dict(found.encoder), strict=False)
    assert unexpected == []
    assert set(missing) <= {"mask_token"}
    return encoder.eval()


def image_size(found):
    return found.settings["data"]["image_size"]


def timm_model(encoder: BEiTViT) -> torch.nn.Module:
    exported = encoder.timm_model()
    model = timm.create_model(exported.model, **exported.options)
    model.load_state_dict(exported.tensors, strict=True)
    return model.eval()


# ------------------------------------------------------------------------------ timm and unilm


@pytest.mark.parametrize("grid", [GRID, Grid(3, 5, 4)], ids=["4x4", "3x5"])
@pytest.mark.parametrize("form", FORMS)
def test_timm_gives_the_same_features_and_classes(form, grid):
    encoder, image = beit(grid, **FORMS[form]), torch.randn(2, 3, *grid.image_size)
    model, tokens = timm_model(encoder), encoder.features(image)
    expected = torch.cat([tokens.prefix, tokens.patches], dim=1)
    torch.testing.assert_close(model.forward_features(image), expected, atol=1e-5, rtol=1e-5)
    if form == "fine-tuned":
        pooled = F.linear(
            encoder.fc_norm(tokens.patches.mean(dim=1)), encoder.head.weight, encoder.head.bias
        )
        torch.testing.assert_close(model(image), pooled, atol=1e-5, rtol=1e-5)
    if form == "cls":
        scores = encoder.head(tokens.prefix[:, 0])
        torch.testing.assert_close(model(image), scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_released_checkpoint_comes_back_whole(tmp_path, form):
    encoder, image = beit(**FORMS[form]), torch.randn(2, 3, 16, 16)
    lm_head = torch.nn.Linear(128, 11)
    args = argparse.Namespace(
        drop_path=0.2, layer_scale_init_value=0.3, imagenet_default_mean_and_std=False
    )
    tensors = released(encoder)
    if "mask_token" in tensors:
        tensors |= {f"lm_head.{name}": tensor for name, tensor in lm_head.state_dict().items()}
    file = tmp_path / "beit.pth"
    torch.save({"model": {f"module.{k}": v for k, v in tensors.items()}, "args": args}, file)

    found = BEiTImporter().read(file)

    assert found.settings["data"] == {
        "image_size": (16, 16),
        "patch_size": 4,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    expected = SMALL | FORMS[form] | {"drop_path": 0.2, "mask_token": True}
    if "layer_scale" in expected:
        expected["layer_scale"] = 0.3
    assert expected.items() <= found.settings["encoder"].items()
    again = rebuilt(found)
    assert torch.equal(again(image).patches, encoder(image).patches)
    if encoder.mask_token is None:
        assert found.head == {}
    else:
        assert torch.equal(found.head["predictors.tokens.weight"], lm_head.weight)
        assert torch.equal(found.head["predictors.tokens.bias"], lm_head.bias)
    kept = {"head.weight", "fc_norm.bias", "norm.weight"} & encoder.state_dict().keys()
    assert all(torch.equal(found.encoder[name], encoder.state_dict()[name]) for name in kept)


def test_timms_own_weights_are_read(tmp_path):
    encoder = beit(**FINE_TUNED)
    file = tmp_path / "model.safetensors"
    save_file(timm_model(encoder).state_dict(), file)
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(rebuilt(BEiTImporter().read(file))(image).patches, encoder(image).patches)


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 24, "num_heads": 3, "mlp_ratio": 2.1},
        {"embed_dim": 100, "num_heads": 4, "mlp_ratio": 0.585},  # 100 x (58 / 100) is below 58
        {"depth": 1, "num_heads": 8},
    ],
)
@pytest.mark.parametrize("grid", [Grid(3, 5, 8), Grid(5, 3, 2), Grid(2, 2, 4)])
def test_all_sizes_are_read_off_the_tensors(tmp_path, options, grid):
    encoder = beit(grid, **(PLUS | options))
    file = tmp_path / "beit.pth"
    torch.save({"model": released(encoder)}, file)
    found = BEiTImporter().read(file)
    assert image_size(found) == grid.image_size
    image = torch.randn(1, 3, *grid.image_size)
    assert torch.equal(rebuilt(found)(image).patches, encoder(image).patches)
    assert found.settings["encoder"]["num_heads"] == encoder.num_heads


def test_notes_say_what_the_file_leaves_open(tmp_path):
    file = tmp_path / "beit.pth"
    torch.save({"model": released(beit())}, file)
    found = BEiTImporter().read(file)
    assert "mean" not in found.settings["data"]
    text = "\n".join(found.notes)
    assert "number of heads: 2 is taken, 64 channels each" in text
    assert "does not say how pixels were normalised" in text
    assert "fine-tuned" not in text
    args = argparse.Namespace(imagenet_default_mean_and_std=True)
    torch.save({"model": released(beit(**FINE_TUNED)), "args": args}, file)
    found = BEiTImporter().read(file)
    assert found.settings["data"]["mean"] == (0.485, 0.456, 0.406)
    text = "\n".join(found.notes)
    assert "number of heads" not in text
    assert "normalised:" not in text
    assert "its classifier of 5 classes is kept" in text
    assert "its norm stands behind the pooling" in text


# ----------------------------------------------------------------------------------- misfits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_token": None}, "must be a checkpoint of BEiT, but its 37 tensors are called"),
        (
            {"blocks.1.norm2.bias": None},
            "all of a BEiT of 2 blocks and nothing else, but lacks blocks.1.norm2.bias",
        ),
        ({"decoder.weight": torch.ones(2)}, "but has decoder.weight"),
        ({"blocks.0.attn.q_bias": torch.ones(3)}, r"has shape \(3,\) instead of \(128,\)"),
        ({"pos_embed": torch.ones(1, 17, 128)}, "absolute or relative positions, but has both"),
        ({"rel_pos_bias.relative_position_bias_table": None}, "but has neither"),
        (
            {
                "rel_pos_bias.relative_position_bias_table": torch.ones(51, 2),
                "rel_pos_bias.relative_position_index": None,
            },
            "51 relative positions are no square's",
        ),
        (
            {"rel_pos_bias.relative_position_bias_table": torch.ones(52, 3)},
            "num_heads: must divide embed_dim = 128, but is 3",
        ),
        ({"patch_embed.proj.weight": torch.ones(128, 3, 4, 2)}, "patches must be square"),
        ({"cls_token": torch.tensor(1.0)}, r"cls_token must have 3 axes, but has shape \(\)"),
        (
            {"rel_pos_bias.relative_position_bias_table": torch.ones(52)},
            r"bias_table must have 2 axes, but has shape \(52,\)",
        ),
        (
            {"rel_pos_bias.relative_position_index": torch.ones(5, dtype=torch.int64)},
            r"position_index must have 2 axes, but has shape \(5,\)",
        ),
        ({"norm.bias": torch.ones(128, dtype=torch.int64)}, "norm.bias is of type int64 instead"),
        ({"norm.bias": torch.full((128,), torch.nan)}, "norm.bias has 128 of 128 values that are"),
    ],
)
def test_what_is_not_beit_is_told(tmp_path, change, message):
    tensors = released(beit(**PLUS)) | change
    file = tmp_path / "beit.pth"
    torch.save({"model": {k: v for k, v in tensors.items() if v is not None}}, file)
    with pytest.raises(DataError, match=message):
        BEiTImporter().read(file)


def test_an_odd_number_of_absolute_positions_is_told(tmp_path):
    tensors = released(beit(Grid(3, 5, 4)))
    torch.save(tensors, tmp_path / "beit.pth")
    with pytest.raises(DataError, match="15 patches are no square's"):
        BEiTImporter().read(tmp_path / "beit.pth")
