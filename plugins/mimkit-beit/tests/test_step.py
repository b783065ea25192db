"""BEiT's whole step: where its loss starts, one graph, no wait for the device, real runs."""

import dataclasses
import json

import pytest
import torch
from mimkit_beit.encoder import BEiTViT
from mimkit_beit.masker import BlockMasker
from mimkit_beit.target import DVAETokens
from mimkit_beit.tokenizer import Size, Tokenizer, make_network
from safetensors.torch import load_file

from mimkit import Batch, Encoder, Geometry, Grid, RecipeError, Term, View, freeze
from mimkit.builtin.heads import LinearHead
from mimkit.builtin.losses import CrossEntropy
from mimkit.pipeline.run import run
from mimkit.recipe.build import Parts, build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

GRID = Grid(4, 4, 4)
RECIPE = """\
name = "tiny_beit"
[data]
name = "shapes"
image_size = 16
patch_size = 4
num_images = 48
num_test_images = 16
[masker]
part = "block"
num_targets = 6
[encoder]
part = "beit_vit"
embed_dim = 16
depth = 2
num_heads = 2
positions = "relative"
layer_scale = 0.1
[targets.tokens]
part = "dvae"
weights = "train"
codebook_size = 16
hidden_dim = 4
code_dim = 4
total_steps = 8
[head]
part = "linear"
cut_init = true
[losses.tokens]
part = "cross_entropy"
[train]
total_steps = 6
batch_size = 8
optimizer = "adamw"
lr = 1e-3
log_every_steps = 2
checkpoint_every_steps = 2
[[evaluate]]
part = "heldout"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny_beit.toml"
    path.write_text(RECIPE)
    return path


def random_tokenizer(size: Size) -> Tokenizer:
    generator = torch.Generator().manual_seed(0)
    shapes = make_network("encoder", size).state_dict()
    weights = {name: torch.randn(t.shape, generator=generator) for name, t in shapes.items()}
    tokenizer = Tokenizer(size, weights, None)
    freeze(tokenizer)
    return tokenizer


def assemble(num_codes: int, grid: Grid = GRID, **options) -> tuple[Pretrainer, Batch]:
    torch.manual_seed(0)
    geometry = Geometry(grid)
    masker = BlockMasker(geometry, num_targets=6)
    encoder = BEiTViT(geometry, drop_path=0.0, **options)
    geometry = dataclasses.replace(geometry, embed_dim=encoder.embed_dim)
    target = DVAETokens(geometry, weights="train", codebook_size=num_codes, hidden_dim=4)
    target.tokenizer = random_tokenizer(target.size)
    outputs = {"tokens": target.width}
    geometry = dataclasses.replace(geometry, outputs=outputs)
    head = LinearHead(geometry, cut_init=True)
    term = Term("tokens", "tokens", "tokens", CrossEntropy(geometry))
    views = (View("image", grid.image_size), target.token_view)
    parts = Parts(geometry, masker, encoder, {"tokens": target}, head, (term,), outputs, views)
    mask = masker.sample(4, torch.Generator().manual_seed(0))
    images = {view.name: torch.rand(4, 3, *view.image_size) for view in views}
    return Pretrainer(parts), Batch(images, mask, None, torch.arange(4))


def test_the_loss_starts_at_the_logarithm_of_the_number_of_codes():
    pretrainer, batch = assemble(8192, embed_dim=192, depth=2, num_heads=3)
    assert pretrainer(batch).loss.item() == pytest.approx(9.011, abs=0.05)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_what_the_last_block_is_spared_changes_neither_loss_nor_gradients(positions, monkeypatch):
    pretrainer, batch = assemble(
        16, embed_dim=16, depth=2, num_heads=2, positions=positions, layer_scale=0.1
    )
    found = []
    for at in (BEiTViT.at, Encoder.at):  # the second encodes all and picks
        monkeypatch.setattr(BEiTViT, "at", at)
        pretrainer.zero_grad()
        output = pretrainer(batch)
        output.loss.backward()
        found.append([output.loss, *(p.grad for p in pretrainer.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_nothing_of_the_tokenizer_is_trained_or_saved():
    pretrainer, batch = assemble(16, embed_dim=16, depth=1, num_heads=2)
    pretrainer(batch).loss.backward()
    assert not [name for name, _ in pretrainer.named_parameters() if "target" in name]
    assert not [name for name in pretrainer.state_dict() if "target" in name]
    assert all(p.grad is not None for p in pretrainer.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_the_step_is_one_graph(positions):
    torch.compiler.reset()
    pretrainer, batch = assemble(
        16, embed_dim=16, depth=2, num_heads=2, positions=positions, layer_scale=0.1
    )
    compiled = torch.compile(pretrainer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch).loss, pretrainer(batch).loss)


@pytest.mark.gpu
def test_the_step_never_waits_for_the_device():
    pretrainer, batch = assemble(16, embed_dim=32, depth=2, num_heads=2, positions="relative")
    device = torch.device("cuda")
    pretrainer, batch = pretrainer.to(device), batch.to(device)
    pretrainer(batch).loss.backward()  # what is only made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            output = pretrainer(batch)
        output.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert output.loss.isfinite()


def test_a_run_trains_its_tokenizer_once_and_reports_its_health(recipe, tmp_path):
    folders = [run(load(str(recipe)), out=tmp_path / name, device="cpu") for name in ("a", "b")]
    ledgers = [json.loads((folder / "ledger.json").read_text()) for folder in folders]
    first, second = (ledger["prepared"]["tokens"] for ledger in ledgers)
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["seconds"] == second["seconds"] > 0
    assert first["facts"]["codes"] == 16
    assert (folders[0] / "pictures" / "prepared_tokens.png").is_file()
    assert "codes used" in (folders[0] / "report.html").read_text()
    last = "checkpoints/step_00000006.safetensors"
    weights = [load_file(folder / last) for folder in folders]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_a_run_that_lost_its_last_checkpoint_ends_with_the_same_weights(recipe, tmp_path):
    whole = run(load(str(recipe)), out=tmp_path / "whole", device="cpu")
    again = run(load(str(recipe)), out=tmp_path / "again", device="cpu")
    for path in (again / "checkpoints").glob("step_00000006.*"):
        path.unlink()  # as if it had been killed at step 5
    run(load(str(recipe)), out=tmp_path / "again", device="cpu")
    last = "checkpoints/step_00000006.safetensors"
    one, other = load_file(whole / last), load_file(again / last)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["encoder.mask_token=false"], "must show hidden patches as mask tokens"),
        (["masker.mode=drop"], "'drop' must mask equally many patches"),
        (["masker.mode=drop", "masker.exact=true"], "reads the tokens of hidden patches"),
        (["losses.tokens.part=mse"], "gives a class, but loss 'mse' compares vector only"),
        (["targets.tokens.weights=opena"], "Did you mean 'openai'"),
        (["masker.num_targets=16"], "not all of 16 patches, but is 16"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(recipe, settings, message):
    with pytest.raises(RecipeError, match=message):
        build(load(str(recipe), overrides=settings), mean=(0.5,) * 3, std=(0.5,) * 3)
