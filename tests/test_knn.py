import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

from mimkit import Tokens
from mimkit.data.pixels.raster import Raster
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.knn import KNN, nearest_neighbours


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
    torch.testing.assert_close(scores, expected.double())


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 0.005, 0.07, 1.0, 1e9])
@pytest.mark.parametrize("k", [1, 5, 120, 500])
def test_votes_are_those_of_double_precision_at_any_temperature(temperature, k):
    """Against logarithms of sums, which neither overflow nor vanish."""
    train, labels = clusters(spread=2.0)
    test, _ = clusters(spread=2.0, seed=1)
    found = nearest_neighbours(train, labels, test, num_classes=4, k=k, temperature=temperature)
    similarity = F.normalize(test).double() @ F.normalize(train).double().T
    similarity, nearest = similarity.sort(dim=1, descending=True)
    exponents = (similarity[:, :k] - similarity[:, :1]).numpy() / temperature
    votes = np.stack(
        [
            logsumexp(np.where(labels[nearest[:, :k]] == label, exponents, -math.inf), axis=1)
            for label in range(4)
        ],
        axis=1,
    )
    assert np.array_equal(found.argmax(1).numpy(), votes.argmax(1))
    if temperature > 1e-3:  # float32 knows a similarity to 1e-7 alone
        np.testing.assert_allclose(found.numpy(), np.exp(votes), rtol=1e-3, atol=1e-6)


def test_at_a_low_temperature_the_nearest_decides_not_the_first_class():
    """Of unlike vectors all votes vanish in exp((similarity - 1) / 0.005)."""
    train = torch.eye(4)
    labels = torch.tensor([3, 2, 1, 0])
    test = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])
    scores = nearest_neighbours(train, labels, test, num_classes=4, k=3, temperature=0.005)
    assert scores.argmax(1).tolist() == [3, 0]
    assert scores.max(1).values.tolist() == [1.0, 1.0]


def test_equally_near_neighbours_have_equal_votes():
    train = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    labels = torch.tensor([1, 1, 2, 0])
    scores = nearest_neighbours(
        train, labels, torch.tensor([[2.0, 0.0]]), num_classes=3, k=3, temperature=0.01
    )
    assert scores.tolist() == [[0.0, 2.0, 1.0]]


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
    chunked = nearest_neighbours(features, labels, features, **arguments)
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)  # as exact as float32 is


def by_init(results):
    return {result.init: result for result in results}


def test_random_weights_and_raw_pixels_stand_beside_the_encoder(subject, geometry):
    results = by_init(KNN(geometry).run(subject))
    assert results.keys() == {"pretrained", "random", "pixels"}
    for result in results.values():
        assert (result.evaluator, result.metric, result.num_images) == ("knn", "accuracy", 40)
        assert result.protocol["num_labels"] == 120
        assert 0 <= result.value <= 1


def test_an_encoder_that_learned_nothing_equals_its_random_baseline(subject, geometry):
    results = by_init(KNN(geometry).run(subject))
    assert results["pretrained"].value == results["random"].value


def test_features_that_tell_the_class_are_always_right(subject, geometry, monkeypatch):
    """The first pixel is painted with the class, and the encoder reads nothing else."""

    def paint(source):
        pixels = source.pixels.clone()
        pixels[:, :, 0, 0] = 25 * source.labels[:, None].to(torch.uint8)
        return dataclasses.replace(source, pixels=pixels)

    def features(image):
        classes = (image[:, 0, 0, 0] * 255 / 25).round().long()
        one_hot = F.one_hot(classes, 16).float()[:, None]
        return Tokens(one_hot, one_hot[:, :0], torch.zeros(len(image), 1, dtype=torch.int64))

    monkeypatch.setattr(subject.pretrainer.encoder, "features", features)
    view = dataclasses.replace(subject.view, mean=(0.0,) * 3, std=(1.0,) * 3)
    painted = dataclasses.replace(
        subject, views=(view,), train=paint(subject.train), test=paint(subject.test)
    )
    assert by_init(KNN(geometry, k=5).run(painted))["pretrained"].value == 1.0


def test_a_limit_takes_all_classes_alike(subject, geometry):
    result = KNN(geometry, num_images=50, num_test_images=20).run(subject)[0]
    assert result.protocol["num_labels"] == 50
    assert result.num_images == 20


def test_the_subject_and_the_random_state_stay_as_they_were(subject, geometry):
    encoder = subject.pretrainer.encoder.train()
    encoder.blocks[0].eval()
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    KNN(geometry).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert encoder.training
    assert not encoder.blocks[0].training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_baselines_are_measured_once(subject, geometry):
    seeds = []

    def fresh(seed):
        seeds.append(seed)
        return subject.fresh(seed)

    evaluator = KNN(geometry, every_steps=1)
    counted = dataclasses.replace(subject, fresh=fresh)
    assert evaluator.run(counted) == evaluator.run(counted)
    assert seeds == [0]


def test_the_class_token_can_be_pooled(subject, geometry):
    result = KNN(geometry, pool="cls").run(subject)[0]
    assert result.protocol["pool"] == "cls"


def test_a_missing_class_token_is_refused_before_training(subject, geometry):
    subject.pretrainer.encoder.cls_token = None
    subject.pretrainer.encoder.num_prefix = 0
    with pytest.raises(RecipeError, match="needs an encoder with a class token"):
        KNN(geometry, pool="cls").check(subject)


def test_images_without_labels_are_refused_before_training(subject, geometry):
    unlabelled = dataclasses.replace(subject.train, labels=None, classes=())
    with pytest.raises(DataError, match=r"'knn' needs labels.*train split of 'shapes'"):
        KNN(geometry).check(dataclasses.replace(subject, train=unlabelled))


def test_splits_of_other_classes_are_refused(subject, geometry):
    other = dataclasses.replace(subject.test, classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"same two or more classes.*cat, dog \(test\)"):
        KNN(geometry).check(dataclasses.replace(subject, test=other))


def test_images_in_files_are_decoded_by_any_number_of_workers(subject, geometry, tmp_path):
    def in_files(source):
        return dataclasses.replace(source, pixels=None, reader=Stored(source.pixels))

    stored = dataclasses.replace(
        subject, train=in_files(subject.train), test=in_files(subject.test)
    )
    here = KNN(geometry).run(stored)
    by_others = dataclasses.replace(stored, workers=2, workdir=tmp_path / "by others")
    assert here == KNN(geometry).run(by_others)
    assert here == KNN(geometry).run(dataclasses.replace(subject, workdir=tmp_path / "pixels"))


class Stored:
    def __init__(self, pixels):
        self.pixels = pixels

    def __call__(self, index, *_, **__):
        return Raster.of(self.pixels[index].permute(1, 2, 0).numpy())
