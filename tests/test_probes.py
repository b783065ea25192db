import math

import pytest
import torch
import torch.nn.functional as F

from mimkit.evaluate.knn import nearest_neighbours
from mimkit.evaluate.linear import fit


def clusters(num_classes=4, per_class=30, dim=6, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator) * 2
    labels = torch.arange(num_classes).repeat(per_class)
    noise = torch.randn(len(labels), dim, generator=generator)
    return centres[labels] + spread * noise, labels


def test_neighbours_vote_by_cosine_similarity_with_their_weights():
    train = torch.tensor([[1.0, 0.0], [3.0, 0.3], [0.0, 2.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    test = torch.tensor([[5.0, 0.0]])
    scores = nearest_neighbours(train, labels, test, num_classes=3, k=2, temperature=0.1)
    similarity = F.cosine_similarity(train[1], test[0], dim=0)
    expected = torch.tensor([[1.0, math.exp((similarity - 1) / 0.1), 0.0]])
    torch.testing.assert_close(scores, expected)


def test_more_neighbours_than_images_are_all_images():
    features, labels = clusters(2, 3)
    scores = nearest_neighbours(features, labels, features, num_classes=2, k=50, temperature=0.07)
    assert scores.shape == (6, 2)
    assert torch.isfinite(scores).all()


def test_a_chunked_search_equals_the_whole(monkeypatch):
    features, labels = clusters()
    arguments = {"num_classes": 4, "k": 5, "temperature": 0.07}
    whole = nearest_neighbours(features, labels, features, **arguments)
    monkeypatch.setattr("mimkit.evaluate.knn._CHUNK_SIMILARITIES", 3 * len(features))
    torch.testing.assert_close(nearest_neighbours(features, labels, features, **arguments), whole)


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
