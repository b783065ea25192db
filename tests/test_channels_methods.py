"""All methods train and are judged on grey images and on those of six channels."""

import json

import numpy as np
import pytest
from PIL import Image
from test_resume_recipes import QUICK, RECIPES, miniature

import mimkit
from mimkit.recipe.schema import resolved

EVALUATE = (
    {"part": "heldout", "num_images": 8},
    {"part": "knn"},
    {"part": "linear_probe", "label_fractions": [1.0], "weight_decays": [0.1]},
    {"part": "attentive_probe", "total_steps": 2, "batch_size": 8, "lrs": [0.01], "seeds": 1},
    {"part": "finetune", "seeds": 1, "total_steps": 2, "batch_size": 4, "lrs": [0.01]},
)
METHODS = [path for path in RECIPES if path.stem in QUICK]


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Two classes of 32 px, six channels of 12 bits each."""
    root = tmp_path_factory.mktemp("six")
    draws = np.random.default_rng(0)
    for number in range(72):
        part = "train" if number < 48 else "test"
        place = root / part / ("low", "high")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image = draws.integers(0, 2048 + 2048 * (number % 2), (32, 32, 6), dtype=np.uint16)
        np.save(place / f"{number:02d}.npy", image)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("path", METHODS, ids=[path.stem for path in METHODS])
def test_a_method_trains_and_is_judged(path, channels, six, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(resolved(miniature(path, images=48, evaluate=EVALUATE)))
    settings = [f"data.channels={channels}"]
    if channels == 6:
        name = json.dumps(str(six))
        settings += [f"data.name={name}", "data.num_images=none", "data.num_test_images=none"]
    folder = mimkit.run(recipe, settings=settings, device="cpu", out=tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())["results"]
    starts = {(each["evaluator"], each["init"]) for each in results}
    for evaluator in ("knn", "linear_probe", "attentive_probe"):
        assert {(evaluator, init) for init in ("pretrained", "random", "pixels")} <= starts
    assert ("finetune", "scratch") in starts
    record = json.loads((folder / "encoder.json").read_text())
    assert record["channels"] == len(record["mean"]) == channels
    for picture in (folder / "pictures").glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    assert (folder / "report.html").stat().st_size > 10_000
