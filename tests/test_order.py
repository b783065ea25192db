"""The order of images in shards is a permutation, random, and near to the order on disk."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.data.batches import positions
from mimkit.data.order import WINDOW, in_shards

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def order(ends, seed, epoch, window):
    return in_shards(ends, seed, epoch, np.arange(ends[-1]), window)


@settings(max_examples=200)
@given(LENGTHS, st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 90))
def test_each_pass_is_a_permutation_in_which_no_image_moves_by_a_window(
    lengths, seed, epoch, window
):
    ends = tuple(itertools.accumulate(lengths))
    found = order(ends, seed, epoch, window)
    assert sorted(found.tolist()) == list(range(ends[-1]))
    # Window 1 moves nothing, so it tells the order of the shards.
    read = order(ends, seed, epoch, 1)
    firsts = {0, *ends[:-1]}
    jumps = np.flatnonzero(np.diff(read) != 1) + 1
    assert set(read[jumps].tolist()) <= firsts
    place = np.empty_like(read)
    place[read] = np.arange(len(read))
    assert np.abs(place[found] - np.arange(len(found))).max() < window


@settings(max_examples=100)
@given(LENGTHS, st.integers(1, 90), st.data())
def test_places_asked_for_one_by_one_are_those_asked_for_at_once(lengths, window, data):
    ends = tuple(itertools.accumulate(lengths))
    places = data.draw(st.lists(st.integers(0, ends[-1] - 1), min_size=1))
    whole = order(ends, 3, 5, window)
    assert in_shards(ends, 3, 5, np.array(places), window).tolist() == whole[places].tolist()


def test_it_is_the_sort_of_moved_positions_written_down_at_once():
    """An oracle that holds all images at once, with Python's own generator in the place of ours."""
    ends, window = (7, 19, 23, 60), 16
    drawn = np.random.default_rng(0).random(60)

    def uniform(seed, stream, index, count):
        number = index % 2**40
        return (drawn if stream == 106 else drawn[::-1])[number][:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mimkit.data.order.uniform", uniform)
        found = order(ends, 8, 0, window)
    shards = [range(0, 7), range(7, 19), range(19, 23), range(23, 60)]
    by_draw = sorted(range(4), key=lambda k: drawn[::-1][k])
    read = [image for k in by_draw for image in shards[k]]
    expected = [read[p] for p in sorted(range(60), key=lambda p: p + window * drawn[p])]
    assert found.tolist() == expected


def test_passes_and_seeds_have_orders_of_their_own():
    ends = (100, 200, 300, 400)
    found = {tuple(order(ends, seed, epoch, 64)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(found) == 6


def test_with_a_window_of_the_whole_any_image_may_come_first():
    ends = (2, 3, 5)
    first = [order(ends, seed, 0, 64)[0] for seed in range(600)]
    assert np.bincount(first, minlength=5).min() > 60


def test_a_batch_among_a_billion_images_lies_in_two_shards():
    ends = (*range(1_000, 10**9 + 1, 1_000_000), 10**9)
    index, epoch = positions(10**9, 256, 0, 10**6, ends)
    assert len(set(index.tolist())) == 256
    assert set(epoch.tolist()) == {0}
    shards = set(np.searchsorted(ends, index, side="right").tolist())
    assert len(shards) <= 2
    assert WINDOW < 10**6


def test_steps_go_through_shards_in_passes_without_a_gap():
    ends = (4, 9, 10)
    steps = [positions(10, 4, 0, step, ends) for step in range(15)]
    index = np.concatenate([each[0] for each in steps])
    epoch = np.concatenate([each[1] for each in steps])
    assert (epoch == np.arange(60) // 10).all()
    assert all(sorted(index[k : k + 10]) == list(range(10)) for k in range(0, 60, 10))
    assert index[:10].tolist() == order(ends, 0, 0, WINDOW).tolist()


def test_the_order_is_the_same_on_every_machine():
    assert order((4, 9, 12), 0, 0, 6).tolist() == [9, 4, 10, 5, 11, 0, 8, 7, 6, 2, 1, 3]
