import json

import pytest
import torch

from mimkit.data.sources import open_source
from mimkit.data.views import Augment
from mimkit.errors import BoundaryError, RecipeError
from mimkit.evaluate.base import Subject
from mimkit.evaluate.classifier import (
    Classifier,
    layer_scales,
    recompute_batch_norm,
)
from mimkit.evaluate.finetune import FineTune
from mimkit.parts.base import Backbone
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

QUICK = {"total_steps": 3, "batch_size": 8, "warmup_steps": 1, "optimizer": "adamw"}


@pytest.fixture
def subject(tiny, tmp_path):
    recipe = load(str(tiny), overrides=["data.num_images=120", "data.num_test_images=40"])
    train, test = open_source(recipe.data, "train"), open_source(recipe.data, "test")

    def fresh(seed):
        again = recipe.model_copy(update={"seed": seed})
        return Pretrainer(build(again, mean=train.mean, std=train.std))

    parts = build(recipe, mean=train.mean, std=train.std)
    return Subject(
        pretrainer=Pretrainer(parts),
        masker=parts.masker,
        views=parts.views,
        train=train,
        test=test,
        augment=Augment(**recipe.augment.model_dump()),
        device=torch.device("cpu"),
        seed=0,
        batch_size=8,
        fresh=fresh,
        workdir=tmp_path / "finetune",
        report=lambda _: None,
    )


def cells(subject):
    path = subject.workdir / "cells.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_result_has_its_baseline_with_the_same_labels(subject, geometry):
    evaluator = FineTune(geometry, label_fractions=(0.25, 0.5), seeds=2, lrs=(0.001,), **QUICK)
    results = evaluator.run(subject)
    keys = {(r.init, r.seed, r.protocol["label_fraction"]) for r in results}
    assert len(results) == len(keys) == 8
    for result in results:
        assert result.protocol["num_labels"] == 120 * result.protocol["label_fraction"]
        assert 0 <= result.value <= 1
        assert result.num_images == 40


def test_the_learning_rate_is_chosen_on_development_images_alone(subject, geometry):
    lrs = (1e-9, 0.01)
    options = {**QUICK, "total_steps": 60, "batch_size": 32}
    results = FineTune(geometry, label_fractions=(1.0,), seeds=1, lrs=lrs, **options).run(subject)
    searched = [cell for cell in cells(subject) if cell["split"] == "development"]
    assert {(cell["init"], cell["lr"]) for cell in searched} == {
        (init, lr) for init in ("pretrained", "scratch") for lr in lrs
    }
    for result in results:
        best = max(
            (cell for cell in searched if cell["init"] == result.init),
            key=lambda cell: cell["accuracy"],
        )
        assert result.chosen == {"lr": best["lr"]}


def test_finished_cells_are_not_measured_again(subject, geometry, monkeypatch):
    def evaluate(**changes):
        options = {**QUICK, **changes}
        return FineTune(geometry, label_fractions=(0.5,), seeds=1, lrs=(0.001,), **options).run(
            subject
        )

    first = evaluate()
    monkeypatch.setattr(
        "mimkit.evaluate.finetune.train_classifier", lambda *_, **__: pytest.fail("trained again")
    )
    assert evaluate() == first
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        evaluate(total_steps=4)
    with torch.no_grad():
        next(subject.pretrainer.encoder.parameters()).add_(1)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        evaluate()


def test_the_subject_and_the_random_state_stay_as_they_were(subject, geometry):
    subject.pretrainer.train()
    before = {k: v.clone() for k, v in subject.pretrainer.state_dict().items()}
    state = torch.random.get_rng_state()
    FineTune(geometry, label_fractions=(0.5,), seeds=1, lrs=(0.1,), **QUICK).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in subject.pretrainer.modules())
    for name, value in subject.pretrainer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_evaluation_gives_the_same_numbers(subject, geometry):
    evaluator = FineTune(geometry, label_fractions=(1.0,), seeds=1, lrs=(0.01,), **QUICK)
    first = evaluator.run(subject)
    (subject.workdir / "cells.jsonl").unlink()
    assert evaluator.run(subject) == first


def test_a_head_without_pooling_is_refused(subject, geometry):
    evaluator = FineTune(geometry, network="pooled", lrs=(0.1,), seeds=1, **QUICK)
    with pytest.raises(RecipeError, match=r"'pooled' needs a head with a learned pooling"):
        evaluator.run(subject)


def test_layers_below_learn_more_slowly(subject):
    network = Classifier(subject.pretrainer.encoder.backbone(), 10)
    scales = layer_scales(network, 0.5)
    groups = network.backbone.layer_groups()
    assert {scales[p] for p in groups[-1]} == {0.5}
    assert {scales[p] for p in groups[0]} == {0.5 ** len(groups)}
    assert network.output.weight not in scales


class Forgetful(Backbone):
    num_features = 4

    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, image):
        return self.two(self.one(image))

    def layer_groups(self):
        return [list(self.one.parameters())]


def test_a_backbone_that_forgets_parameters_is_told():
    with pytest.raises(BoundaryError, match="every trainable parameter"):
        layer_scales(Classifier(Forgetful(), 3), 0.5)


def test_batch_statistics_become_those_of_the_images():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout())
    network[0].running_mean.fill_(7)
    images = [torch.randn(8, 3, 4, 4) + 2 for _ in range(4)]
    network.train()
    recompute_batch_norm(network, images)
    torch.testing.assert_close(
        network[0].running_mean, torch.cat(images).mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-5
    )
    assert network[0].momentum == 0.1
    assert network.training
