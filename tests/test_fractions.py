import dataclasses
from functools import partial
from itertools import pairwise

import pytest
import torch

from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.attentive import AttentiveProbe
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.fractions import (
    Labels,
    development_split,
    held_back,
    labels_of,
    stratified_limit,
    stratified_subset,
    tell_gaps,
)
from mimkit.evaluate.knn import KNN
from mimkit.evaluate.linear import LinearProbe


def balanced(classes=10, each=100):
    return torch.arange(classes).repeat_interleave(each)


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_a_smaller_fraction_lies_inside_a_larger_one(seed):
    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(3))
    subsets = [set(stratified_subset(labels, f, seed).tolist()) for f in (0.01, 0.05, 0.1, 0.5, 1)]
    for smaller, larger in pairwise(subsets):
        assert smaller < larger
    assert subsets[-1] == set(range(500))


@pytest.mark.parametrize(("fraction", "each"), [(0.05, 5), (0.08, 8), (0.2, 20), (0.001, 1)])
def test_equal_classes_give_equally_many(fraction, each):
    labels = balanced()
    counts = torch.bincount(labels[stratified_subset(labels, fraction, 0)], minlength=10)
    assert counts.tolist() == [each] * 10


def test_every_class_gives_its_own_share():
    labels = torch.tensor([0] * 200 + [1] * 50 + [2])
    counts = torch.bincount(labels[stratified_subset(labels, 0.1, 0)])
    assert counts.tolist() == [20, 5, 1]


def test_the_choice_follows_from_the_seed_alone():
    labels = balanced()
    torch.manual_seed(0)
    first = stratified_subset(labels, 0.1, 4)
    torch.manual_seed(1)
    assert first.equal(stratified_subset(labels, 0.1, 4))
    assert not first.equal(stratified_subset(labels, 0.1, 5))


def test_every_image_is_equally_likely_to_be_chosen():
    labels = balanced(2, 10)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[stratified_subset(labels, 0.2, seed)] += 1
    # Binomial with n = 400, p = 0.2: mean 80, standard deviation 8.
    assert counts.min() > 50
    assert counts.max() < 110


def test_unlabelled_images_are_never_chosen():
    labels = torch.tensor([-1, 0, 0, -1, 1, 1])
    assert stratified_subset(labels, 1.0, 0).tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(RecipeError, match=f"is {fraction}"):
        stratified_subset(balanced(), fraction, 0)


def test_the_development_split_is_a_tenth_of_each_class():
    labels = balanced()
    subset = stratified_subset(labels, 0.5, 0)
    training, development = development_split(labels, subset, 0)
    assert torch.bincount(labels[development]).tolist() == [5] * 10
    assert torch.cat([training, development]).sort().values.equal(subset)


def test_the_development_split_leaves_every_class_something_to_train_on():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    training, development = development_split(labels, torch.arange(6), 0)
    assert labels[development].tolist() == [0, 1]
    assert set(labels[training].tolist()) == {0, 1, 2}


def test_one_image_a_class_leaves_nothing_to_choose_on():
    with pytest.raises(RecipeError, match="one value to search"):
        development_split(balanced(4, 1), torch.arange(4), 0)


def test_a_limit_takes_all_classes_alike():
    labels = balanced()
    assert torch.bincount(labels[stratified_limit(labels, 50)]).tolist() == [5] * 10
    assert len(stratified_limit(labels, None)) == len(stratified_limit(labels, 5000)) == 1000


def test_the_development_split_is_not_the_smaller_subset():
    labels = balanced()
    _, development = development_split(labels, torch.arange(1000), 0)
    assert not development.equal(stratified_subset(labels, 0.1, 0))


@pytest.fixture
def gappy(subject):
    """Twelve images a class to train on and four to judge, but of some classes fewer or none."""

    def make(train=None, test=None):
        counts = {"train": [12] * 10, "test": [4] * 10}
        for split, change in (("train", train), ("test", test)):
            for label, count in (change or {}).items():
                counts[split][label] = count
        sources = {}
        for split, each in counts.items():
            labels = torch.full((len(getattr(subject, split)),), -1)
            known = torch.arange(10).repeat_interleave(torch.tensor(each))
            labels[: len(known)] = known
            sources[split] = dataclasses.replace(getattr(subject, split), labels=labels)
        said = []
        changed = dataclasses.replace(subject, report=said.append, **sources)
        return changed, said

    return make


def test_classes_without_gaps_are_not_mentioned(gappy):
    whole, said = gappy()
    tell_gaps(whole, "knn", labels_of(whole, "knn"), (0.25, 1.0), searches=True)
    assert said == []


