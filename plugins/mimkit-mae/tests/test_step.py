"""The whole step of MAE and MaskFeat: where the loss starts, no leak, and real runs."""

import dataclasses
import json
import math

import pytest
import torch
from mimkit_mae.decoder import MAEDecoder
from mimkit_mae.hog import HOG

from mimkit import Batch, Geometry, Grid, RecipeError, Term, View, patchify, unpatchify
from mimkit.builtin.encoders import ViT
from mimkit.builtin.losses import MSE
from mimkit.builtin.maskers import RandomMasker
from mimkit.builtin.targets import Pixels
from mimkit.pipeline.run import run
from mimkit.recipe.build import Parts, build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

GRID = Grid(4, 4, 4)
RECIPE = """\
name = "tiny_mae"
[data]
name = "shapes"
image_size = 16
patch_size = 4
num_images = 48
num_test_images = 16
[masker]
part = "random"
mask_ratio = 0.75
[encoder]
part = "vit"
embed_dim = 16
depth = 2
num_heads = 2
[targets.pixels]
part = "pixels"
[head]
part = "mae_decoder"
embed_dim = 24
depth = 1
num_heads = 2
[losses.pixels]
part = "mse"
[train]
total_steps = 6
batch_size = 8
optimizer = "adamw"
betas = [0.9, 0.95]
lr = 1e-3
log_every_steps = 2
checkpoint_every_steps = 2
[[evaluate]]
part = "heldout"
"""
MASKFEAT = [
    "masker.mode=replace",
    "encoder.mask_token=true",
    "targets.pixels.part=none",
    "targets.hog.part=hog",
    "losses.pixels.part=none",
    "losses.hog.part=mse",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny_mae.toml"
    path.write_text(RECIPE)
    return path


def assemble(target_type=Pixels, size: int = 4) -> tuple[Pretrainer, Batch]:
    torch.manual_seed(0)
    geometry = Geometry(GRID)
    masker = RandomMasker(geometry, mask_ratio=0.75)
    encoder = ViT(geometry, embed_dim=32, depth=2, num_heads=2)
    geometry = dataclasses.replace(geometry, embed_dim=encoder.embed_dim)
    target = target_type(geometry)
    outputs = {"it": target.width}
    geometry = dataclasses.replace(geometry, outputs=outputs)
    head = MAEDecoder(geometry, embed_dim=64, depth=2, num_heads=4)
    terms = (Term("it", "it", "it", MSE(geometry)),)
    views = (View("image", GRID.image_size),)
    parts = Parts(geometry, masker, encoder, {"it": target}, head, terms, outputs, views)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, 3, 16, 16, generator=generator)
    mask = masker.sample(size, generator)
    return Pretrainer(parts), Batch({"image": image}, mask, None, torch.arange(size))


def test_the_loss_on_normalised_pixels_starts_near_1():
    """Predictions start with a variance of about 2 W / (W + K), W wide for vectors of K."""
    pretrainer, batch = assemble(size=32)
    guess = pretrainer.predict(batch)[0]["it"].var().item()
    assert pretrainer(batch).loss.item() == pytest.approx(1.0 + guess, abs=0.1)
    torch.nn.init.zeros_(pretrainer.head.predictors["it"].weight)
    assert pretrainer(batch).loss.item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("target", [Pixels, HOG])
def test_pixels_of_a_target_do_not_reach_the_predictions_and_others_do(target):
    pretrainer, batch = assemble(target)
    before = pretrainer.eval().predict(batch)[0]["it"]
    for positions, arrives in ((batch.mask.target[:, 0], False), (batch.mask.context, True)):
        patches = patchify(batch.image, 4).clone()
        patches[torch.arange(4)[:, None], positions] += 1 + torch.rand(4, 1, 3, 4, 4)
        image = unpatchify(patches, GRID)
        after = pretrainer.predict(dataclasses.replace(batch, views={"image": image}))[0]["it"]
        assert torch.equal(after, before) is not arrives


def test_every_parameter_gets_a_gradient_and_one_batch_is_learned():
    pretrainer, batch = assemble()
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = pretrainer(batch).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pretrainer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("target", [Pixels, HOG])
def test_the_step_is_one_graph(target):
    torch.compiler.reset()
    pretrainer, batch = assemble(target)
    compiled = torch.compile(pretrainer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch).loss, pretrainer(batch).loss)


@pytest.mark.gpu
@pytest.mark.parametrize("target", [Pixels, HOG])
def test_the_step_never_waits_for_the_device(target):
    pretrainer, batch = assemble(target)
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


@pytest.mark.parametrize("settings", [[], MASKFEAT, [*MASKFEAT, "head.part=linear"]])
def test_a_run_trains_and_evaluates(recipe, settings, tmp_path):
    folder = run(load(str(recipe), overrides=settings), out=tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = "hog" if settings else "pixels"
    losses = [line[f"loss/{name}"] for line in lines if f"loss/{name}" in line]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert (folder / "checkpoints" / "step_00000006.safetensors").is_file()
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["head.num_heads=5"], "num_heads: must divide embed_dim = 24"),
        (["head.dept=5"], "Did you mean 'depth'"),
        ([*MASKFEAT, "targets.hog.cell_size=3"], "cell_size: must divide the patch size 4"),
        (["head.part=linear"], "reads the tokens of hidden patches"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(recipe, settings, message):
    with pytest.raises(RecipeError, match=message):
        build(load(str(recipe), overrides=settings), mean=(0.5,) * 3, std=(0.5,) * 3)
