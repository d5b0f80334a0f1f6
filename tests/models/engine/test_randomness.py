import math
from itertools import product

import numpy as np
import pytest

from models.engine.randomness import derive_seed, uniforms


def test_numbers_are_those_of_splitmix64_so_that_every_version_continues_a_stream_alike() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # seed 0
    assert uniforms([0, 0, 0], [0, 1, 2]).tolist() == [(z >> 11) / 2**53 for z in published]


def test_a_number_depends_on_its_own_seed_and_position_only() -> None:
    pairs = [(7, 0), (2**64 - 1, 5), (7, 1), (0, 100_000)]
    together = uniforms([seed for seed, _ in pairs], [position for _, position in pairs])
    assert together.tolist() == [uniforms([s], [p])[0] for s, p in pairs]


def test_numbers_lie_in_the_half_open_unit_interval_and_fill_it_evenly() -> None:
    seeds, positions = zip(*product(range(200), range(200)), strict=True)
    numbers = uniforms(seeds, positions)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=64, range=(0.0, 1.0))
    expected = len(numbers) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63 + 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize("axis", ["positions", "seeds", "forks"])
def test_neighbours_are_not_correlated(axis: str) -> None:
    count = 20_000
    steps = list(range(count))
    numbers = {
        "positions": lambda: uniforms([3] * count, steps),
        "seeds": lambda: uniforms(steps, [3] * count),
        "forks": lambda: uniforms([derive_seed(3, i) for i in steps], [3] * count),
    }[axis]()
    correlation = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(count)


def test_a_seed_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        uniforms([2**64], [0])


def test_the_first_fork_has_the_seed_of_its_request() -> None:
    assert derive_seed(42, 0) == 42


def test_forks_have_different_seeds_of_64_bits() -> None:
    seeds = {derive_seed(2**64 - 1, index) for index in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)
