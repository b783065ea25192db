"""Every shipped recipe on fake CUDA tensors: what a GPU would refuse, shown without one.

Fake tensors have a shape, a type and a device, but no values. They show tensors on different
devices, reads that would wait for the GPU, and shapes that depend on values. Out of reach are
gradients, because autograd asks the driver for the device, and the kernels themselves.
"""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mimkit_beit.tokenizer import Tokenizer, make_network
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mimkit import Batch, Mask, freeze
from mimkit.evaluate.segmentation.network import Heads
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.report.predictions import prediction_columns
from mimkit.train.distributed import World, join
from mimkit.train.guard import Guard
from mimkit.train.means import Means
from mimkit.train.optim import guard, make_optimizer
from mimkit.train.precision import autocast
from mimkit.train.step import Pretrainer

ROOT = Path(__file__).parent.parent / "recipes"
QUICK = ("cae_cifar", "selfie_cifar")
RECIPES = [
    pytest.param(file, marks=[] if file.stem in QUICK else [pytest.mark.slow])
    for file in sorted(ROOT.rglob("*.toml"))
]
CUDA = torch.device("cuda", 0)
BATCH = 4


class OneDevice(TorchDispatchMode):
    """Counts the operations whose tensors lie on different devices."""

    def __init__(self):
        super().__init__()
        self.mixed = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if len({tensor.device for tensor in tensors}) > 1 and not copies:
            self.mixed[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    # torch's fused layers of evaluation have no form for fake tensors in torch 2.11.
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    devices = OneDevice()
    with FakeTensorMode(allow_non_fake_inputs=True), devices:
        yield
    assert not devices.mixed


def _give_tokenizer(target):
    """A tokenizer without weights: nothing can be downloaded or trained here."""
    if hasattr(target, "tokenizer"):
        weights = [make_network(kind, target.size).state_dict() for kind in ("encoder", "decoder")]
        target.tokenizer = freeze(Tokenizer(target.size, *weights))


def _batch(parts, mask):
    tensors = (mask.context, mask.hidden, mask.target, mask.valid)
    masks = [torch.empty(x.shape, dtype=x.dtype, device=CUDA) for x in tensors]
    views = {v.name: torch.empty(BATCH, 3, *v.image_size, device=CUDA) for v in parts.views}
    return Batch(
        views, Mask(mask.grid, *masks), None, torch.empty(BATCH, dtype=torch.int64, device=CUDA)
    )


def _built(file):
    # Two blocks tell what twelve tell.
    shallow = ["encoder.depth=2"] if load(str(file)).encoder.options.get("depth") else []
    recipe = load(str(file), overrides=shallow)
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3)
    for target in parts.targets.values():
        _give_tokenizer(target)
    return recipe, parts, Pretrainer(parts)


def _devices(values):
    return {value.device for value in values if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: getattr(file, "stem", None))
def test_all_but_the_gradients_of_a_shipped_recipe_stays_on_the_gpu(file, monkeypatch):
    recipe, parts, pretrainer = _built(file)
    mask = parts.masker.sample(BATCH, torch.Generator().manual_seed(0))
    backbone = parts.encoder.backbone()
    segmenter = Heads("linear", frozen=False, width=8, norm="group").on(parts.encoder.dense(), 5)
    with fake_cuda(monkeypatch):
        pretrainer.to_empty(device=CUDA)
        batch = _batch(parts, mask)

        # A step up to its loss, and the account of it.
        pretrainer.train()
        guarding, means = Guard(pretrainer, []), Means(World(0, 1, CUDA))
        guarding.before()
        with autocast(CUDA, recipe.train.precision):
            assert torch.is_autocast_enabled("cuda")
            output = pretrainer(batch)
        finite = torch.isfinite(output.loss)
        guarding.after(0, batch.index, finite)
        pretrainer.after_step(0.5)
        means.add(output, output.loss, finite)
        losses = [output.loss, *output.terms.values(), means.sums]
        assert {(value.device, value.dtype) for value in losses} == {(CUDA, torch.float32)}
        assert _devices(output.metrics.values()) <= {CUDA}

        # From a gradient that is given to new weights.
        optimizer = make_optimizer(pretrainer, recipe.train)
        for parameter in pretrainer.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(pretrainer.parameters(), 1.0)
        guard(optimizer, torch.isfinite(norm))
        if recipe.train.optimizer == "adamw":  # the fused kernel of SGD has no fake form
            optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        assert _devices([norm, *moments]) == {CUDA}

        # What judges and shows the encoder.
        with torch.no_grad():
            columns = prediction_columns(pretrainer, batch, parts.views[0])
            shown = [pretrainer.encoder.attention(batch.image)]
            shown += [tokens.patches for tokens in pretrainer.encoder.layers(batch.image)]
            shown.append(backbone.to_empty(device=CUDA)(batch.image))
        assert len(columns) >= 2
        assert _devices(shown) == {CUDA}

        # What learns the class of every pixel, and counts what was found.
        segmenter.to_empty(device=CUDA).train()
        size = batch.image.shape[-2:]
        truth = torch.empty(BATCH, *size, dtype=torch.int64, device=CUDA)
        with autocast(CUDA, recipe.train.precision):
            loss = segmenter.loss(batch.image, truth)
        segmenter.eval()
        with torch.no_grad():
            shown = [segmenter(batch.image), loss.detach()]
        assert loss.dtype == torch.float32
        assert _devices(shown) == {CUDA}


@pytest.mark.parametrize(
    ("device", "rank", "expected"),
    [(None, None, 0), ("cuda", None, 0), ("cuda:1", None, 1), (None, "2", 2), ("cuda", "3", 3)],
)
def test_a_process_takes_a_gpu_that_has_a_number(monkeypatch, device, rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # Up to torch 2.11 fake tensors wake the driver up.
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda *_: None, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    current = []
    # The driver's half alone is missing: what torch checks before it stays.
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with FakeTensorMode(), join(device) as world:
        assert world.device == torch.device("cuda", expected)
    assert current == [expected]
    assert torch.backends.cudnn.benchmark
