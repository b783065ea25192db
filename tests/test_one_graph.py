"""Every shipped recipe's step is one graph, forwards and backwards, in float32 and in bfloat16.

Traced and differentiated as on a GPU, but run by torch's own kernels ("aot_eager"): what inductor
makes of the graph for a GPU is out of reach here.
"""

from pathlib import Path

import pytest
import torch
from mimkit_beit.tokenizer import Tokenizer, make_network
from torch import nn

from mimkit import Batch, freeze
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

QUICK = ("cae_shapes",)  # what has most parts
CASES = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
    for path in sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))
]
SMALL = {
    "encoder": {"embed_dim": 48, "depth": 2, "num_heads": 3, "width": 8, "depths": [1, 1, 1, 1]},
    "head": {"embed_dim": 48, "depth": 1, "depth_regressor": 1, "depth_decoder": 1, "num_heads": 4},
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def assembled(path):
    whole = load(str(path))
    fixed = {
        kind: {k: v for k, v in sizes.items() if k in getattr(whole, kind).options}
        for kind, sizes in SMALL.items()
    }
    small = {name: dict(table.cls.miniature) for name, table in whole.targets.items()}
    recipe = load(str(path), fixed={**fixed, "targets": {n: o for n, o in small.items() if o}})
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3)
    for target in parts.targets.values():
        if hasattr(target, "tokenizer"):  # nothing can be downloaded or trained here
            networks = [make_network(kind, target.size) for kind in ("encoder", "decoder")]
            for network in networks:
                for weight in network.to_empty(device="cpu").parameters():
                    nn.init.normal_(weight, std=0.1)
            weights = [network.state_dict() for network in networks]
            target.tokenizer = freeze(Tokenizer(target.size, *weights))
    mask = parts.masker.sample(3, torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    views = {v.name: torch.rand(3, 3, *v.image_size, generator=draws) for v in parts.views}
    return Pretrainer(parts), Batch(views, mask, None, torch.arange(3))


@pytest.mark.parametrize("path", CASES)
def test_the_step_is_one_graph_without_inductor(path):
    torch.manual_seed(0)
    pretrainer, batch = assembled(path)
    for dtype in (torch.float32, torch.bfloat16):
        torch.compiler.reset()
        compiled = torch.compile(pretrainer, fullgraph=True, backend="aot_eager")
        found = []
        for forward in (pretrainer, compiled):
            torch.manual_seed(1)
            pretrainer.zero_grad()
            pretrainer.train()
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                output = forward(batch)
            output.loss.backward()
            gradients = [p.grad for p in pretrainer.parameters() if p.grad is not None]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            found.append((output.loss.detach(), norm, len(gradients)))
        (loss, norm, number), (its_loss, its_norm, its_number) = found
        assert number == its_number
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(its_loss, loss, **close)
        torch.testing.assert_close(its_norm, norm, **close)
