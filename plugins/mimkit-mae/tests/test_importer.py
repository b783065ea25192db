"""Checkpoints of MAE, written by a compact reference under the released names, on timm's blocks."""

import argparse
from functools import partial

import numpy as np
import pytest
import torch
from mimkit_mae.importer import MAEImporter
from rich.console import Console
from safetensors.torch import load_file
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mimkit import Batch, DataError, Grid, Mask, import_vit, patchify
from mimkit.pipeline.exporting import export_run
from mimkit.pipeline.importing import import_run
from mimkit.pipeline.run import run
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.train.encoder_file import load_encoder
from mimkit.train.step import Pretrainer

SIDE, PATCH, DIM, DEEP = 16, 4, 64, 48
SETTINGS = [
    "data.name=shapes",
    "data.num_images=48",
    "data.num_test_images=16",
    'evaluate=[{part="heldout"}]',
    "train.total_epochs=1",
    "train.warmup_epochs=0",
    "train.batch_size=8",
]


def sincos_of_the_release(dim: int, side: int) -> torch.Tensor:
    """Columns first, in numpy; a zero row for the class token."""
    omega = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
    cols, rows = np.meshgrid(np.arange(side), np.arange(side))
    waves = [
        wave(axis.reshape(-1, 1) * omega) for axis in (cols, rows) for wave in (np.sin, np.cos)
    ]
    table = np.concatenate(waves, axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, dim)), table])).float()[None]


