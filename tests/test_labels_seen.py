"""A number that says n labels has seen n: in its search, too."""

import dataclasses
import json
from functools import partial

import pytest
import torch

from mimkit.evaluate.attentive import AttentiveProbe
from mimkit.evaluate.cells import Cells
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.fractions import development_split, stratified_subset
from mimkit.evaluate.linear import LinearProbe

OPTIONS = {"label_fractions": (0.25,), "seeds": 2}
STEPS = {"total_steps": 2, "batch_size": 8, "warmup_steps": 1}
EVALUATORS = {
    "finetune": partial(FineTune, lrs=(0.001, 0.01), optimizer="adamw", **STEPS, **OPTIONS),
    "attentive_probe": partial(AttentiveProbe, lrs=(0.03, 0.3), **STEPS, **OPTIONS),
    "linear_probe": partial(LinearProbe, weight_decays=(1e-2, 1e-1), **OPTIONS),
}


class Watched(torch.Tensor):
    """Labels that write down which of them are looked up, one by one.

    The drawing of stratified subsets knows the classes of all images; it reads the whole array
    (``numpy``), and gives numbers of images, no labels.
    """

    seen = None

    def __getitem__(self, index):
        plain = self.as_subclass(torch.Tensor)
        if self.seen is not None:
            self.seen.update(torch.arange(len(plain))[index].flatten().tolist())
        return plain[index]

    def to(self, *_, **__):
        return self


@pytest.fixture
def watched(subject, monkeypatch):
    """A subject whose training labels are watched, and what each finished cell has looked up."""
    labels = subject.train.labels.as_subclass(Watched)
    labels.seen = set()
    cells = []
    add = Cells.add

    def noted(self, key, record):
        cells.append((record, frozenset(labels.seen)))
        labels.seen.clear()
        add(self, key, record)

    monkeypatch.setattr(Cells, "add", noted)
    train = dataclasses.replace(subject.train, labels=labels)
    return dataclasses.replace(subject, train=train), cells


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_number_has_looked_up_more_labels_than_it_says(watched, geometry, evaluator):
    subject, cells = watched
    results = EVALUATORS[evaluator](geometry).run(subject)
    of = lambda record: (record["init"], record["fraction"], record["seed"])  # noqa: E731
    seen = {}
    for record, looked_up in cells:
        seen.setdefault(of(record), set()).update(looked_up)
    plain = torch.Tensor(subject.train.labels).long()
    for result in results:
        fraction = result.protocol["label_fraction"]
        own = set(stratified_subset(plain, fraction, result.seed).tolist())
        assert len(own) == result.protocol["num_labels"]
        assert seen[result.init, fraction, result.seed] <= own
    subsets = {frozenset(stratified_subset(plain, 0.25, seed).tolist()) for seed in range(2)}
    assert len(subsets) == 2


@pytest.mark.parametrize("evaluator", ["finetune", "attentive_probe"])
def test_every_number_rests_on_a_search_of_its_own(watched, geometry, evaluator):
    subject, cells = watched
    results = EVALUATORS[evaluator](geometry).run(subject)
    plain = torch.Tensor(subject.train.labels).long()
    for result in results:
        fraction = result.protocol["label_fraction"]
        own = [
            (record, looked_up)
            for record, looked_up in cells
            if (record["split"], record["init"]) == ("development", result.init)
            and (record["fraction"], record["seed"]) == (fraction, result.seed)
        ]
        assert len(own) == 2
        best = max(own, key=lambda cell: (cell[0]["accuracy"], -cell[0]["loss"]))[0]
        assert result.chosen["lr"] == best["lr"]
        subset = stratified_subset(plain, fraction, result.seed)
        held = set(development_split(plain, subset, result.seed)[1].tolist())
        assert all(held <= looked_up for _, looked_up in own)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_seeds_number_is_the_same_whichever_other_seeds_are_measured(
    subject, geometry, evaluator, tmp_path
):
    def key(result):
        return result.init, json.dumps(dict(result.protocol)), result.seed

    made = EVALUATORS[evaluator]
    together = {key(r): r for r in made(geometry).run(subject) if r.seed == 1}
    alone = dataclasses.replace(subject, seed=1, workdir=tmp_path / "alone")
    assert together == {key(r): r for r in made(geometry, seeds=1).run(alone)}
    assert together


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_what_an_earlier_version_has_kept_is_measured_anew(
    subject, geometry, evaluator, monkeypatch
):
    evaluate = EVALUATORS[evaluator](geometry, seeds=1).run
    monkeypatch.setattr("mimkit.evaluate.cells._VERSION", 1)
    first = evaluate(subject)
    monkeypatch.undo()
    lines = (subject.workdir / "cells.jsonl").read_text().splitlines()
    assert evaluate(subject) == first
    assert len((subject.workdir / "cells.jsonl").read_text().splitlines()) == 2 * len(lines)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_finished_cell_keeps_what_each_image_scored(subject, geometry, evaluator):
    evaluate = EVALUATORS[evaluator](geometry, seeds=1).run
    first = evaluate(subject)
    assert evaluate(subject) == first
    assert all(result.image_scores for result in first)
