"""What the encoder of every shipped recipe can be exported as, and that each form computes it."""

from functools import cache
from pathlib import Path

import pytest
import torch

from mimkit import View
from mimkit.export.base import Exportable, allowed, difference, exporter, size
from mimkit.recipe.build import build
from mimkit.recipe.schema import load

ROOT = Path(__file__).parent.parent / "recipes"
FILES = sorted(ROOT.rglob("*.toml"))
ALL = ["onnx", "safetensors", "timm", "torch-export", "transformers"]
ONE_OF_EACH = ["vit_in224", "simmim_cifar", "beit_cifar", "cae_cifar", "selfie_in224"]
"""Encoders of each kind: more of the same differ in sizes alone."""


@cache
def source(name):
    """The recipe's encoder, shallow and narrow, with no weight that is 0 or 1 throughout."""
    (file,) = (each for each in FILES if each.stem == name)
    options = load(str(file)).encoder.options
    small = {"depth": 2} if "depth" in options else {}
    small |= {"width": 16, "depths": [1, 1, 1, 1]} if "width" in options else {}
    recipe = load(str(file), fixed={"encoder": small} if small else {})
    torch.manual_seed(0)
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        for parameter in parts.encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    view = View("image", parts.geometry.grid.image_size)
    return Exportable(parts.encoder.eval().requires_grad_(False), view, parts.geometry.channels)


def is_small_resnet(name):
    (file,) = (each for each in FILES if each.stem == name)
    recipe = load(str(file))
    return recipe.encoder.name == "patch_resnet" and recipe.data.patch_size < 32


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_it_can_be_what_is_documented(name):
    expected = ["onnx", "safetensors", "torch-export"] if is_small_resnet(name) else ALL
    assert allowed(source(name)) == expected


@pytest.mark.parametrize("format_", ALL)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.stem, marks=[] if file.stem in ONE_OF_EACH else [pytest.mark.slow])
        for file in FILES
    ],
)
def test_each_form_computes_the_same(name, format_, tmp_path):
    if format_ == "onnx":
        pytest.importorskip("onnxscript")
    if format_ not in allowed(source(name)):
        pytest.skip("it has no such form")
    chosen, out = exporter(format_), tmp_path / "out"
    path = out.with_suffix(chosen.suffix) if chosen.suffix else out
    out.mkdir()
    chosen.write(source(name), path)
    answer = chosen.reload(path)
    if format_ == "safetensors":
        assert answer is None
        return
    # Rounding grows with what is summed: a residual network without training adds up to hundreds.
    assert difference(source(name), answer) <= 1e-5 * max(1.0, size(source(name)))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_transformers_computes_the_same(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    exporter("transformers").write(source(name), tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    image = source(name).images(2)
    with torch.no_grad():
        own, found = source(name).answer(image), model(image).last_hidden_state
    expected = torch.cat([own[key] for key in ("prefix", "patches") if key in own], dim=1)
    found = found.flatten(2).mT if found.ndim == 4 else found
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-5)
