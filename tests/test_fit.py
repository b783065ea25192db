"""Six miniature methods through one unchanged core.

Parts that no installed distribution has yet are sketched here, as small as their idea allows.
Each method must start at the loss that its arithmetic predicts, must not let the pixels of what
it predicts reach its predictions, and must train every parameter of encoder and head.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from mimkit_selfie.encoder import PatchResNet
from mimkit_selfie.head import PointerHead
from mimkit_selfie.loss import PointerLoss
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit import (
    Batch,
    Encoder,
    Geometry,
    Grid,
    Head,
    Loss,
    Mask,
    Masker,
    Target,
    Term,
    Tokens,
    View,
    Width,
    patchify,
    scatter,
    take,
    unpatchify,
)
from mimkit.builtin.encoders import ViT
from mimkit.builtin.heads import LinearHead
from mimkit.builtin.losses import L1, MSE, CrossEntropy, SmoothL1
from mimkit.builtin.maskers import RandomMasker
from mimkit.builtin.positions import sincos
from mimkit.builtin.targets import Latent, Pixels
from mimkit.recipe.build import Parts
from mimkit.train.step import Pretrainer

GRID = Grid(rows=4, cols=4, patch_size=4)
NUM_IDS = 32


# ------------------------------------------------------------------------- parts of the methods


class BlockMasker(Masker):
    """BEiT: one rectangle of 2 to 6 patches, as mask tokens; counts differ between images."""

    ragged = True
    num_targets = 6
    hides = True

    def __init__(self, geometry: Geometry) -> None:
        self.grid = geometry.grid

    def sample(self, batch_size: int, generator: torch.Generator) -> Mask:
        """Draws height, width and place of each rectangle."""
        masked = torch.zeros(batch_size, self.grid.rows, self.grid.cols, dtype=torch.bool)
        for number, image in enumerate(masked):
            height = 1 + number % 2  # so that every batch of two is ragged
            width = int(torch.randint(2, 4, (), generator=generator))
            row = int(torch.randint(0, self.grid.rows - height + 1, (), generator=generator))
            col = int(torch.randint(0, self.grid.cols - width + 1, (), generator=generator))
            image[row : row + height, col : col + width] = True
        return Mask.replace(masked.flatten(1), self.grid, self.num_targets)


class MultiBlockMasker(Masker):
    """I-JEPA: four groups of 2 x 2 patches; the context is some of what no group covers."""

    num_targets = 4

    def __init__(self, geometry: Geometry) -> None:
        self.grid = geometry.grid

    def sample(self, batch_size: int, generator: torch.Generator) -> Mask:
        """Draws the corners of four overlapping blocks among the upper three rows."""
        cols = self.grid.cols
        row = torch.randint(0, self.grid.rows - 2, (batch_size, 4, 1), generator=generator)
        col = torch.randint(0, cols - 1, (batch_size, 4, 1), generator=generator)
        target = row * cols + col + torch.tensor([0, 1, cols, cols + 1])  # (B, 4, 4)
        noise = torch.rand(batch_size, self.grid.num_patches, generator=generator)
        noise.scatter_(1, target.flatten(1), 2.0)
        context = noise.argsort(dim=1)[:, :3].sort(dim=1).values  # never more than a row is left
        hidden = torch.zeros_like(context, dtype=torch.bool)
        return Mask(self.grid, context, hidden, target, torch.ones_like(target, dtype=torch.bool))


class Ids(Target):
    """BEiT: a frozen tokenizer with a view of its own; here, the best of random templates."""

    ragged = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.views = (View("ids", (8, 8), interpolation="lanczos"),)
        self.width = Width("class", NUM_IDS)
        self.register_buffer("templates", torch.randn(2 * 2 * 3, NUM_IDS))

    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Reads the ids at the targets."""
        patches = patchify(batch.views["ids"], 2).flatten(2)  # (B, N, 12)
        return take((patches @ self.templates).argmax(dim=-1), batch.mask.target)