def test_classes_without_images_of_a_split_are_named(gappy):
    some, said = gappy(train={2: 0, 5: 0}, test={3: 0, 5: 0})
    tell_gaps(some, "knn", labels_of(some, "knn"))
    names = some.train.classes
    assert said == [
        f"knn: 1 of 10 classes ({names[2]}) have no labelled training image, so their test images "
        "count as wrong",
        f"knn: 1 of 10 classes ({names[5]}) have no labelled image at all",
        f"knn: 1 of 10 classes ({names[3]}) have no test image, so they are not judged",
    ]


def test_classes_with_fewer_labels_than_a_fraction_asks_for_are_named(gappy):
    some, said = gappy(train={1: 4, 7: 1})
    labels = labels_of(some, "finetune")
    tell_gaps(some, "finetune", labels, (0.1, 1.0), searches=True)
    names = some.train.classes
    assert said[0] == (
        f"finetune: 2 of 10 classes ({names[1]}, {names[7]}) have less than half an image at 10 % "
        "of the labels, and give one"
    )
    assert "8 of 10 classes" in said[1]
    assert "one image at 10 % of the labels, and none to choose hyper-parameters on" in said[1]
    assert f"1 of 10 classes ({names[7]}) have one image at 100 % of the labels" in said[2]
    assert len(said) == 3
    for fraction in (0.1, 1.0):  # and they do give one
        subset = stratified_subset(labels.train, fraction, 0)
        assert set(labels.train[subset].tolist()) == set(range(10))


def test_of_many_classes_the_first_are_named(gappy):
    some, said = gappy(test=dict.fromkeys(range(9), 0))
    many = dataclasses.replace(
        some,
        train=dataclasses.replace(some.train, classes=tuple(f"c{n:02}" for n in range(30))),
    )
    labels = Labels(some.train.labels, some.test.labels, 30)
    tell_gaps(many, "knn", labels)
    assert said[0].startswith("knn: 20 of 30 classes (c10, c11,")
    assert "c19, ...) have no labelled image at all" in said[0]


def test_one_class_with_labels_is_refused_by_its_name(gappy):
    one, _ = gappy(train=dict.fromkeys(range(1, 10), 0))
    with pytest.raises(DataError, match=rf"'knn'.*only '{one.train.classes[0]}' has any"):
        labels_of(one, "knn")


@pytest.mark.parametrize(
    "evaluator",
    [
        KNN,
        partial(LinearProbe, label_fractions=(0.3,), weight_decays=(1e-2, 1e-1)),
        partial(
            AttentiveProbe, label_fractions=(0.3,), total_steps=3, batch_size=8, warmup_steps=1
        ),
        partial(FineTune, label_fractions=(0.3,), total_steps=3, batch_size=8, seeds=1),
    ],
    ids=["knn", "linear_probe", "attentive_probe", "finetune"],
)
def test_every_evaluator_names_the_gaps_and_measures_all_the_same(gappy, geometry, evaluator):
    some, said = gappy(train={2: 0, 4: 1}, test={3: 0})
    made = evaluator(geometry)
    made.check(some)
    names = some.train.classes
    assert any(f"({names[2]}) have no labelled training image" in line for line in said)
    assert any(f"({names[3]}) have no test image" in line for line in said)
    assert isinstance(made, KNN) or any(f"({names[4]}) have less than" in line for line in said)
    for result in made.run(some):
        assert 0 <= result.value <= 1
        assert result.num_images == 36


def test_a_label_that_is_held_back_stands_in_one_of_both_splits_alone(subject):
    rest, judged = held_back(subject.train)
    known = (rest.labels >= 0, judged.labels >= 0)
    assert not (known[0] & known[1]).any()
    assert torch.equal(torch.maximum(rest.labels, judged.labels), subject.train.labels)
    assert torch.bincount(judged.labels[known[1]]).tolist() == [1] * 10  # of twelve each
    assert rest.pixels is subject.train.pixels
    assert judged.pixels is subject.train.pixels
    assert len({subject.train.fingerprint, rest.fingerprint, judged.fingerprint}) == 3
    again = held_back(subject.train)[1]
    assert torch.equal(again.labels, judged.labels)


def test_images_without_a_label_are_never_held_back(subject):
    labels = subject.train.labels.clone()
    labels[::2] = -1
    rest, judged = held_back(dataclasses.replace(subject.train, labels=labels))
    assert (rest.labels[::2] == -1).all()
    assert (judged.labels[::2] == -1).all()
    assert (judged.labels >= 0).sum() >= 1


def test_without_labels_none_can_be_held_back(subject):
    with pytest.raises(DataError, match=r"data\.judge: 'development' holds labels back, but"):
        held_back(dataclasses.replace(subject.train, labels=None))
