"""CAE's whole step: its start, what leaks and what does not, where gradients go."""

import dataclasses
import math

import pytest
import torch
from mimkit_cae.encoder import CAEViT
from mimkit_cae.head import CAEHead
from mimkit_cae.loss import AlignmentLoss

from mimkit import Batch, Geometry, Grid, Mask, Target, Term, Width, patchify, take, unpatchify
from mimkit.builtin.losses import MSE, CrossEntropy
from mimkit.builtin.targets import Latent, Pixels
from mimkit.recipe.build import Parts
from mimkit.train.step import Pretrainer

GRID = Grid(3, 5, 4)
DIM, NUM_IDS, NUM_TARGETS = 64, 512, 7


class Ids(Target):
    """Ids that come with the batch."""

    width = Width("class", NUM_IDS)

    def forward(self, batch, encoder):
        return take(batch.views["ids"], batch.mask.target)


def assemble(*, tokens=True, align=True, pixels=False, drop_path=0.1, grid=GRID, **head_options):
    torch.manual_seed(0)
    encoder = CAEViT(Geometry(grid), embed_dim=DIM, depth=2, num_heads=4, drop_path=drop_path)
    geometry = Geometry(grid, embed_dim=DIM)
    targets, terms = {}, []
    if tokens:
        targets["tokens"] = Ids()
        terms.append(Term("tokens", "tokens", "tokens", CrossEntropy(geometry)))
    if pixels:
        targets["pixels"] = Pixels(geometry)
        terms.append(Term("pixels", "pixels", "pixels", MSE(geometry)))
    if align:
        targets["latent"] = Latent(geometry, sees="targets", detach=True)
        terms.append(Term("latent", "latent", "latent", AlignmentLoss(geometry), 2.0))
    outputs = {term.prediction: targets[term.target].width for term in terms}
    geometry = dataclasses.replace(geometry, outputs=outputs)
    options = {"depth_regressor": 2, "depth_decoder": 2, "num_heads": 4, "drop_path": drop_path}
    head = CAEHead(geometry, **(options | head_options))
    return Pretrainer(Parts(geometry, None, encoder, targets, head, tuple(terms), outputs, ()))


