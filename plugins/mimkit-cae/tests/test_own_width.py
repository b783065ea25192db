"""A head that is narrower or wider than the encoder, held against the released code's arithmetic.

What the releases compute is written here once more, in plain functions of a state dict under their
names; nothing of the plugin takes part in it.
"""

import argparse
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mimkit_cae.encoder import CAEViT
from mimkit_cae.head import CAEHead
from mimkit_cae.importer import CAEImporter
from mimkit_cae.loss import AlignmentLoss
from rich.console import Console
from safetensors.torch import load_file

import mimkit
from mimkit import Batch, Geometry, Grid, Mask, RecipeError, Target, Term, Width, take
from mimkit.builtin.losses import CrossEntropy
from mimkit.builtin.targets import Latent
from mimkit.conformance.examine import Examination, checks_of
from mimkit.pipeline.run import run
from mimkit.recipe.build import Parts, build
from mimkit.recipe.registry import Entry
from mimkit.recipe.schema import load
from mimkit.report.predictions import prediction_columns
from mimkit.train.step import Pretrainer

GRID = Grid(3, 5, 4)
DIM, NUM_IDS, NUM_TARGETS = 48, 64, 7
WIDTHS = pytest.mark.parametrize("wide", [24, 60])
SMALL = {"depth_regressor": 2, "depth_decoder": 2, "mlp_ratio": 2.0, "drop_path": 0.0}
OUTPUTS = {"tokens": Width("class", NUM_IDS), "latent": Width("vector", DIM)}


class Ids(Target):
    """Ids that come with the batch."""

    width = Width("class", NUM_IDS)

    def forward(self, batch, encoder):
        return take(batch.views["ids"], batch.mask.target)


def build_head(wide, num_heads=12, outputs=OUTPUTS, **options):
    torch.manual_seed(0)
    geometry = Geometry(GRID, embed_dim=DIM, outputs=outputs)
    return CAEHead(geometry, embed_dim=wide, num_heads=num_heads, **(SMALL | options))


def assemble(head):
    torch.manual_seed(1)
    geometry = Geometry(GRID, embed_dim=DIM)
    encoder = CAEViT(geometry, embed_dim=DIM, depth=2, num_heads=12, mlp_ratio=2.0, drop_path=0.0)
    targets = {"tokens": Ids(), "latent": Latent(geometry)}
    terms = (
        Term("tokens", "tokens", "tokens", CrossEntropy(geometry)),
        Term("latent", "latent", "latent", AlignmentLoss(geometry), 2.0),
    )
    outputs = OUTPUTS | dict(head.own_widths)
    return Pretrainer(Parts(geometry, None, encoder, targets, head, terms, outputs, ()))


def draw(size=3):
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(size, GRID.num_patches, generator=generator).argsort(1).argsort(1)
    views = {
        "image": torch.randn(size, 3, *GRID.image_size, generator=generator),
        "ids": torch.randint(NUM_IDS, (size, GRID.num_patches), generator=generator),
    }
    return Batch(views, Mask.drop(order < NUM_TARGETS, GRID), None, torch.arange(size))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


# ------------------------------------------------------------- the released code, in plain words


def norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(query, key, value, num_heads):
    """One head after the other."""
    found = []
    for q, k, v in zip(*(t.chunk(num_heads, -1) for t in (query, key, value)), strict=True):
        found.append(((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return torch.cat(found, -1)


def mlp(w, name, x):
    hidden = F.gelu(x @ w[f"{name}.fc1.weight"].T + w[f"{name}.fc1.bias"])
    return hidden @ w[f"{name}.fc2.weight"].T + w[f"{name}.fc2.bias"]


def self_block(w, name, x, num_heads):
    q, k, v = (norm(w, f"{name}.norm1", x) @ w[f"{name}.attn.qkv.weight"].T).chunk(3, -1)
    seen = attend(q + w[f"{name}.attn.q_bias"], k, v + w[f"{name}.attn.v_bias"], num_heads)
    seen = seen @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
    x = x + w[f"{name}.gamma_1"] * seen
    return x + w[f"{name}.gamma_2"] * mlp(w, f"{name}.mlp", norm(w, f"{name}.norm2", x))


def cross_block(w, name, masked, place, visible, place_visible, num_heads):
    a = f"{name}.cross_attn"
    everything = torch.cat([visible, masked], 1)
    places = torch.cat([place_visible, place], 1)
    q = norm(w, f"{name}.norm1_q", masked + place) @ w[f"{a}.q.weight"].T + w[f"{a}.q_bias"]
    k = norm(w, f"{name}.norm1_k", everything + places) @ w[f"{a}.k.weight"].T
    v = norm(w, f"{name}.norm1_v", everything) @ w[f"{a}.v.weight"].T + w[f"{a}.v_bias"]
    seen = attend(q, k, v, num_heads) @ w[f"{a}.proj.weight"].T + w[f"{a}.proj.bias"]
    x = norm(w, f"{name}.norm2_cross", masked + w[f"{name}.gamma_1_cross"] * seen)
    return x + w[f"{name}.gamma_2_cross"] * mlp(w, f"{name}.mlp_cross", x)


def positions(width):
    """Quarters of sin and cos of the row, then of the column, patch by patch."""
    table = np.zeros((GRID.num_patches, width))
    quarter = width // 4
    for number in range(GRID.num_patches):
        row, col = divmod(number, GRID.cols)
        for k in range(quarter):
            frequency = 1 / 10000 ** (k / quarter)
            waves = [f(at * frequency) for at in (row, col) for f in (math.sin, math.cos)]
            table[number, k::quarter] = waves
    return torch.tensor(table, dtype=torch.float32)


def official(w, names, visible, masked, index, target, num_heads):
    """Scores, predicted and true latents of a release, from the encoder's vectors of both kinds."""
    project, project_norm = names["project"], names["project"] + "_norm"

    def projected(x):
        linear = x @ w[f"{project}.weight"].T + w[f"{project}.bias"]
        return norm(w, project_norm, linear)

    visible = projected(visible)
    with torch.no_grad():
        latent_target = projected(masked)
    table = positions(visible.shape[-1])
    x = w["mask_token"].expand(*target.shape, -1)
    for number in range(2):
        name = f"{names['regressor']}_blocks.{number}"
        x = cross_block(w, name, x, table[target], visible, table[index], num_heads)
    latent = norm(w, names["regressor_norm"], x)
    x = latent + table[target]
    for number in range(2):
        x = self_block(w, f"{names['decoder']}_blocks.{number}", x, num_heads)
    x = norm(w, names["decoder_norm"], x)
    logits = x @ w[f"{names['head']}.weight"].T + w[f"{names['head']}.bias"]
    return logits, latent, latent_target


LXTGH = {
    "project": "encoder_to_decoder",
    "regressor": "pretext_neck.regressor",
    "regressor_norm": "pretext_neck.norm",
    "decoder": "pretext_neck.decoder",
    "decoder_norm": "pretext_neck.norm2",
    "head": "pretext_neck.head",
}
ATTEN4VIS = {
    "project": "encoder_to_regresser",
    "regressor": "regresser.regressor",
    "regressor_norm": "regresser.norm",
    "decoder": "decoder.decoder",
    "decoder_norm": "decoder.norm",
    "head": "decoder.head",
}
RELEASES = pytest.mark.parametrize("names", [LXTGH, ATTEN4VIS], ids=["lxtGH", "Atten4Vis"])


def filed(names, wide):
    """A whole checkpoint in the names of a release, of random numbers."""
    torch.manual_seed(2)
    hidden, found = 2 * wide, {}

    def give(name, *shape):
        found[name] = 0.3 * torch.randn(*shape) + (name.endswith("norm.weight") or "gamma" in name)

    def give_norm(name, width):
        give(f"{name}.weight", width)
        give(f"{name}.bias", width)

    def give_mlp(name, width, hidden):
        for layer, one, other in (("fc1", hidden, width), ("fc2", width, hidden)):
            give(f"{name}.{layer}.weight", one, other)
            give(f"{name}.{layer}.bias", one)

    def give_self(name, width, hidden):
        for each in ("norm1", "norm2"):
            give_norm(f"{name}.{each}", width)
        for each in ("attn.q_bias", "attn.v_bias", "attn.proj.bias", "gamma_1", "gamma_2"):
            give(f"{name}.{each}", width)
        give(f"{name}.attn.qkv.weight", 3 * width, width)
        give(f"{name}.attn.proj.weight", width, width)
        give_mlp(f"{name}.mlp", width, hidden)

    give("encoder.cls_token", 1, 1, DIM)
    found["encoder.pos_embed"] = F.pad(positions(DIM), (0, 0, 1, 0))[None]
    give("encoder.patch_embed.proj.weight", DIM, 3, 4, 4)
    give("encoder.patch_embed.proj.bias", DIM)
    give_norm("encoder.norm", DIM)
    for number in range(2):
        give_self(f"encoder.blocks.{number}", DIM, 2 * DIM)
    give(f"{names['project']}.weight", wide, DIM)
    give(f"{names['project']}.bias", wide)
    give_norm(f"{names['project']}_norm", wide)
    give("mask_token", 1, 1, wide)
    for number in range(2):
        name = f"{names['regressor']}_blocks.{number}"
        for each in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
            give_norm(f"{name}.{each}", wide)
        for each in ("q", "k", "v", "proj"):
            give(f"{name}.cross_attn.{each}.weight", wide, wide)
        for each in ("cross_attn.q_bias", "cross_attn.v_bias", "cross_attn.proj.bias"):
            give(f"{name}.{each}", wide)
        for each in ("gamma_1_cross", "gamma_2_cross"):
            give(f"{name}.{each}", wide)
        give_mlp(f"{name}.mlp_cross", wide, hidden)
        give_self(f"{names['decoder']}_blocks.{number}", wide, hidden)
    give_norm(names["regressor_norm"], wide)
    give_norm(names["decoder_norm"], wide)
    give(f"{names['head']}.weight", NUM_IDS, wide)
    give(f"{names['head']}.bias", NUM_IDS)
    return found


@RELEASES
@WIDTHS
def test_an_imported_head_gives_the_loss_of_its_release(names, wide, tmp_path):
    tensors = filed(names, wide)
    torch.save({"model": tensors}, tmp_path / "cae.pth")
    imported = CAEImporter().read(tmp_path / "cae.pth")
    options = dict(imported.settings["head"])
    assert options.pop("part") == "cae"
    assert options["embed_dim"] == wide
    assert options["num_heads"] == 12
    pretrainer = assemble(build_head(wide, **{k: options[k] for k in options if k in SMALL})).eval()
    pretrainer.encoder.load_state_dict(dict(imported.encoder))
    pretrainer.head.load_state_dict(dict(imported.head), strict=True)

    batch = draw()
    mask = batch.mask
    encoder, target = pretrainer.encoder, mask.target[:, 0]
    with torch.no_grad():
        visible = encoder(batch.image, mask.context).patches
        masked = encoder(batch.image, target).patches
        logits, latent, latent_target = official(
            tensors, names, visible, masked, mask.context, target, 12
        )
        predictions, compared = pretrainer.predict(batch)
        output = pretrainer(batch)
    close = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(predictions["tokens"][:, 0], logits, **close)
    torch.testing.assert_close(predictions["latent"][:, 0], latent, **close)
    torch.testing.assert_close(compared["latent"][:, 0], latent_target, **close)
    ids = take(batch.views["ids"], target)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    expected = cross_entropy + 2 * (latent - latent_target).square().mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-3, rtol=1e-4)


def test_the_number_of_heads_follows_the_heads_width_or_the_programs_options(tmp_path):
    path = tmp_path / "cae.pth"
    torch.save({"model": filed(LXTGH, 24)}, path)
    assert CAEImporter().read(path).settings["head"]["num_heads"] == 12
    torch.save({"model": filed(LXTGH, 64)}, path)  # which 12 does not divide
    assert CAEImporter().read(path).settings["head"]["num_heads"] == 1
    args = argparse.Namespace(decoder_num_heads=4)
    torch.save({"model": filed(LXTGH, 64), "args": args}, path)
    assert CAEImporter().read(path).settings["head"]["num_heads"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder_to_decoder.bias"), r"lacks projection\.linear\.bias"),
        (
            lambda t: t.update({"encoder_to_decoder.weight": torch.ones(24, 7)}),
            r"projection\.linear\.weight has shape \(24, 7\) instead of \(24, 48\)",
        ),
    ],
    ids=["half", "another shape"],
)
def test_a_projection_that_does_not_fit_is_refused(tmp_path, change, message):
    tensors = filed(LXTGH, 24)
    change(tensors)
    torch.save({"model": tensors}, tmp_path / "cae.pth")
    with pytest.raises(mimkit.DataError, match=message):
        CAEImporter().read(tmp_path / "cae.pth")


# ----------------------------------------------------------------------------------------- sizes


@WIDTHS
def test_its_weights_can_be_counted(wide):
    head = build_head(wide)
    linear = wide * wide
    expected = {
        "projection": DIM * wide + wide + 2 * wide,
        # q, k, v, proj; their three biases; four norms; MLP; two factors
        "regressor": wide
        + 2 * (4 * linear + 3 * wide + 8 * wide + (4 * linear + 3 * wide) + 2 * wide)
        + 2 * wide,
        "decoder": 2 * (4 * linear + 3 * wide + 4 * wide + (4 * linear + 3 * wide) + 2 * wide)
        + 2 * wide,
        "predictors": NUM_IDS * (wide + 1),
    }
    assert {name: count(child) for name, child in head.named_children()} == expected


def test_the_script_of_the_large_model_trains_366_938_112_weights():
    """As measured on the released code, whose script passes no width."""
    published = {"targets": {"tokens": {"weights": "openai"}}}
    recipe = load("cae_in224", preset="large_xavier", fixed=published)
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3, device="meta")
    assert count(parts.encoder) + count(parts.head) == 366_938_112
    assert parts.outputs["latent"] == Width("vector", 768)
    assert parts.head.positions.shape == (196, 768)


