"""The table of an evaluation: what an earlier version has measured is found again."""

import dataclasses
import json
from functools import partial

import pytest
import torch

from mimkit.evaluate.attentive import AttentiveProbe
from mimkit.evaluate.cells import Cell, Table
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.linear import LinearProbe
from mimkit.evaluate.score import Score

STEPS = {"total_steps": 2, "batch_size": 8, "warmup_steps": 1, "num_test_images": 20}
EVALUATORS = {
    "finetune": partial(FineTune, lrs=(0.01,), image_size=24, drop_path=0.1, seeds=1, **STEPS),
    "finetune searched": partial(FineTune, lrs=(0.001, 0.01), baseline=False, seeds=1, **STEPS),
    "attentive_probe searched": partial(AttentiveProbe, lrs=(0.03, 0.3), num_heads=4, **STEPS),
    "linear_probe": partial(LinearProbe, weight_decays=(1e-2, 1e-1), num_test_images=20),
    "linear_probe of layers": partial(
        LinearProbe, layers="all", pools=("mean", "cls_mean"), weight_decays=(1e-2,)
    ),
}
KEYS = {
    "finetune": ["422eb3f32f4dd9f3d46f", "eb42d16f9fb6096ee978"],
    "finetune searched": ["86f60bc1bb1f2953c4d7", "e5135d957d48352eca88"],
    "attentive_probe searched": [
        "58dca54a264abfd51aa4",
        "8cbe2f6ecf5299b07c6f",
        "d36dd569c94acae2b337",
        "ce9989e2f21a11ce002e",
        "d9f825ec430b5e18c122",
        "6a94ddb860ca4109ed7e",
    ],
    "linear_probe": ["b7bc2a4e3d873eb02a9e", "0b15c6a37bf148017a22", "48348d3b3e6823d1ce94"],
    "linear_probe of layers": [
        "8ab5476df71aeba3e52f",
        "eb78c161bef6f94f1118",
        "0f6d39bee836ad45efab",
        "e67f487f6dda048362ce",
        "3983d396353e0974bd35",
        "c424e35e186ea6d94bc1",
        "71e294b5f3ac457f7dee",
        "aa7a70d895e3c14c331f",
        "c5fd1bd993732857c2f7",
    ],
}


@pytest.mark.parametrize("name", EVALUATORS)
def test_keys_are_those_of_earlier_versions(subject, geometry, monkeypatch, name):
    """What they depend on is named here, so that no other library or machine changes them."""
    for module in ("attentive", "finetune", "starts"):
        monkeypatch.setattr(f"mimkit.evaluate.{module}.digest", lambda _: "the same weights")
    known = dataclasses.replace(
        subject,
        train=dataclasses.replace(subject.train, fingerprint="training images"),
        test=dataclasses.replace(subject.test, fingerprint="test images"),
    )
    evaluator = EVALUATORS[name](geometry, label_fractions=(0.5,))
    evaluator.run(known)
    lines = (subject.workdir / "cells.jsonl").read_text().splitlines()
    cells = [json.loads(line) for line in lines]
    # Which rate is tested depends on what a machine has computed.
    asked = "development" if "searched" in name else "test"
    assert [cell["key"] for cell in cells if cell["split"] == asked] == KEYS[name]


def test_a_cell_that_an_earlier_version_wrote_is_taken(subject, geometry):
    evaluator = LinearProbe(geometry, weight_decays=(1e-2, 1e-1))
    before = evaluator.run(subject)[0]
    path = subject.workdir / "cells.jsonl"
    cell = json.loads(path.read_text().splitlines()[0])
    old = {"init": "pretrained", "seed": 0, "fraction": 1.0, "pool": "mean", "layer": 1}
    old |= {"num_labels": 120, "accuracy": 0.123, "development_loss": 2.0}
    old |= {name: cell[name] for name in ("key", "image_scores", "weight_decay")}
    path.write_text(json.dumps({**old, "development_accuracy": 0.25}) + "\n")
    after = evaluator.run(subject)[0]
    assert after.value == 0.123
    assert after.chosen == {**before.chosen, "development_accuracy": 0.25}


def test_a_cell_may_have_several_metrics_and_no_accuracy(subject):
    """As segmentation has: a share over all pixels, of which no image has a part of its own."""
    said = []
    told = dataclasses.replace(subject, report=said.append)

    def evaluate(measure):
        table = Table(told, "segment", torch.arange(40), ("miou", "pixel_accuracy"))
        cell = Cell("pretrained", 3, 0.5, {"lr": 0.1})
        score = table.score(cell, {"weights": "w"}, measure)
        return table.results(cell, score, {"label_fraction": 0.5}, {"lr": 0.1})

    results = evaluate(lambda: Score({"miou": 0.25, "pixel_accuracy": 0.5}))
    assert [(r.metric, r.value, r.seed) for r in results] == [
        ("miou", 0.25, 3),
        ("pixel_accuracy", 0.5, 3),
    ]
    assert said == [
        "segment, 50 % of the labels, pretrained, seed 3, lr 0.1: miou 25.0 %, 40 test images"
    ]
    assert evaluate(lambda: pytest.fail("measured again")) == results


def test_cells_that_differ_in_anything_are_kept_apart(subject):
    table = Table(subject, "any", torch.arange(40))
    cell = Cell("pretrained", 0, 0.5, {"lr": 0.1})
    others = [
        dataclasses.replace(cell, **change)
        for change in (
            {"init": "random"},
            {"seed": 1},
            {"fraction": 1.0},
            {"setting": {"lr": 0.2}},
            {"setting": {"weight_decay": 0.1}},
            {"split": "development"},
        )
    ]
    cells = [cell, *others]
    for _ in range(2):
        found = [
            table.score(one, {"weights": "w"}, lambda n=number: Score({"accuracy": n / 10})).value
            for number, one in enumerate(cells)
        ]
        assert found == [number / 10 for number in range(len(cells))]
