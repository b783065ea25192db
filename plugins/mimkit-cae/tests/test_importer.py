"""Checkpoints of both public code releases, written here under their own names."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from mimkit_cae.encoder import CAEViT
from mimkit_cae.head import CAEHead
from mimkit_cae.importer import CAEImporter
from safetensors.torch import save_file

from mimkit import DataError, Geometry, Grid, Width, sincos

GRID = Grid(3, 5, 4)
DIM, HIDDEN, NUM_IDS, DEPTH = 48, 96, 64, 2


def weights(prefix, **shapes):
    return {f"{prefix}{name}": torch.randn(shape) for name, shape in shapes.items()}


def norm(prefix, dim=DIM):
    return weights(prefix, weight=dim, bias=dim)


def mlp(prefix, dim=DIM):
    return {
        f"{prefix}fc1.weight": torch.randn(HIDDEN, dim),
        f"{prefix}fc1.bias": torch.randn(HIDDEN),
        f"{prefix}fc2.weight": torch.randn(dim, HIDDEN),
        f"{prefix}fc2.bias": torch.randn(dim),
    }


def self_attention_block(prefix, dim=DIM, scales=True):
    found = {
        **norm(f"{prefix}norm1.", dim),
        **weights(f"{prefix}attn.", q_bias=dim, v_bias=dim),
        f"{prefix}attn.qkv.weight": torch.randn(3 * dim, dim),
        f"{prefix}attn.proj.weight": torch.randn(dim, dim),
        f"{prefix}attn.proj.bias": torch.randn(dim),
        **norm(f"{prefix}norm2.", dim),
        **mlp(f"{prefix}mlp.", dim),
    }
    return found | (weights(prefix, gamma_1=dim, gamma_2=dim) if scales else {})


def regressor_block(prefix, dim=DIM, inner=None, scales=True):
    inner = inner or dim
    found = {}
    for name in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
        found |= norm(f"{prefix}{name}.", dim)
    for name in ("q", "k", "v"):
        found[f"{prefix}cross_attn.{name}.weight"] = torch.randn(inner, dim)
    found |= weights(f"{prefix}cross_attn.", q_bias=inner, v_bias=inner)
    found[f"{prefix}cross_attn.proj.weight"] = torch.randn(dim, inner)
    found[f"{prefix}cross_attn.proj.bias"] = torch.randn(dim)
    found |= mlp(f"{prefix}mlp_cross.", dim)
    for name in ("gamma_1_cross", "gamma_2_cross"):  # constants, where nothing is scaled
        found[f"{prefix}{name}"] = torch.randn(dim) if scales else torch.ones(dim)
    return found


def encoder(prefix="encoder.", dim=DIM, grid=GRID, scales=True):
    found = {
        f"{prefix}cls_token": torch.randn(1, 1, dim),
        f"{prefix}pos_embed": torch.cat([torch.zeros(1, dim), sincos(grid, dim)])[None],
        f"{prefix}patch_embed.proj.weight": torch.randn(dim, 3, 4, 4),
        f"{prefix}patch_embed.proj.bias": torch.randn(dim),
        **norm(f"{prefix}norm.", dim),
    }
    for number in range(DEPTH):
        found |= self_attention_block(f"{prefix}blocks.{number}.", dim, scales)
    return found


def lxtgh(dim=DIM, scales=True, depth_decoder=2, inner=None):
    """Names of lxtGH/CAE; its ``norm2`` is the decoder's."""
    found = {"mask_token": torch.randn(1, 1, dim)}
    for number in range(3):
        prefix = f"pretext_neck.regressor_blocks.{number}."
        found |= regressor_block(prefix, dim, inner, scales)
    for number in range(depth_decoder):
        found |= self_attention_block(f"pretext_neck.decoder_blocks.{number}.", dim, scales)
    found |= norm("pretext_neck.norm.", dim) | norm("pretext_neck.norm2.", dim)
    found["pretext_neck.head.weight"] = torch.randn(NUM_IDS, dim)
    found["pretext_neck.head.bias"] = torch.randn(NUM_IDS)
    return found