def test_at_the_encoders_width_nothing_is_added():
    for wide in (None, DIM):
        head = build_head(wide)
        assert head.projection is None
        assert head.own_widths == {}
        assert not any("projection" in name for name in head.state_dict())
    one, other = build_head(None).state_dict(), build_head(DIM).state_dict()
    assert all(torch.equal(one[name], value) for name, value in other.items())


@WIDTHS
def test_what_it_predicts_is_of_its_width(wide):
    pretrainer = assemble(build_head(wide))
    predictions, compared = pretrainer.predict(draw())
    assert predictions["latent"].shape == compared["latent"].shape == (3, 1, NUM_TARGETS, wide)
    assert predictions["tokens"].shape == (3, 1, NUM_TARGETS, NUM_IDS)
    assert pretrainer.head.own_widths == {"latent": Width("vector", wide)}


def test_start_values_are_those_of_the_release():
    projection = build_head(240).projection
    assert projection.linear.weight.std().item() == pytest.approx(
        (2 / (DIM + 240)) ** 0.5, rel=0.02
    )
    assert projection.linear.bias.eq(0).all()
    # With --fix_init_weight nothing sets it after torch: uniform within 1 / sqrt(D).
    plain = build_head(240, init="beit").projection.linear
    assert plain.weight.std().item() == pytest.approx(1 / (3 * DIM) ** 0.5, rel=0.02)
    assert plain.bias.ne(0).any()


