"""Floating-point operations, against arithmetic by hand and against attention written out."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mimkit import Geometry, Grid, count_flops
from mimkit.builtin.encoders import ViT
from mimkit.parts.records import Batch
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

ROOT = Path(__file__).parent.parent / "recipes"
QUICK = ("beit_cifar", "cae_cifar", "mae_shapes", "selfie_cifar")
RECIPES = [  # the slow suite has all
    pytest.param(file, id=file.stem, marks=() if file.stem in QUICK else pytest.mark.slow)
    for file in sorted(ROOT.rglob("*.toml"))
]


def drawn(*shape):
    return torch.randn(*shape, requires_grad=True)


class Pictures:
    fingerprint = "noise"

    def __len__(self):
        return 16

    def view(self, index, view):
        return torch.rand(len(index), 3, *view.image_size, generator=torch.Generator())


def in_miniature(file: Path, workdir: Path) -> tuple[Pretrainer, Batch]:
    """A shipped recipe with its parts made small, and an image of noise for it."""
    whole = load(str(file))
    encoder = dict(whole.encoder.cls.miniature) or {"embed_dim": 48, "depth": 2, "num_heads": 3}
    targets = {name: dict(table.cls.miniature) for name, table in whole.targets.items()}
    fixed = {
        "encoder": encoder,
        "head": dict(whole.head.cls.miniature),
        "targets": {name: options for name, options in targets.items() if options},
    }
    parts = build(load(str(file), fixed=fixed), mean=(0.5,) * 3, std=(0.5,) * 3)
    for target in parts.targets.values():
        cpu = torch.device("cpu")
        target.prepare(Pictures(), workdir, device=cpu, say=lambda _: None)
    mask = parts.masker.sample(1, torch.Generator().manual_seed(0))
    views = {view.name: torch.rand(1, 3, *view.image_size) for view in parts.views}
    return Pretrainer(parts).train(), Batch(views, mask, None, torch.arange(1))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.mark.parametrize("file", RECIPES)
def test_every_recipe_counts_alike_with_fused_attention_and_with_products(file, tokenizers):
    pretrainer, batch = in_miniature(file, tokenizers)

    def step():
        torch.manual_seed(0)
        pretrainer(batch).loss.backward()

    fused = count_flops(step)
    plain = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), plain:
        step()
    assert plain.get_total_flops() == fused


def block(tokens: int, dim: int) -> int:
    """A transformer's block: query, key, value, output, MLP of four times the width; attention."""
    return 2 * tokens * dim**2 * (3 + 1 + 4 + 4) + 2 * 2 * tokens**2 * dim


def test_a_vision_transformer_costs_what_its_paper_says():
    vit = ViT(Geometry(Grid(14, 14, 16)), embed_dim=768, depth=12, num_heads=12)
    with torch.no_grad():
        found = count_flops(lambda: vit(torch.zeros(1, 3, 224, 224)))
    assert found == 12 * block(1 + 196, 768) + 2 * 196 * (16 * 16 * 3) * 768
    assert found / 2e9 == pytest.approx(17.6, abs=0.05)  # timm: deit_base_patch16_224


def test_a_step_of_mae_costs_what_is_reckoned_by_hand():
    # 8 x 8 patches of 4 px, a quarter of them visible; encoder 64 wide, decoder too.
    recipe = load(str(ROOT / "mae_shapes.toml"))
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3)
    pretrainer = Pretrainer(parts).train()
    mask = parts.masker.sample(4, torch.Generator().manual_seed(0))
    batch = Batch({"image": torch.rand(4, 3, 32, 32)}, mask, None, torch.arange(4))

    def step():
        pretrainer(batch).loss.backward()

    found = count_flops(step) / 4

    encoder, decoder = 4 * block(1 + 16, 64), 2 * block(1 + 64, 64)
    entry, exit_ = 2 * 17 * 64 * 64, 2 * 48 * 64 * 48  # of the decoder; 48 hidden patches of 48
    patches = 2 * 64 * 48 * 64
    # Backwards twice as much, but nobody asks for a gradient of the pixels.
    assert found == 3 * (encoder + decoder + entry + exit_) + 2 * patches == 67_858_944


CASES = {
    "matrix and vector": (lambda: drawn(3, 4) @ drawn(4), 2 * 12),
    "added matrix and vector": (lambda: torch.addmv(drawn(3), drawn(3, 4), drawn(4)), 2 * 12),
    "two vectors": (lambda: drawn(4) @ drawn(4), 2 * 4),
    "sum of products": (
        lambda: torch.addbmm(drawn(3, 5), drawn(2, 3, 4), drawn(2, 4, 5)),
        2 * 2 * 3 * 4 * 5,
    ),
    "added products": (
        lambda: torch.baddbmm(drawn(2, 3, 5), drawn(2, 3, 4), drawn(2, 4, 5)),
        2 * 2 * 3 * 4 * 5,
    ),
    "einsum": (
        lambda: torch.einsum("bij,bjk->bik", drawn(2, 3, 4), drawn(2, 4, 5)),
        2 * 2 * 3 * 4 * 5,
    ),
    "linear on one vector": (lambda: F.linear(drawn(4), drawn(3, 4), drawn(3)), 2 * 12),
    "attention": (
        lambda: F.scaled_dot_product_attention(
            drawn(1, 2, 5, 8), drawn(1, 2, 7, 8), drawn(1, 2, 7, 6)
        ),
        2 * 2 * 5 * 7 * (8 + 6),
    ),
    "attention with a bias": (
        lambda: F.scaled_dot_product_attention(
            *(drawn(1, 2, 5, 8) for _ in range(3)), attn_mask=torch.zeros(5, 5)
        ),
        2 * 2 * 5 * 5 * 16,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products_are_counted(name):
    run, expected = CASES[name]
    assert count_flops(run) == expected
    with torch.inference_mode():
        assert count_flops(run) == expected


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_costs_twice_as_much_backwards(kernel):
    def run():
        with sdpa_kernel(kernel):
            attended = F.scaled_dot_product_attention(*(drawn(1, 2, 5, 8) for _ in range(3)))
        attended.sum().backward()

    assert count_flops(run) == 3 * (2 * 2 * 5 * 5 * 16)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_backwards_costs_twice_as_much_also_in_groups(groups, transposed):
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(4, 8, 3, padding=1, stride=2, groups=groups)
    places = 36 if transposed else 9
    expected = 2 * 2 * places * 4 * 8 * 9 // groups
    assert count_flops(lambda: layer(drawn(2, 4, 6, 6)).sum().backward()) == 3 * expected
    assert count_flops(lambda: layer(torch.zeros(2, 4, 6, 6)).sum().backward()) == 2 * expected


def test_fused_layers_count_as_their_pieces_and_are_switched_on_again():
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True).eval()
    image = torch.zeros(3, 5, 8)
    with torch.no_grad():
        assert count_flops(lambda: layer(image)) == 3 * block(5, 8)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_frozen_network_counts_forwards():
    frozen = nn.Linear(4, 3).requires_grad_(False)
    assert count_flops(lambda: frozen(torch.zeros(2, 4))) == 2 * 2 * 4 * 3
