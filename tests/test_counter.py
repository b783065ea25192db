"""The counter-based generator: independent of the batch, even, and without visible structure."""

import numpy as np
import pytest

from mimkit.data.counter import uniform

INDEX = np.arange(100_000, dtype=np.int64)
# For n independent pairs a correlation has standard deviation n ** -0.5, here 0.003.
TOLERANCE = 5 * len(INDEX) ** -0.5


def correlation(left, right):
    return float(np.corrcoef(left, right)[0, 1])


def test_number_depends_on_its_own_index_and_column_only():
    whole = uniform(3, 1, INDEX[:50], 8)
    np.testing.assert_array_equal(uniform(3, 1, INDEX[[41, 7]], 8), whole[[41, 7]])
    np.testing.assert_array_equal(uniform(3, 1, INDEX[:50], 2), whole[:, :2])


def test_values_are_pinned():
    index = np.array([0, 1, -1, 10**12], dtype=np.int64)
    assert uniform(0, 0, index, 2).tolist() == [
        [0.1296456182997474, 0.049920065672091285],
        [0.8513026201288322, 0.18670452030252627],
        [0.3579838289973053, 0.9735074048775832],
        [0.3584722245273837, 0.25391359463233965],
    ]
    assert uniform(7, 3, index[3:], 1).tolist() == [[0.1390474726181704]]


def test_numbers_are_even_on_the_unit_interval():
    numbers = uniform(0, 0, INDEX, 4)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(column, bins=64, range=(0, 1))[0] for column in numbers.T])
    expected = len(INDEX) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=1)
    # 63 degrees of freedom: mean 63, standard deviation 11.2.
    assert (np.abs(chi_square - 63) < 5 * 11.2).all()


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_neighbours_are_uncorrelated(seed):
    numbers = uniform(seed, 0, INDEX, 4)
    columns = np.corrcoef(numbers.T) - np.eye(4)
    assert np.abs(columns).max() < TOLERANCE
    assert abs(correlation(numbers[:-1, 0], numbers[1:, 0])) < TOLERANCE
    assert abs(correlation(numbers[:, 0], uniform(seed + 1, 0, INDEX, 1)[:, 0])) < TOLERANCE
    assert abs(correlation(numbers[:, 0], uniform(seed, 1, INDEX, 1)[:, 0])) < TOLERANCE
    # Shifted copies are what a sum, instead of a hash, of the words would give.
    assert np.intersect1d(numbers, uniform(seed + 1, 0, INDEX, 4)).size == 0
    assert np.intersect1d(numbers, uniform(seed, 1, INDEX, 4)).size == 0


def test_no_number_occurs_twice():
    assert np.unique(uniform(0, 0, INDEX, 4)).size == 4 * len(INDEX)


def test_every_bit_of_the_index_changes_the_numbers():
    index = np.array([0, *(1 << np.arange(63, dtype=np.int64))], dtype=np.int64)
    assert np.unique(uniform(0, 0, index, 1)).size == 64


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_any_64_bit_seed_is_accepted(seed):
    assert uniform(seed, 0, INDEX[:3], 2).shape == (3, 2)


def test_nothing_asked_gives_an_empty_array():
    assert uniform(0, 0, INDEX[:0], 3).shape == (0, 3)
    assert uniform(0, 0, INDEX[:3], 0).shape == (3, 0)