def draw(size=2, seed=0, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(size, grid.num_patches, generator=generator).argsort(1).argsort(1)
    views = {
        "image": torch.randn(size, 3, *grid.image_size, generator=generator),
        "ids": torch.randint(NUM_IDS, (size, grid.num_patches), generator=generator),
    }
    return Batch(views, Mask.drop(order < NUM_TARGETS, grid), None, torch.arange(size))


def with_noise_at(batch, index):
    """Replaces the pixels of some patches (B, K) by other noise."""
    patches = patchify(batch.image, batch.mask.grid.patch_size).clone()
    for number, cells in enumerate(index):
        patches[number, cells] = torch.randn_like(patches[number, cells])
    views = {**batch.views, "image": unpatchify(patches, batch.mask.grid)}
    return dataclasses.replace(batch, views=views)


# ---------------------------------------------------------------------------------- the start


def test_the_loss_starts_at_that_of_guessing_plus_twice_two():
    """13.0 with 8192 tokens; Xavier's scores are not all alike, which adds D / (D + K)."""
    output = assemble()(draw(size=64))
    guessing = math.log(NUM_IDS) + DIM / (DIM + NUM_IDS)
    assert output.terms["tokens"].item() == pytest.approx(guessing, abs=0.1)
    assert output.terms["latent"].item() == pytest.approx(2.0, abs=0.25)
    weighted = output.terms["tokens"] + 2 * output.terms["latent"]
    torch.testing.assert_close(output.loss, weighted)


def test_the_watch_for_collapse_is_in_the_log():
    metrics = assemble()(draw()).metrics
    assert metrics["latent/prediction_std"] > 0
    assert metrics["latent/target_std"] > 0


@pytest.mark.slow
def test_at_full_size_it_starts_at_13():
    """Both parts as the paper's base model, on two images."""
    torch.manual_seed(0)
    grid = Grid(14, 14, 16)
    encoder = CAEViT(Geometry(grid)).eval()
    outputs = {"tokens": Width("class", 8192), "latent": Width("vector", 768)}
    geometry = Geometry(grid, embed_dim=768, outputs=outputs)
    head = CAEHead(geometry).eval()
    mask = Mask.drop(torch.rand(2, 196).argsort(1).argsort(1) < 98, grid)
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        found = head(encoder(image, mask.context), mask)
        latent = encoder(image, mask.target[:, 0]).patches[:, None]
    scores = found["tokens"]
    # Over all answers, so that no draw of the right ones disturbs.
    entropy = (scores.logsumexp(-1) - scores.mean(-1)).mean()
    alignment = (found["latent"] - latent).square().mean()
    assert entropy.item() == pytest.approx(9.011 + 768 / 8960, abs=0.02)
    assert alignment.item() == pytest.approx(2.0, abs=0.1)
    assert (entropy + 2 * alignment).item() == pytest.approx(13.0, abs=0.3)


# ---------------------------------------------------------------------------------------- leaks


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grid", [GRID, Grid(4, 4, 4)], ids=["3x5", "4x4"])
def test_pixels_of_targets_never_reach_a_prediction(training, grid):
    pretrainer, batch = assemble(grid=grid).train(training), draw(grid=grid)
    other = with_noise_at(batch, batch.mask.target[:, 0])
    found = []
    for given in (batch, other):
        torch.manual_seed(1)  # the same branches are dropped
        found.append(pretrainer.predict(given))
    for name, prediction in found[0][0].items():
        assert torch.equal(prediction, found[1][0][name]), name
    assert not torch.equal(found[0][1]["latent"], found[1][1]["latent"])


def test_a_prediction_does_not_change_with_what_other_masked_patches_show():
    """The permutation test: their content is exchanged, their places are not."""
    pretrainer, batch = assemble().eval(), draw()
    patches = patchify(batch.image, 4).clone()
    for number, target in enumerate(batch.mask.target[:, 0]):
        patches[number, target[1:]] = patches[number, target[1:].roll(1)]
    views = {**batch.views, "image": unpatchify(patches, GRID)}
    before, _ = pretrainer.predict(batch)
    after, _ = pretrainer.predict(dataclasses.replace(batch, views=views))
    for name in ("latent", "tokens"):
        assert torch.equal(before[name], after[name]), name


def test_the_order_of_the_targets_is_that_of_the_predictions():
    pretrainer, batch = assemble().eval(), draw()
    order = torch.tensor([3, 1, 0, 6, 5, 2, 4])
    mask = dataclasses.replace(batch.mask, target=batch.mask.target[:, :, order])
    before = pretrainer.predict(batch)
    after = pretrainer.predict(dataclasses.replace(batch, mask=mask))
    for theirs, ours in zip(before, after, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value[:, :, order])


def test_every_visible_patch_reaches_every_prediction():
    pretrainer, batch = assemble().eval(), draw()
    before, _ = pretrainer.predict(batch)
    for place in range(batch.mask.context.shape[1]):
        other = with_noise_at(batch, batch.mask.context[:, place : place + 1])
        for name, prediction in pretrainer.predict(other)[0].items():
            assert (prediction - before[name]).abs().amax(-1).gt(0).all(), name


def test_one_image_gives_what_it_gives_among_others():
    pretrainer, batch = assemble().eval(), draw(3)
    views = {name: view[1:2] for name, view in batch.views.items()}
    one = Batch(views, batch.mask.rows(1, 2), None, batch.index[1:2])
    alone, among = pretrainer.predict(one), pretrainer.predict(batch)
    for name, value in {**alone[0], **alone[1]}.items():
        torch.testing.assert_close(value, {**among[0], **among[1]}[name][1:2])


# ------------------------------------------------------------------------------------- gradients


def gradients(pretrainer, batch):
    pretrainer(batch).loss.backward()
    return {name: parameter.grad for name, parameter in pretrainer.encoder.named_parameters()}


def test_the_encoder_gets_no_gradient_through_the_alignment_target():
    """Against the same loss with the target held as numbers."""
    pretrainer, batch = assemble(tokens=False, drop_path=0.0), draw()
    found = gradients(pretrainer, batch)
    _, targets = pretrainer.predict(batch)
    held = targets["latent"].detach().clone()
    again = assemble(tokens=False, drop_path=0.0)
    tokens = again.encoder(batch.image, batch.mask.context)
    loss = 2 * (again.head(tokens, batch.mask)["latent"] - held).square().mean()
    loss.backward()
    for name, parameter in again.encoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_the_class_token_learns_though_no_loss_reads_it():
    found = gradients(assemble(), draw())
    assert found["cls_token"].abs().sum() > 0


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"align": False},
        {"depth_decoder": 0},
        {"tokens": False, "pixels": True},
        {"pixels": True, "layer_scale": None},
    ],
    ids=["cae", "no alignment", "no decoder", "pixels", "both"],
)
def test_every_parameter_of_every_ablation_gets_a_gradient(method):
    pretrainer = assemble(**method, drop_path=0.0)
    pretrainer(draw()).loss.backward()
    for name, parameter in pretrainer.named_parameters():
        assert parameter.grad is not None, name
        # What is added to all keys alike changes no attention.
        assert "norm1_k.bias" in name or parameter.grad.abs().sum() > 0, name


def test_one_batch_is_learned():
    pretrainer, batch = assemble(), draw()
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = pretrainer(batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_the_step_is_one_graph_that_computes_the_same():
    torch.compiler.reset()
    pretrainer = assemble().eval()
    compiled = torch.compile(pretrainer, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        batch = draw(seed=seed)
        torch.testing.assert_close(compiled(batch).loss, pretrainer(batch).loss)
    compiled.train()(batch).loss.backward()
    assert all(parameter.grad is not None for parameter in pretrainer.head.parameters())
