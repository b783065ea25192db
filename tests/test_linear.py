import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from mimkit.errors import RecipeError
from mimkit.evaluate.linear import LinearProbe, fit


def clusters(num_classes=4, per_class=30, dim=6, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator) * 2
    labels = torch.arange(num_classes).repeat(per_class)
    noise = torch.randn(len(labels), dim, generator=generator)
    return centres[labels] + spread * noise, labels


def test_the_probe_reaches_the_optimum_of_its_objective():
    features, labels = clusters(spread=2.0)
    weight_decay = 0.01
    probe = fit(features, labels, 4, weight_decay=weight_decay)
    inputs = (features - features.mean(0)) / features.std(0, correction=0)
    weight = probe.weight.clone().requires_grad_()
    bias = probe.bias.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(inputs, weight, bias), labels)
    (loss + weight_decay / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_features_changes_nothing(scale):
    features, labels = clusters(spread=2.0)
    probe = fit(features * scale, labels, 4, weight_decay=0.01)
    reference = fit(features, labels, 4, weight_decay=0.01)
    assert probe.score(features * scale, labels)[0] == pytest.approx(
        reference.score(features, labels)[0], abs=0.02
    )


def test_a_feature_that_never_varies_does_no_harm():
    features, labels = clusters()
    features[:, 0] = 3.0
    accuracy, loss = fit(features, labels, 4, weight_decay=0.001).score(features, labels)
    assert accuracy > 0.95
    assert math.isfinite(loss)


def test_the_start_changes_nothing_but_the_time():
    features, labels = clusters(spread=2.0)
    strong = fit(features, labels, 4, weight_decay=1.0)
    warm = fit(features, labels, 4, weight_decay=0.01, start=strong)
    cold = fit(features, labels, 4, weight_decay=0.01)
    torch.testing.assert_close(warm(features), cold(features), atol=1e-2, rtol=1e-2)


def test_classes_without_an_image_keep_their_place():
    features, labels = clusters()
    probe = fit(features, labels, 7, weight_decay=0.01)
    assert probe(features).shape == (120, 7)
    assert probe.score(features, labels)[0] > 0.95


def test_every_result_has_its_baseline_with_the_same_labels(subject, geometry):
    results = LinearProbe(
        geometry, label_fractions=(0.5, 1.0), seeds=2, weight_decays=(1e-3, 1e-1)
    ).run(subject)
    keys = {(r.init, r.seed, r.protocol["label_fraction"]) for r in results}
    assert len(results) == len(keys) == 8
    assert {r.init for r in results} == {"pretrained", "random"}
    for result in results:
        assert result.protocol["num_labels"] == 120 * result.protocol["label_fraction"]
        assert result.chosen["weight_decay"] in (1e-3, 1e-1)


def test_the_weight_decay_is_chosen_without_the_test_images(subject, geometry):
    evaluator = LinearProbe(geometry, seeds=2, weight_decays=(1e-2, 1e-1))
    wrong = dataclasses.replace(subject.test, labels=subject.test.labels.roll(1))
    before = [r.chosen for r in evaluator.run(subject)]
    after = [r.chosen for r in evaluator.run(dataclasses.replace(subject, test=wrong))]
    assert before == after


def test_a_penalty_that_forbids_learning_is_not_chosen(subject, geometry, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def informative(encoder, subject, source, index, pool):
        noise = 0.2 * torch.randn(len(index), 10, generator=generator)
        return F.one_hot(source.labels[index], 10) + noise

    monkeypatch.setattr("mimkit.evaluate.linear.extract", informative)
    result = LinearProbe(geometry, weight_decays=(1e4, 1e-2)).run(subject)[0]
    assert result.chosen["weight_decay"] == 1e-2
    assert result.value > 0.5


def test_unlabelled_images_are_not_encoded(subject, geometry, monkeypatch):
    labels = subject.train.labels.clone()
    labels[::2] = -1
    encoder = subject.pretrainer.encoder
    encode, sizes = encoder.features, []

    def features(image):
        sizes.append(len(image))
        return encode(image)

    monkeypatch.setattr(encoder, "features", features)
    half = dataclasses.replace(subject, train=dataclasses.replace(subject.train, labels=labels))
    result = LinearProbe(geometry, weight_decays=(0.1,)).run(half)[0]
    assert sum(sizes) == 60 + 40
    assert result.protocol["num_labels"] == 60


def test_too_few_labels_to_choose_on_are_refused_before_training(subject, geometry):
    with pytest.raises(RecipeError, match="no class has two labelled images"):
        LinearProbe(geometry, label_fractions=(0.01,)).check(subject)


@pytest.mark.parametrize("option", [{"seeds": 0}, {"weight_decays": ()}, {"label_fractions": ()}])
def test_nothing_to_do_is_refused(geometry, option):
    with pytest.raises(RecipeError, match="at least"):
        LinearProbe(geometry, **option)


def test_the_random_state_stays_as_it_was(subject, geometry):
    state = torch.random.get_rng_state()
    LinearProbe(geometry, weight_decays=(0.1,)).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