# --------------------------------------------------------------------------------------- training


@WIDTHS
def test_the_target_moves_neither_projection_nor_encoder(wide):
    pretrainer, batch = assemble(build_head(wide)), draw()
    _, compared = pretrainer.predict(batch)
    assert not compared["latent"].requires_grad
    vectors = torch.randn(3, 1, NUM_TARGETS, DIM, requires_grad=True)
    pretrainer.head.translate("latent", vectors).square().sum().backward()
    assert vectors.grad is not None  # a target that gives a gradient keeps it
    assert all(parameter.grad is None for parameter in pretrainer.head.parameters())
    pretrainer(batch).loss.backward()
    for name, parameter in pretrainer.named_parameters():
        assert parameter.grad is not None, name
        assert "norm1_k.bias" in name or parameter.grad.abs().sum() > 0, name


def test_without_alignment_the_target_stays_what_it_is():
    head = build_head(24, outputs={"tokens": Width("class", NUM_IDS)})
    assert head.own_widths == {}
    assert head.projection is not None


def test_its_pictures_are_those_of_any_head():
    pretrainer, batch = assemble(build_head(24)), draw()
    view = mimkit.View("image", GRID.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    titles = [column.title for column in prediction_columns(pretrainer, batch, view)]
    assert any("alignment error" in title for title in titles)


@pytest.mark.parametrize(
    ("wide", "num_heads", "message"),
    [
        (22, 2, r"embed_dim: must be a multiple of 4 .* but is 22"),
        (24, 5, r"num_heads: must divide embed_dim = 24, but is 5"),
    ],
)
def test_impossible_widths_are_refused(wide, num_heads, message):
    with pytest.raises(RecipeError, match=message):
        build_head(wide, num_heads)


NARROW = [
    "data.num_images=32",
    "data.num_test_images=16",
    "head.embed_dim=32",
    "targets.tokens.codebook_size=8",
    "targets.tokens.total_steps=2",
    "train.total_steps=4",
    "train.batch_size=8",
    "train.warmup_steps=1",
    "train.checkpoint_every_steps=2",
    "evaluate=[]",
]


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    ends = []
    for name in ("whole", "again"):
        recipe, console = load("cae_shapes", overrides=NARROW), Console(quiet=True)
        folder = run(recipe, out=tmp_path / name, device="cpu", console=console)
        last = folder / "checkpoints" / "step_00000004.safetensors"
        if name == "again":
            last.unlink()
            last.with_suffix(".json").unlink()
            (folder / "encoder.safetensors").unlink()
            run(recipe, out=tmp_path / name, device="cpu", console=console)
        ends.append(load_file(last))
    assert any("projection.linear.weight" in name for name in ends[0])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class Narrow(CAEHead):
    __doc__ = CAEHead.__doc__
    miniature = CAEHead.miniature | {"embed_dim": 96}


class NarrowAligned(CAEHead):
    __doc__ = CAEHead.__doc__
    miniature = CAEHead.miniature | {"embed_dim": 96, "latent": "a_vector"}


@pytest.mark.parametrize("cls", [Narrow, NarrowAligned])
def test_it_keeps_the_contract(cls, tmp_path, monkeypatch):
    monkeypatch.setattr("mimkit.conformance.specimen.Specimen.cls", cls)
    entry = Entry("heads", "cae", "mimkit-cae", "0", "elsewhere")
    examination = Examination(entry, tmp_path, raises=True)
    outcomes = {}
    for check in checks_of(entry):
        if check.name != "loads":  # from an entry point, which this class has not
            verdict = examination.make(check)
            outcomes[check.name] = verdict.outcome
            assert verdict.outcome != "failed", verdict
    aligned = cls is NarrowAligned
    wanted = "passed" if aligned else "not applicable"
    assert outcomes["translated_targets_fit_and_train_nothing"] == wanted
    assert outcomes["predictions_are_those_asked_for"] == "passed"