class Reference(nn.Module):
    """MAE as in section 3 of the paper, its weights named as released."""

    def __init__(self, norm_pix_loss: bool = True) -> None:
        super().__init__()
        norm, count = partial(nn.LayerNorm, eps=1e-6), (SIDE // PATCH) ** 2
        self.norm_pix_loss = norm_pix_loss
        self.patch_embed = PatchEmbed(SIDE, PATCH, 3, DIM)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(sincos_of_the_release(DIM, SIDE // PATCH), False)
        self.blocks = nn.ModuleList(Block(DIM, 1, 4, True, norm_layer=norm) for _ in range(2))
        self.norm = norm(DIM)
        self.decoder_embed = nn.Linear(DIM, DEEP)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DEEP))
        self.decoder_pos_embed = nn.Parameter(sincos_of_the_release(DEEP, SIDE // PATCH), False)
        self.decoder_blocks = nn.ModuleList(
            Block(DEEP, 16, 4, True, norm_layer=norm) for _ in range(3)
        )
        self.decoder_norm = norm(DEEP)
        self.decoder_pred = nn.Linear(DEEP, PATCH**2 * 3)
        self.count = count
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn_like(parameter))

    def encode(self, image: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(image) + self.pos_embed[:, 1:]
        x = x.gather(1, kept[..., None].expand(-1, -1, DIM))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def predict(self, image: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        x = self.decoder_embed(self.encode(image, kept))
        whole = self.mask_token.expand(len(x), self.count, -1)
        whole = whole.scatter(1, kept[..., None].expand(-1, -1, DEEP), x[:, 1:])
        x = torch.cat([x[:, :1], whole], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def loss(self, image: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        target = patchify(image, PATCH).permute(0, 1, 3, 4, 2).flatten(2)
        if self.norm_pix_loss:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6) ** 0.5
        error = (self.predict(image, kept) - target).pow(2).mean(-1)  # (B, N)
        hidden = torch.ones_like(error).scatter(1, kept, 0.0)
        return (error * hidden).sum() / hidden.sum()


def is_encoders(name: str) -> bool:
    return not name.startswith(("decoder", "mask_token"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)


@pytest.fixture
def reference():
    return Reference().eval()


def batch(image: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """Images with a quarter of the patches kept, the same in both codes."""

    order = torch.stack([torch.randperm(16) for _ in image])
    masked = torch.ones(len(image), 16, dtype=torch.bool).scatter(1, order[:, :4], False)
    mask = Mask.drop(masked, Grid(4, 4, PATCH))
    return Batch({"image": image}, mask, None, torch.arange(len(image))), mask.context


def pretrainer(found, *overrides) -> Pretrainer:
    recipe = load("mae_in224", fixed=found.settings, overrides=[*SETTINGS, *overrides])
    parts = build(recipe, mean=recipe.data.mean, std=recipe.data.std)
    parts.encoder.load_state_dict(dict(found.encoder), strict=True)
    if found.head:
        parts.head.load_state_dict(dict(found.head), strict=True)
    return Pretrainer(parts).eval()


# ----------------------------------------------------------------------------------- pre-trained


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "model."])
@torch.no_grad()
def test_predictions_and_loss_are_those_of_the_reference(normalised, wrapper, tmp_path):
    theirs, image = Reference(normalised).eval(), torch.randn(3, 3, SIDE, SIDE)
    content = {
        "model": {f"{wrapper}{name}": tensor for name, tensor in theirs.state_dict().items()},
        "args": argparse.Namespace(norm_pix_loss=normalised, mask_ratio=0.75),
        "optimizer": {"state": {}},
        "epoch": 799,
    }
    torch.save(content, tmp_path / "mae.pth")
    ours = pretrainer(MAEImporter().read(tmp_path / "mae.pth"))
    given, kept = batch(image)
    predictions, _ = ours.predict(given)
    at = given.mask.target[:, 0, :, None].expand(-1, -1, PATCH**2 * 3)
    expected = theirs.predict(image, kept).gather(1, at)
    torch.testing.assert_close(predictions["pixels"][:, 0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(given).loss, theirs.loss(image, kept), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sizes_and_positions_are_read_off_and_the_rest_is_said(reference, tmp_path):
    torch.save({"model": reference.state_dict()}, tmp_path / "mae.pth")
    found = MAEImporter().read(tmp_path / "mae.pth")
    expected = {"embed_dim": 64, "depth": 2, "num_heads": 1, "positions": "sincos_cols"}
    assert expected.items() <= found.settings["encoder"].items()
    expected = {"embed_dim": 48, "depth": 3, "num_heads": 16, "mlp_ratio": 4.0, "order": "cols"}
    assert expected.items() <= found.settings["head"].items()
    assert found.settings["data"]["image_size"] == (16, 16)
    assert found.settings["data"]["mean"] == (0.485, 0.456, 0.406)
    text = " ".join(found.notes)
    assert "decoder's number of heads: 16" in text
    assert "targets" not in found.settings


def test_pre_training_goes_on_and_the_encoder_comes_back_as_it_was(reference, tmp_path):
    torch.save({"model": reference.state_dict()}, tmp_path / "mae.pth")
    folder = tmp_path / "run"
    import_run(
        "mae",
        tmp_path / "mae.pth",
        folder,
        recipe=None,
        preset=None,
        overrides=SETTINGS,
        data_path=None,
        console=Console(quiet=True),
    )
    export_run(folder, "timm", tmp_path / "out.safetensors", Console(quiet=True))
    exported = load_file(tmp_path / "out.safetensors")
    theirs = {k: v for k, v in reference.state_dict().items() if is_encoders(k)}
    assert exported.keys() == theirs.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in theirs.items())
    run(load(str(folder / "recipe.toml")), folder=folder, device="cpu")
    after = load_encoder(folder).state_dict()
    assert torch.equal(after["pos_embed"], theirs["pos_embed"])  # fixed, as in the paper
    assert not torch.equal(after["norm.weight"], theirs["norm.weight"])


# --------------------------------------------------------------------------- the encoder alone


@torch.no_grad()
def test_the_published_encoder_is_read_without_a_decoder(reference, tmp_path):
    theirs = {k: v for k, v in reference.state_dict().items() if is_encoders(k)}
    torch.save({"model": theirs}, tmp_path / "mae.pth")
    found = MAEImporter().read(tmp_path / "mae.pth")
    assert not found.head
    assert "head" not in found.settings
    image, whole = torch.randn(2, 3, SIDE, SIDE), torch.arange(16).expand(2, -1)
    tokens = pretrainer(found).encoder.features(image)
    ours = torch.cat([tokens.prefix, tokens.patches], dim=1)
    torch.testing.assert_close(ours, reference.encode(image, whole), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["fine-tuned", "linear probe"])
@torch.no_grad()
def test_fine_tuned_encoders_and_linear_probes_are_read(form, reference, tmp_path):
    theirs = {k: v for k, v in reference.state_dict().items() if is_encoders(k)}
    options = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": DIM, "depth": 2, "num_heads": 1}
    if form == "fine-tuned":  # the norm behind the mean, positions trained, a classifier
        theirs["pos_embed"] = theirs["pos_embed"] + 0.1 * torch.randn(1, 17, DIM)
        theirs["fc_norm.weight"] = theirs.pop("norm.weight")
        theirs["fc_norm.bias"] = theirs.pop("norm.bias")
        head = {"head.weight": torch.randn(5, DIM), "head.bias": torch.randn(5)}
        model = VisionTransformer(**options, global_pool="avg", num_classes=5)
        model.load_state_dict(theirs | head, strict=True)
    else:
        probe = nn.Sequential(nn.BatchNorm1d(DIM, affine=False, eps=1e-6), nn.Linear(DIM, 5))
        head = {f"head.{name}": tensor for name, tensor in probe.state_dict().items()}
        model = VisionTransformer(**options, num_classes=0)
        model.load_state_dict(theirs, strict=True)
    torch.save({"model": theirs | head}, tmp_path / "mae.pth")
    found = MAEImporter().read(tmp_path / "mae.pth")
    image = torch.randn(2, 3, SIDE, SIDE)
    encoder = pretrainer(found).encoder
    tokens = encoder.features(image)
    ours = torch.cat([tokens.prefix, tokens.patches], dim=1)
    features = model.eval().forward_features(image)
    torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
    if form == "fine-tuned":
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(encoder.backbone()(image), pooled, atol=1e-5, rtol=1e-5)
    assert any("left out, as nothing here uses it: head." in note for note in found.notes)


def test_the_largest_released_model_has_sixteen_heads(tmp_path):

    model = VisionTransformer(
        img_size=28, patch_size=14, embed_dim=1280, depth=1, num_heads=16, num_classes=0
    )
    found = import_vit(model.state_dict(), tmp_path)
    assert found.settings["encoder"]["num_heads"] == 16


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decoder_pos_embed": None}, "it has no positions"),
        ({"decoder_pos_embed": torch.randn(1, 17, DEEP)}, "its positions are not the sine-cosine"),
    ],
)
def test_a_decoder_that_ours_cannot_be_is_left_out_with_the_reason(
    change, reason, reference, tmp_path
):
    tensors = reference.state_dict() | change
    torch.save({k: v for k, v in tensors.items() if v is not None}, tmp_path / "mae.pth")
    found = MAEImporter().read(tmp_path / "mae.pth")
    assert not found.head
    assert any(f"its decoder is left out: {reason}" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decoder_norm.bias": None},
            r"all of MAE's decoder and nothing else, but lacks norm\.bias",
        ),
        ({"decoder_extra": torch.ones(1)}, r"it has a decoder \(decoder_extra\)"),
        ({"decoder_pred.bias": torch.ones(7)}, r"pixels\.bias has shape \(7,\) instead of \(48,\)"),
        ({"mask_token": None}, "but lacks mask_token"),
        ({"norm.weight": None}, r"but lacks norm\.weight"),
        ({"decoder_pred.bias": torch.ones(48, dtype=torch.int32)}, "is of type int32 instead of"),
        ({"blocks.0.norm1.bias": torch.full((DIM,), torch.nan)}, "64 of 64 values that are NaN"),
    ],
)
def test_what_is_not_whole_is_told(change, message, reference, tmp_path):
    tensors = reference.state_dict() | change
    torch.save({k: v for k, v in tensors.items() if v is not None}, tmp_path / "mae.pth")
    with pytest.raises(DataError, match=message):
        MAEImporter().read(tmp_path / "mae.pth")


def test_another_importer_is_named_that_reads_the_file(reference, tmp_path):
    torch.save({"model": reference.state_dict()}, tmp_path / "mae.pth")
    message = r"has a decoder .* Importer 'mae' reads it: mimkit import mae \S+mae\.pth --out RUN"
    with pytest.raises(DataError, match=message):
        import_run(
            "timm",
            tmp_path / "mae.pth",
            tmp_path / "run",
            recipe=None,
            preset=None,
            overrides=[],
            data_path=None,
            console=Console(quiet=True),
        )
    assert not (tmp_path / "run").exists()