class Regressor(Head):
    """CAE: queries attend to the visible tokens (latent); a linear decoder reads them (ids)."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        dim = geometry.embed_dim
        self.register_buffer("positions", sincos(geometry.grid, dim))
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.decoder = nn.Linear(dim, geometry.outputs["ids"].size)
        nn.init.trunc_normal_(self.decoder.weight, std=0.02)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts both of each target."""
        query = self.mask_token + self.positions[mask.target[:, 0]]  # (B, M, D)
        seen = tokens.patches + self.positions[tokens.index]
        attended, _ = self.attention(query, seen, tokens.patches, need_weights=False)
        latent = self.norm(query + attended)[:, None]  # (B, 1, M, D)
        return {"latent": latent, "ids": self.decoder(latent)}


class Decoder(Head):
    """MAE: mask tokens join the visible ones on the whole grid; read at the targets."""

    ragged = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        dim = geometry.embed_dim
        self.embed = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.register_buffer("positions", sincos(geometry.grid, dim))
        self.block = Block(dim, 2, qkv_bias=True)
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, geometry.outputs["pixels"].size)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Decodes the whole grid."""
        size = tokens.patches.shape[0]
        grid = self.mask_token.expand(size, mask.grid.num_patches, -1)
        grid = scatter(grid, tokens.index, self.embed(tokens.patches)) + self.positions
        return {"pixels": take(self.predict(self.norm(self.block(grid))), mask.target)}


class Predictor(Head):
    """I-JEPA: for each group, context and mask tokens with positions through a block."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        dim = geometry.embed_dim
        self.embed = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.register_buffer("positions", sincos(geometry.grid, dim))
        self.block = Block(dim, 2, qkv_bias=True)
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)

    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts each group without knowing of the others."""
        num_groups, num_targets = mask.target.shape[1:]
        context = self.embed(tokens.patches) + self.positions[tokens.index]  # (B, S, D)
        context = context.repeat_interleave(num_groups, dim=0)  # (B * G, S, D)
        query = self.mask_token + self.positions[mask.target.flatten(0, 1)]  # (B * G, M, D)
        x = self.norm(self.block(torch.cat([context, query], dim=1)))[:, -num_targets:]
        return {"latent": self.predict(x).view(*mask.target.shape, -1)}


# ---------------------------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """What a recipe would say, and the loss of predictions that know nothing yet."""

    masker: Masker
    encoder: Callable[[Geometry], Encoder]
    targets: dict[str, Callable[[Geometry], Target]]
    head: Callable[[Geometry], Head]
    losses: dict[str, tuple[Callable[[Geometry], Loss], float]]
    start: float
    tolerance: float


def vit(geometry: Geometry, **options) -> ViT:
    return ViT(geometry, embed_dim=32, depth=2, num_heads=2, **options)


SMOOTH_L1_OF_A_NORMAL = 0.425
ABSOLUTE_NORMAL = math.sqrt(2 / math.pi)
AT = Geometry(GRID)
METHODS = {
    "selfie": Method(
        masker=RandomMasker(AT, mask_ratio=0.25),
        encoder=lambda g: PatchResNet(g, width=8, depths=(1, 1, 1, 1)),
        targets={"patches": lambda g: Latent(g, detach=False)},
        head=lambda g: PointerHead(g, num_heads=4, mlp_dim=64),
        losses={"patches": (lambda g: PointerLoss(g, logit_scale="sqrt_dim"), 1.0)},
        start=math.log(4),
        tolerance=0.4,
    ),
    "beit": Method(
        masker=BlockMasker(AT),
        encoder=lambda g: vit(g, positions="learned", mask_token=True, layer_scale=0.1),
        targets={"ids": Ids},
        head=LinearHead,
        losses={"ids": (CrossEntropy, 1.0)},
        start=math.log(NUM_IDS),
        tolerance=0.1,
    ),
    "cae": Method(
        masker=RandomMasker(AT, mask_ratio=0.5),
        encoder=lambda g: vit(g, positions="learned"),
        targets={"ids": Ids, "latent": Latent},
        head=Regressor,
        losses={"ids": (CrossEntropy, 1.0), "latent": (MSE, 2.0)},
        start=math.log(NUM_IDS) + 2 * 2.0,  # two unrelated vectors of unit variance
        tolerance=0.5,
    ),
    "mae": Method(
        masker=RandomMasker(AT, mask_ratio=0.75),
        encoder=vit,
        targets={"pixels": Pixels},
        head=Decoder,
        losses={"pixels": (MSE, 1.0)},
        start=1.0,
        tolerance=0.1,
    ),
    "simmim": Method(
        masker=RandomMasker(AT, mask_ratio=0.5, mode="replace", unit=2),
        encoder=lambda g: vit(g, mask_token=True, class_token=False),
        targets={"pixels": lambda g: Pixels(g, normalize=False)},
        head=LinearHead,
        losses={"pixels": (L1, 1.0)},
        start=ABSOLUTE_NORMAL,
        tolerance=0.1,
    ),
    "ijepa": Method(
        masker=MultiBlockMasker(AT),
        encoder=lambda g: vit(g, class_token=False),
        targets={"latent": lambda g: Latent(g, sees="all", momentum=0.996, norm=True)},
        head=Predictor,
        losses={"latent": (SmoothL1, 1.0)},
        start=SMOOTH_L1_OF_A_NORMAL,
        tolerance=0.1,
    ),
}


def assemble(method: Method) -> Pretrainer:
    """Joins the parts in the order that the build keeps."""
    torch.manual_seed(0)
    encoder = method.encoder(AT)
    geometry = dataclasses.replace(AT, embed_dim=encoder.embed_dim)
    targets = {name: make(geometry) for name, make in method.targets.items()}
    outputs = {name: targets[name].width for name in method.losses}
    geometry = dataclasses.replace(geometry, outputs=outputs)
    head = method.head(geometry)
    terms = tuple(
        Term(name, name, name, make(geometry), weight)
        for name, (make, weight) in method.losses.items()
    )
    for target in targets.values():
        target.bind(encoder)
    views = (View("image", GRID.image_size), *(v for t in targets.values() for v in t.views))
    return Pretrainer(Parts(geometry, method.masker, encoder, targets, head, terms, outputs, views))


def draw(method: Method, size: int = 2, seed: int = 0) -> Batch:
    """Draws masks, and images of noise in both sizes that the methods ask for."""
    generator = torch.Generator().manual_seed(seed)
    mask = method.masker.sample(size, generator)
    views = {
        "image": torch.randn(size, 3, 16, 16, generator=generator),
        "ids": torch.randn(size, 3, 8, 8, generator=generator),
    }
    return Batch(views, mask, None, torch.arange(size))


def with_noise_at(batch: Batch, cells: Tensor) -> Batch:
    """Replaces the pixels of some patches by other noise."""
    patches = patchify(batch.image, 4).clone()
    patches[cells] = torch.randn_like(patches[cells])
    return dataclasses.replace(batch, views={**batch.views, "image": unpatchify(patches, GRID)})


def cells_of(index: Tensor, keep: Tensor) -> Tensor:
    """Marks positions on the grid, (B, N) bool."""
    marks = torch.zeros(index.shape[0], GRID.num_patches + 1, dtype=torch.bool)
    return marks.scatter(1, torch.where(keep, index, GRID.num_patches).flatten(1), True)[:, :-1]


every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


# ---------------------------------------------------------------------------------------- tests


@every_method
def test_the_loss_starts_where_arithmetic_puts_it(method):
    pretrainer = assemble(method)
    output = pretrainer(draw(method, size=32))
    assert output.loss.item() == pytest.approx(method.start, abs=method.tolerance)
    assert output.terms.keys() == method.losses.keys()
    weighted = sum(weight * output.terms[name] for name, (_, weight) in method.losses.items())
    torch.testing.assert_close(output.loss, weighted)


@every_method
@pytest.mark.parametrize("training", [True, False])
def test_pixels_of_a_target_do_not_reach_the_predictions(method, training):
    pretrainer, batch = assemble(method).train(training), draw(method)
    other = with_noise_at(batch, cells_of(batch.mask.target, batch.mask.valid))
    predictions = []
    for given in (batch, other):
        torch.manual_seed(1)  # the same dropout for both
        predictions.append(pretrainer.predict(given)[0])
    assert predictions[0].keys() == pretrainer.outputs.keys()
    for name, prediction in predictions[0].items():
        assert torch.equal(prediction, predictions[1][name]), name


@every_method
def test_pixels_of_every_visible_patch_reach_every_prediction(method):
    pretrainer, batch = assemble(method).eval(), draw(method)
    before, _ = pretrainer.predict(batch)
    visible = cells_of(batch.mask.context, ~batch.mask.hidden)
    for cell in range(GRID.num_patches):
        chosen = visible.clone()
        chosen[:, torch.arange(GRID.num_patches) != cell] = False
        after, _ = pretrainer.predict(with_noise_at(batch, chosen))
        for name, prediction in before.items():
            moved = (prediction - after[name]).abs().amax(dim=-1) > 0  # (B, G, M)
            expected = chosen.any(dim=1)[:, None, None] & batch.mask.valid
            assert torch.equal(moved & batch.mask.valid, expected), name


@every_method
def test_every_parameter_of_encoder_and_head_gets_a_gradient(method):
    pretrainer = assemble(method)
    pretrainer(draw(method)).loss.backward()
    for name, parameter in pretrainer.named_parameters():
        if name.startswith(("encoder.", "head.")):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert not parameter.requires_grad, name


@every_method
def test_one_batch_is_learned(method):
    pretrainer, batch = assemble(method), draw(method)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=3e-3)
    losses = []
    for step in range(1, 31):
        output = pretrainer(batch)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        pretrainer.after_step(step / 30)
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]


@every_method
def test_parameters_count_once(method):
    pretrainer = assemble(method)
    names = [name for name, _ in pretrainer.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(pretrainer.parameters()))


def test_padding_does_not_change_the_loss():
    method = METHODS["beit"]
    pretrainer, batch = assemble(method).eval(), draw(method)
    assert not batch.mask.valid.all()
    moved = torch.where(batch.mask.valid, batch.mask.target, 13)
    elsewhere = dataclasses.replace(batch, mask=dataclasses.replace(batch.mask, target=moved))
    longer = dataclasses.replace(
        batch.mask,
        target=nn.functional.pad(batch.mask.target, (0, 3)),
        valid=nn.functional.pad(batch.mask.valid, (0, 3)),
    )
    expected = pretrainer(batch)
    for other in (elsewhere, dataclasses.replace(batch, mask=longer)):
        output = pretrainer(other)
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(output.metrics, expected.metrics)


def test_the_pointer_learns_from_both_sides():
    """Without the gradient through the candidates, the patch network would learn less."""
    method = METHODS["selfie"]
    gradients = []
    for detach in (False, True):
        targets = {"patches": lambda g, detach=detach: Latent(g, detach=detach)}
        pretrainer = assemble(dataclasses.replace(method, targets=targets)).eval()
        pretrainer(draw(method)).loss.backward()
        gradients.append(pretrainer.encoder.stem[0].weight.grad)
    assert not torch.allclose(*gradients)


@pytest.mark.slow
@every_method
def test_the_step_is_one_graph_that_computes_the_same(method):
    # All pretrainers share one forward, and with it torch's limit of recompilations.
    torch.compiler.reset()
    # Dropout draws other numbers in a compiled step.
    pretrainer = assemble(method).eval()
    compiled = torch.compile(pretrainer, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        batch = draw(method, seed=seed)
        torch.testing.assert_close(compiled(batch).loss, pretrainer(batch).loss)
    compiled.train()(batch).loss.backward()
    assert all(parameter.grad is not None for parameter in pretrainer.head.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selfie", "beit"])
def test_the_graph_can_be_lowered_to_machine_code(name):
    torch.compiler.reset()
    pretrainer = assemble(METHODS[name]).train()
    output = torch.compile(pretrainer, fullgraph=True)(draw(METHODS[name]))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad is not None for parameter in pretrainer.encoder.parameters())
