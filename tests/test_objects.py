"""The data set ``objects``: the arrangement of parts is the class, and annotations are true."""

import itertools
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from mimkit.data.drawing import split
from mimkit.data.objects import OBJECTS, annotate

NUM_PLACES = 9


def layouts():
    """The part at each place, (10, 9), 0 for none, as annotations tell it."""
    numbers = split("train", 10)
    _, labels = OBJECTS.draw(numbers, image_size=24)
    kinds = annotate(numbers, image_size=24).kinds
    return kinds[np.argsort(labels)]


def test_pictures_are_pinned():
    images, labels = OBJECTS.draw(split("train", 20), image_size=32)
    assert labels.tolist() == [1, 9, 0, 8, 4, 6, 7, 2, 3, 5, 9, 1, 5, 2, 4, 7, 8, 6, 0, 3]
    assert zlib.crc32(images.tobytes()) == 392883869


def test_a_class_is_an_arrangement_of_six_parts():
    numbers = split("test", 500)
    _, labels = OBJECTS.draw(numbers, image_size=24)
    kinds = annotate(numbers, image_size=24).kinds
    for label in range(10):
        assert len(np.unique(kinds[labels == label], axis=0)) == 1
    assert len(np.unique(layouts(), axis=0)) == 10
    for layout in layouts():
        assert sorted(set(layout[layout > 0])) == sorted(layout[layout > 0])
        assert np.count_nonzero(layout) == 6


def test_no_part_and_no_place_gives_the_class_away():
    kinds = layouts()
    assert all(np.count_nonzero(kinds == part) in (6, 7) for part in range(1, 10))
    assert all(count in (6, 7) for count in np.count_nonzero(kinds, axis=0))
    for part, place in itertools.product(range(1, 10), range(NUM_PLACES)):
        assert np.count_nonzero(kinds[:, place] == part) <= 2
    # Two arrangements never agree in more than two places.
    for left, right in itertools.combinations(kinds, 2):
        assert np.count_nonzero((left == right) & (left > 0)) <= 2


@pytest.mark.parametrize("image_size", [24, 32, 97])
def test_boxes_are_those_of_the_masks(image_size):
    found = annotate(split("train", 60), image_size=image_size)
    for parts, kinds, boxes in zip(found.parts, found.kinds, found.boxes, strict=True):
        assert set(np.unique(parts)) - {0} <= set(np.flatnonzero(kinds) + 1)
        slices = ndimage.find_objects(parts, max_label=NUM_PLACES)
        slices += ndimage.find_objects((parts > 0).astype(int), max_label=1)
        for box, here in zip(boxes.tolist(), slices, strict=True):
            if here is None:
                assert box == [0, 0, 0, 0]
            else:
                down, right = here
                assert box == [right.start, down.start, right.stop, down.stop]


def test_parts_are_seen_in_the_order_of_their_places():
    found = annotate(split("train", 200), image_size=64)
    for parts, kinds in zip(found.parts, found.kinds, strict=True):
        assert len(np.unique(parts)) >= 4  # some may lie outside
        for left, right in itertools.pairwise(range(NUM_PLACES)):
            both = kinds[left] and kinds[right] and right % 3
            if both and (parts == left + 1).sum() > 20 and (parts == right + 1).sum() > 20:
                columns = [np.nonzero(parts == place + 1)[1].mean() for place in (left, right)]
                assert columns[0] < columns[1]


def test_the_mask_of_another_size_is_the_same_scene():
    small = annotate(split("train", 50), image_size=32)
    large = annotate(split("train", 50), image_size=160)
    np.testing.assert_array_equal(small.kinds, large.kinds)
    centres = large.parts[:, 2::5, 2::5]  # pixels whose centre is that of a small one
    np.testing.assert_array_equal(small.parts, centres)


def test_the_mask_is_where_the_object_is_painted():
    images, _ = OBJECTS.draw(split("train", 200), image_size=64)
    inside = annotate(split("train", 200), image_size=64).parts > 0
    edge = ndimage.binary_dilation(inside, np.ones((1, 3, 3))) & ~ndimage.binary_erosion(
        inside, np.ones((1, 3, 3)), border_value=1
    )
    grey = images.mean(axis=1)
    gaps = []
    for picture, painted, near in zip(grey, inside, edge, strict=True):
        gap = picture[painted & ~near].mean() - picture[~painted & ~near].mean()
        wrong = picture[~painted & near].mean() - picture[~painted & ~near].mean()
        gaps.append((abs(gap), abs(wrong)))
    strong, weak = np.array(gaps).T
    assert (strong > 25).mean() > 0.9  # of 255
    assert weak.mean() < strong.mean() / 2


def test_annotations_do_not_depend_on_the_batch():
    numbers = split("test", 300)
    whole = annotate(numbers, image_size=40)
    some = annotate(numbers[[250, 3]], image_size=40)
    np.testing.assert_array_equal(some.parts, whole.parts[[250, 3]])
    np.testing.assert_array_equal(some.boxes, whole.boxes[[250, 3]])
    empty = annotate(numbers[:0], image_size=40)
    assert (empty.parts.shape, empty.boxes.shape) == ((0, 40, 40), (0, 10, 4))


def standardised(name, count):
    images, labels = OBJECTS.draw(split(name, count), image_size=32)
    return (torch.from_numpy(images).float() / 255 - 0.5) / 0.22, torch.from_numpy(labels)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [1e-2, 1e-1, 1])
def test_linear_probe_on_pixels_stays_near_chance(weight_decay):
    images, labels = standardised("train", 5000)
    test_images, test_labels = standardised("test", 2000)
    model = nn.Linear(images[0].numel(), 10)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        penalty = weight_decay * model.weight.square().sum()
        loss = F.cross_entropy(model(images.flatten(1)), labels) + penalty
        loss.backward()
        return loss

    optimizer.step(objective)
    found = model(test_images.flatten(1)).argmax(dim=1)
    assert (found == test_labels).float().mean() < 0.25


def test_every_part_lies_in_its_own_square():
    found = annotate(split("train", 100), image_size=96)
    inside = found.parts > 0
    # Where two squares meet a pixel belongs to the nearer centre, which is seldom the other one.
    assert (found.regions[inside] == found.parts[inside]).mean() > 0.99
    assert (found.regions > 0).mean() == pytest.approx(2 * inside.mean(), rel=0.25)
