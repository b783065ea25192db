"""Every recipe that is shipped can be built, with each of its presets."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import assemble
from mimkit.recipe.build import build, construct
from mimkit.recipe.problems import Problems
from mimkit.recipe.schema import _preset_names, _read, load
from mimkit.train.distributed import World

ROOT = Path(__file__).parent.parent / "recipes"
CASES = [
    (file, preset)
    for file in sorted(ROOT.rglob("*.toml"))
    for preset in [None, *_preset_names(_read(str(file))[0], Problems())]
]


@pytest.fixture(autouse=True)
def nothing_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)


@pytest.mark.parametrize(("file", "preset"), CASES, ids=lambda case: getattr(case, "stem", case))
def test_it_can_be_built(file, preset):
    recipe = load(str(file), preset=preset)
    assert recipe.name == file.stem
    parts = build(recipe, mean=(0.5,) * 3, std=(0.5,) * 3, device="meta")
    for number in range(len(recipe.evaluate)):
        construct(recipe, f"evaluate.{number}", parts.geometry)
    mask = parts.masker.sample(2, torch.Generator().manual_seed(0))
    assert mask.target.shape[0] == 2
    text = file.read_text()
    assert text.startswith("# ")  # says where it is from


@pytest.mark.parametrize(
    ("file", "preset"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] is not None)) for case in CASES],
    ids=lambda case: getattr(case, "stem", case),
)
def test_its_evaluations_can_judge_its_encoder(file, preset, tmp_path):
    """At miniature depth, so that images can be encoded; widths and heads are the recipe's."""
    whole = load(str(file), preset=preset)
    shallow = {"depth": 1} if "depth" in whole.encoder.options else {}
    shows = "objects" if any(table.cls.needs_objects for table in whole.evaluate) else "shapes"
    recipe = load(
        str(file),
        preset=preset,
        fixed={
            "data": {
                "name": shows,
                "labelled": "none",
                "num_images": 2_000,
                "num_test_images": 100,
                "workers": 0,
            },
            "train": {"batch_size": 8, "processes": 1},
            **({"encoder": shallow} if shallow else {}),
        },
    )
    world, console = World(0, 1, torch.device("cpu")), Console(quiet=True)
    with RunFolder(tmp_path / "run") as folder:
        assert len(assemble(recipe, folder, world, console).evaluators) == len(recipe.evaluate)


@pytest.mark.parametrize(
    ("recipe", "settings", "reason"),
    [
        ("beit_cifar", ["encoder.part=patch_resnet"], "must show hidden patches as mask tokens"),
        ("beit_cifar", ["head.part=cae", "head.num_heads=3"], "must ignore padding"),
        ("cae_cifar", ["head.part=linear"], "must hide patches"),
        ("cae_cifar", ["masker.exact=false"], "without exact the numbers differ"),
        ("selfie_cifar", ["targets.patches.part=pixels"], "compares queries with the encoder"),
        ("selfie_cifar", ["losses.patches.part=cross_entropy"], "compares class only"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(recipe, settings, reason):
    chosen = load(str(ROOT / f"{recipe}.toml"), overrides=settings)
    with pytest.raises(Exception, match=reason):
        build(chosen, mean=(0.5,) * 3, std=(0.5,) * 3, device="meta")