def atten4vis(dim=DIM):
    """Names of Atten4Vis/CAE, which also keeps the copy of the encoder and a second table."""
    found = {"mask_token": torch.randn(1, 1, dim), "rd_pos_embed": torch.zeros(1, 16, dim)}
    found |= encoder("alignment_encoder.")
    for number in range(3):
        found |= regressor_block(f"regresser.regressor_blocks.{number}.", dim)
    for number in range(2):
        found |= self_attention_block(f"decoder.decoder_blocks.{number}.", dim)
    found |= norm("regresser.norm.", dim) | norm("decoder.norm.", dim)
    found["decoder.head.weight"] = torch.randn(NUM_IDS, dim)
    found["decoder.head.bias"] = torch.randn(NUM_IDS)
    return found


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def read(tmp_path):
    """Writes a checkpoint as the training program does, and reads it."""

    def write_and_read(tensors, **rest):
        path = tmp_path / "checkpoint.pth"
        torch.save({"model": tensors, **rest}, path)
        return CAEImporter().read(path)

    return write_and_read


def parts_of(imported):
    """Builds the parts that the settings name, and loads the tensors."""
    settings = imported.settings
    rows, cols = (side // settings["data"]["patch_size"] for side in settings["data"]["image_size"])
    grid = Grid(rows, cols, settings["data"]["patch_size"])
    options = {k: v for k, v in settings["encoder"].items() if k != "part"}
    vit = CAEViT(Geometry(grid), **options)
    vit.load_state_dict(dict(imported.encoder), strict=True)
    if not imported.head:
        return vit, None
    outputs = {"tokens": Width("class", NUM_IDS), "latent": Width("vector", vit.embed_dim)}
    options = {k: v for k, v in settings["head"].items() if k != "part"}
    head = CAEHead(Geometry(grid, embed_dim=vit.embed_dim, outputs=outputs), **options)
    head.load_state_dict(dict(imported.head), strict=True)
    return vit, head


# ------------------------------------------------------------------------------------- layouts

SAME_NAMES = {
    "encoder.blocks.1.attn.q_bias": "blocks.1.attn.q_bias",
    "encoder.norm.weight": "norm.weight",
}
HEADS = {
    "lxtGH": (
        lxtgh,
        {
            "mask_token": "regressor.mask_token",
            "pretext_neck.regressor_blocks.2.cross_attn.k.weight": "regressor.blocks.2.cross_attn.k"
            ".weight",
            "pretext_neck.norm.weight": "regressor.norm.weight",
            "pretext_neck.decoder_blocks.1.mlp.fc1.bias": "decoder.blocks.1.mlp.fc1.bias",
            "pretext_neck.norm2.weight": "decoder.norm.weight",
            "pretext_neck.head.bias": "predictors.tokens.bias",
        },
    ),
    "Atten4Vis": (
        atten4vis,
        {
            "mask_token": "regressor.mask_token",
            "regresser.regressor_blocks.0.gamma_1_cross": "regressor.blocks.0.gamma_1_cross",
            "regresser.norm.bias": "regressor.norm.bias",
            "decoder.decoder_blocks.0.attn.v_bias": "decoder.blocks.0.attn.v_bias",
            "decoder.norm.weight": "decoder.norm.weight",
            "decoder.head.weight": "predictors.tokens.weight",
        },
    ),
}


@pytest.mark.parametrize(("make", "names"), HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_tensor_finds_its_place(read, make, names, prefix):
    theirs = encoder() | make()
    imported = read({f"{prefix}{name}": tensor for name, tensor in theirs.items()})
    vit, head = parts_of(imported)
    for old, new in SAME_NAMES.items():
        assert torch.equal(vit.state_dict()[new], theirs[old]), old
    for old, new in names.items():
        assert torch.equal(head.state_dict()[new], theirs[old]), old
    assert imported.settings["data"]["image_size"] == (12, 20)
    expected = {"embed_dim": 48, "depth": 2, "num_heads": 12, "mlp_ratio": 2.0}
    assert expected.items() <= imported.settings["encoder"].items()
    expected = {"depth_regressor": 3, "depth_decoder": 2, "num_heads": 12, "mlp_ratio": 2.0}
    assert expected.items() <= imported.settings["head"].items()
    parts = (imported.settings["encoder"]["part"], imported.settings["head"]["part"])
    assert parts == ("cae_vit", "cae")


@pytest.mark.parametrize("prefix", ["encoder.", ""])
def test_published_files_hold_the_encoder_alone(read, prefix):
    theirs = encoder(prefix)
    imported = read(theirs)
    vit, head = parts_of(imported)
    assert head is None
    assert "head" not in imported.settings
    for name, tensor in theirs.items():
        assert torch.equal(vit.state_dict()[name.removeprefix(prefix)], tensor), name


def test_a_plain_state_dict_and_safetensors_are_read_too(tmp_path):
    theirs = encoder("")
    torch.save(theirs, tmp_path / "plain.pt")
    save_file(theirs, tmp_path / "plain.safetensors")
    for name in ("plain.pt", "plain.safetensors"):
        imported = CAEImporter().read(tmp_path / name)
        assert torch.equal(imported.encoder["norm.bias"], theirs["norm.bias"])


def test_the_grid_is_read_off_the_positions(read):
    for grid in (Grid(4, 4, 4), Grid(2, 8, 4), Grid(8, 2, 4), Grid(1, 7, 4)):
        imported = read(encoder("", grid=grid))
        assert imported.settings["data"]["image_size"] == grid.image_size


def test_positions_may_be_rounded_or_missing(read):
    theirs = encoder("")
    half = {name: tensor.bfloat16() for name, tensor in theirs.items()}
    assert read(half).settings["data"]["image_size"] == (12, 20)
    del theirs["pos_embed"]
    imported = read(theirs)
    assert imported.settings["data"]["image_size"] == (224, 224)
    assert any("holds no positions" in note for note in imported.notes)


def test_the_copy_of_the_encoder_is_left_out(read):
    theirs = encoder() | atten4vis() | encoder("teacher.")
    imported = read(theirs)
    assert len(imported.encoder) == len(encoder())
    assert torch.equal(imported.encoder["cls_token"], theirs["encoder.cls_token"])
    assert not any("alignment" in name or "teacher" in name for name in imported.head)


def test_weights_without_layer_scale_have_no_factors(read):
    imported = read(encoder(scales=False) | lxtgh(scales=False))
    assert imported.settings["encoder"]["layer_scale"] is None
    assert imported.settings["head"]["layer_scale"] is None
    parts_of(imported)


# ------------------------------------------------------------------------ what the program says


def test_the_programs_options_say_what_tensors_do_not(read):
    args = argparse.Namespace(
        drop_path=0.2,
        layer_scale_init_value=0.05,
        decoder_layer_scale_init_value=0.01,
        decoder_num_heads=6,
        fix_init_weight=True,
        imagenet_default_mean_and_std=True,
    )
    imported = read(encoder() | lxtgh(), args=args, epoch=7, scaler={"scale": 1.0})
    settings = imported.settings
    expected = {"drop_path": 0.2, "layer_scale": 0.05, "init": "beit"}
    assert expected.items() <= settings["encoder"].items()
    expected = {"drop_path": 0.2, "layer_scale": 0.01, "num_heads": 6, "init": "beit"}
    assert expected.items() <= settings["head"].items()
    assert settings["data"]["mean"] == (0.485, 0.456, 0.406)
    args.imagenet_default_mean_and_std = False
    assert read(encoder(), args=args).settings["data"]["std"] == (0.5, 0.5, 0.5)


def test_one_release_never_passes_the_number_of_heads_on(read):
    args = argparse.Namespace(decoder_num_heads=6)
    assert read(encoder() | atten4vis(), args=args).settings["head"]["num_heads"] == 12


def test_an_optimizers_numbers_of_numpy_do_no_harm(read):
    optimizer = {"param_groups": [{"lr": np.float64(0.001), "params": [0]}]}
    assert read(encoder(), optimizer=optimizer).encoder


def test_what_stays_open_is_said(read):
    notes = " ".join(read(encoder()).notes)
    assert "number of heads: 12 is taken" in notes
    assert "how pixels were normalised" in notes


def test_codes_of_the_published_tokenizer_ask_for_it(read):
    wide = {"decoder.head.weight": torch.randn(8192, DIM), "decoder.head.bias": torch.randn(8192)}
    imported = read(encoder() | atten4vis() | wide)
    assert imported.settings["targets"] == {"tokens": {"weights": "openai"}}
    assert any("OpenAI's tokenizer" in note for note in imported.notes)
    assert "targets" not in read(encoder() | atten4vis()).settings
    assert "targets" not in read(encoder()).settings


# ---------------------------------------------------------------------- heads that are another


def test_a_head_of_uneven_attention_is_left_out(read):
    imported = read(encoder() | lxtgh(inner=44))
    assert not imported.head
    assert any("44 wide at 48 channels" in note for note in imported.notes)


def test_a_decoder_without_blocks_is_left_out(read):
    imported = read(encoder() | lxtgh(depth_decoder=0))
    assert not imported.head
    assert any("decoder has no block" in note for note in imported.notes)


def test_a_mask_token_alone_is_no_head(read):
    imported = read(encoder("") | {"mask_token": torch.randn(1, 1, DIM)})
    assert not imported.head
    assert any("it has no regressor" in note for note in imported.notes)


# ------------------------------------------------------------------------------------ refusals


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


REFUSED = {
    "fine-tuned": (
        lambda: encoder("") | norm("fc_norm."),
        r"pre-trained checkpoint of CAE, but holds fc_norm",
    ),
    "BEiT": (
        lambda: encoder("") | {"rel_pos_bias.relative_position_bias_table": torch.zeros(4, 2)},
        r"holds rel_pos_bias\.relative_position_bias_table, as fine-tuned ones and those of BEiT",
    ),
    "MAE": (
        lambda: {name.replace("q_bias", "qkv.bias"): t for name, t in encoder("").items()},
        r"must be a checkpoint of CAE, but lacks blocks\.0\.attn\.q_bias",
    ),
    "other positions": (
        lambda: encoder("") | {"pos_embed": torch.randn(1, 16, DIM)},
        r"positions, of shape \(1, 16, 48\), must be the sine-cosine ones of CAE",
    ),
    "columns first": (
        lambda: encoder("") | {"pos_embed": encoder("")["pos_embed"].roll(DIM // 2, dims=-1)},
        r"MAE puts columns first",
    ),
    "not complete": (
        lambda: without(encoder(""), "blocks.1.norm2.bias"),
        r"all of CAE's encoder and nothing else, but lacks blocks\.1\.norm2\.bias",
    ),
    "too much": (
        lambda: encoder("") | {"extra": torch.zeros(1)},
        r"all of CAE's encoder and nothing else, but has extra",
    ),
    "another project's head": (
        lambda: encoder() | {"neck.head.weight": torch.zeros(1)},
        r"all of CAE's encoder and nothing else, but has neck\.head\.weight",
    ),
    "half a head": (
        lambda: without(encoder() | lxtgh(), "pretext_neck.norm2.bias"),
        r"all of CAE's head and nothing else, but lacks decoder\.norm\.bias",
    ),
    "another shape": (
        lambda: encoder("") | {"blocks.0.norm1.weight": torch.zeros(7)},
        r"blocks\.0\.norm1\.weight has shape \(7,\) instead of \(48,\)",
    ),
    "a token without axes": (
        lambda: encoder("") | {"cls_token": torch.tensor(1.0)},
        r"cls_token must have 3 axes, but has shape \(\)",
    ),
    "a classifier without axes": (
        lambda: encoder() | lxtgh() | {"pretext_neck.head.weight": torch.tensor(1.0)},
        r"predictors\.tokens\.weight must have 2 axes",
    ),
    "attention of one axis": (
        lambda: (
            encoder()
            | lxtgh()
            | {"pretext_neck.regressor_blocks.0.cross_attn.q.weight": torch.ones(4)}
        ),
        r"cross_attn\.q\.weight must have 2 axes, but has shape \(4,\)",
    ),
    "whole numbers": (
        lambda: encoder("") | {"blocks.0.norm1.weight": torch.ones(DIM, dtype=torch.int64)},
        r"blocks\.0\.norm1\.weight is of type int64 instead of a floating-point one",
    ),
    "not a number": (
        lambda: encoder("") | {"blocks.0.norm1.weight": torch.full((DIM,), torch.nan)},
        r"blocks\.0\.norm1\.weight has 48 of 48 values that are NaN or infinite",
    ),
    "patches not square": (
        lambda: encoder("") | {"patch_embed.proj.weight": torch.zeros(DIM, 3, 4, 2)},
        r"patches must be square",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files_are_refused_with_the_reason(read, make, message):
    with pytest.raises(DataError, match=message):
        read(make())


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/never"),)


def test_a_file_that_would_run_code_is_refused(read):
    with pytest.raises(DataError, match=r"making it could run any code, so nothing was loaded"):
        read(encoder(), args=Trap())


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, {}])
def test_a_file_without_tensors_is_told(tmp_path, content):
    path = tmp_path / "strange.pth"
    torch.save(content, path)
    with pytest.raises(DataError, match="must hold a state dict"):
        CAEImporter().read(path)


def test_the_recipe_of_an_imported_run_is_that_of_imagenet():
    assert CAEImporter.recipe == "cae_in224"
