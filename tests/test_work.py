"""What evaluators say that they will do, against what goes through their networks."""

import dataclasses

import pytest
import torch
from torch import nn

from mimkit import Work
from mimkit.evaluate.attentive import AttentiveProbe
from mimkit.evaluate.base import Evaluator
from mimkit.evaluate.classifier import Classifier
from mimkit.evaluate.consistency import KNNConsistency
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.heldout import HeldOut
from mimkit.evaluate.knn import KNN
from mimkit.evaluate.linear import LinearProbe
from mimkit.evaluate.score import Score
from mimkit.parts.encoder import Backbone


@pytest.fixture
def encoded(subject, monkeypatch):
    """Counts the images that pass any encoder of the recipe, whichever way it is asked."""
    cls = type(subject.pretrainer.encoder)
    sizes = []

    for name in ("features", "layers"):
        method = getattr(cls, name)

        def counted(encoder, image, method=method):
            before = len(sizes)
            tokens = method(encoder, image)
            del sizes[before:]  # what it asks of itself is the same pass
            sizes.append(len(image))
            return tokens

        monkeypatch.setattr(cls, name, counted)
    return sizes


@pytest.fixture
def classified(monkeypatch):
    """Counts the images that pass fine-tuned networks, by whether they are trained."""
    forward, sizes = Classifier.forward, {True: 0, False: 0}

    def counted(network, image):
        sizes[network.training] += len(image)
        return forward(network, image)

    monkeypatch.setattr(Classifier, "forward", counted)
    return sizes


def expect(evaluator, subject, encoded):
    work = evaluator.work(subject)
    encoded.clear()
    evaluator.run(subject)
    assert work.encoded == sum(encoded)
    assert work.trained == 0
    return work


def test_an_evaluator_that_says_nothing_does_nothing(subject, geometry):
    class Silent(Evaluator):
        def run(self, subject):
            return []

    assert Silent().work(subject) == Work(encoded=0, trained=0, seconds=0.0)


def test_held_out_images_pass_once(subject, geometry, monkeypatch):
    sizes = []
    forward = subject.pretrainer.forward
    monkeypatch.setattr(
        subject.pretrainer,
        "forward",
        lambda batch: sizes.append(len(batch.index)) or forward(batch),
    )
    evaluator = HeldOut(geometry, num_images=25)
    evaluator.run(subject)
    assert evaluator.work(subject).encoded == sum(sizes) == 25


@pytest.mark.parametrize("options", [{}, {"num_images": 50, "num_test_images": 20}])
def test_knn_encodes_both_splits_twice(subject, geometry, encoded, options):
    expect(KNN(geometry, **options), subject, encoded)


@pytest.mark.parametrize("options", [{}, {"num_images": 11}])
def test_consistency_encodes_two_renderings_twice(subject, geometry, encoded, options):
    expect(KNNConsistency(geometry, **options), subject, encoded)


@pytest.mark.parametrize(
    "options",
    [
        {"label_fractions": (0.2, 0.5), "seeds": 2, "num_test_images": 20},
        {"layers": "all", "pools": ("mean", "cls"), "label_fractions": (0.5,)},
    ],
)
def test_linear_probes(subject, geometry, encoded, options):
    evaluator = LinearProbe(geometry, weight_decays=(1e-2, 1e-1), **options)
    assert expect(evaluator, subject, encoded).seconds > 0


def test_fits_cost_what_their_number_says(subject, geometry, monkeypatch):
    monkeypatch.setattr("mimkit.evaluate.linear.seconds_of_fit", lambda *_: 1.0)
    fits = []
    evaluator = LinearProbe(
        geometry, layers="all", pools=("mean", "cls"), label_fractions=(0.5, 1.0), seeds=2
    )
    work = evaluator.work(subject)
    monkeypatch.setattr(
        "mimkit.evaluate.linear.fit",
        lambda features, labels, *_, **__: fits.append(1) or Constant(features, labels),
    )
    evaluator.run(subject)
    assert work.seconds == len(fits)


class Constant:
    def __init__(self, features, labels):
        self.bias = torch.zeros(10)

    def score(self, features, labels):
        return Score({"accuracy": 0.5}, 1.0, "")


SEARCHED = {"label_fractions": (0.2, 0.5), "seeds": 2, "num_test_images": 20, "lrs": (0.1, 0.3)}


@pytest.mark.parametrize("cache_gib", [4.0, 0.0], ids=["kept", "not kept"])
@pytest.mark.parametrize("options", [{}, {"lrs": (0.1,)}])
def test_attentive_probes(subject, geometry, encoded, cache_gib, options):
    evaluator = AttentiveProbe(
        geometry,
        total_steps=3,
        batch_size=16,
        warmup_steps=1,
        cache_gib=cache_gib,
        **{**SEARCHED, **options},
    )
    assert expect(evaluator, subject, encoded).seconds > 0


QUICK = {"total_steps": 3, "batch_size": 8, "warmup_steps": 1, "optimizer": "adamw"}


@pytest.mark.parametrize("options", [{}, {"lrs": (0.01,)}, {"baseline": False}])
def test_fine_tuning(subject, geometry, classified, options):
    evaluator = FineTune(geometry, **{**QUICK, **SEARCHED, **options})
    work = evaluator.work(subject)
    evaluator.run(subject)
    assert work == Work(encoded=classified[False], trained=classified[True])
    assert work.trained > 0


class Normed(Backbone):
    """A network with batch norm.

    Args:
        num_features: width of its output.
    """

    def __init__(self, num_features=4):
        super().__init__()
        self.num_features = num_features
        self.norm = nn.BatchNorm2d(3)
        self.project = nn.Conv2d(3, num_features, 1)

    def forward(self, image):
        return self.project(self.norm(image)).mean((2, 3))

    def layer_groups(self):
        return [list(self.parameters())]


@pytest.mark.parametrize("recompute", [True, False])
def test_batch_norm_that_is_measured_anew_is_counted(
    subject, geometry, classified, monkeypatch, recompute
):
    monkeypatch.setattr(type(subject.pretrainer.encoder), "backbone", lambda *_: Normed())
    monkeypatch.setattr("mimkit.evaluate.trainer.FEATURE_BATCH", 16)
    evaluator = FineTune(geometry, recompute_batch_norm=recompute, **QUICK, **SEARCHED)
    work = evaluator.work(subject)
    evaluator.run(subject)
    assert work == Work(encoded=classified[False], trained=classified[True])


def test_counting_leaves_the_subject_and_the_random_state_as_they_were(subject, geometry):
    subject.pretrainer.train()
    state = torch.random.get_rng_state()
    for cls in (HeldOut, KNN, KNNConsistency, LinearProbe, AttentiveProbe):
        cls(geometry).work(dataclasses.replace(subject, seed=3))
    FineTune(geometry, label_fractions=(0.5,)).work(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in subject.pretrainer.modules())
