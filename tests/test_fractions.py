from itertools import pairwise

import pytest
import torch

from mimkit.errors import RecipeError
from mimkit.evaluate.fractions import development_split, stratified_limit, stratified_subset


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
