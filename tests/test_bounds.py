"""Options that cannot be are refused by their names, before anything is trained."""

import math
import tomllib

import pytest
import tomli_w

from mimkit import Geometry, Grid
from mimkit.errors import RecipeError
from mimkit.evaluate.attentive import AttentiveProbe
from mimkit.evaluate.consistency import KNNConsistency
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.heldout import HeldOut
from mimkit.evaluate.knn import KNN
from mimkit.evaluate.linear import LinearProbe
from mimkit.recipe.build import construct
from mimkit.recipe.schema import load

LABELLED = (LinearProbe, AttentiveProbe, FineTune)
TRAINED = (AttentiveProbe, FineTune)
COUNTS = {
    KNN: ("k", "num_images", "num_test_images"),
    KNNConsistency: ("k", "num_images"),
    HeldOut: ("num_images",),
    LinearProbe: ("seeds", "num_test_images"),
    AttentiveProbe: ("seeds", "num_test_images", "total_steps", "batch_size", "num_heads"),
    FineTune: ("seeds", "num_test_images", "total_steps", "batch_size"),
}
BAD = [
    *((cls, name, value) for cls, names in COUNTS.items() for name in names for value in (0, -3)),
    *((KNN, "temperature", value) for value in (0.0, -0.07, math.nan, math.inf)),
    *((cls, "every_steps", -1) for cls in (KNN, KNNConsistency, HeldOut)),
    *(
        (cls, "label_fractions", value)
        for cls in LABELLED
        for value in ((), (0.0,), (-0.1,), (1.5,), (0.1, 0.1), (math.nan,))
    ),
    *((cls, "lrs", value) for cls in TRAINED for value in ((), (0.0,), (0.1, -0.1), (0.1, 0.1))),
    *((cls, "warmup_steps", -1) for cls in TRAINED),
    (LinearProbe, "pools", ()),
    (LinearProbe, "pools", ("mean", "mean")),
    (LinearProbe, "weight_decays", ()),
    (LinearProbe, "weight_decays", (-1e-3,)),
    (AttentiveProbe, "batch_size", 1),
    (AttentiveProbe, "cache_gib", -1.0),
    (FineTune, "weight_decay", -0.1),
    (FineTune, "drop_path", 1.5),
    (FineTune, "random_erasing", -0.1),
    (FineTune, "mixup", -1.0),
    (FineTune, "cutmix", math.nan),
    (FineTune, "label_smoothing", 1.5),
    (FineTune, "layer_decay", 0.0),
    (FineTune, "layer_decay", 1.5),
]


NAMES = {
    KNN: "knn",
    KNNConsistency: "knn_consistency",
    HeldOut: "heldout",
    LinearProbe: "linear_probe",
    AttentiveProbe: "attentive_probe",
    FineTune: "finetune",
}


def judging(tiny, cls, options):
    """A recipe with one evaluator, built as a run builds it."""
    written = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
    tables = tomllib.loads(tiny.read_text()) | {"evaluate": [{"part": NAMES[cls], **written}]}
    tiny.write_text(tomli_w.dumps(tables))
    recipe = load(str(tiny))
    return construct(recipe, "evaluate.0", Geometry(Grid(4, 4, 4), embed_dim=16))


@pytest.mark.parametrize(("cls", "option", "value"), BAD)
def test_what_cannot_be_is_refused_by_name(tiny, cls, option, value):
    with pytest.raises(RecipeError, match=rf"\[evaluate\.0\].* {option}\b") as refused:
        judging(tiny, cls, {option: value})
    assert "must" in str(refused.value)


@pytest.mark.parametrize("cls", COUNTS)
def test_what_is_at_its_bound_is_taken(tiny, cls):
    least = {"batch_size": 2 if cls is AttentiveProbe else 1}
    least |= {"num_images": 3} if cls is KNNConsistency else {}
    judging(tiny, cls, {name: least.get(name, 1) for name in COUNTS[cls]})


def test_more_images_than_there_are_means_all(subject, geometry):
    for result in KNN(geometry, num_test_images=10**6).run(subject):
        assert result.num_images == 40
        assert result.protocol["num_test_images"] == 40
