"""Counter-based random numbers: pure functions of (seed, position), without any state.

A token's random number depends on its sequence's seed and its own position alone: not on the rest
of the batch, and not on the replica that computes it. Both functions mix with SplitMix64's
finalizer (Steele, Lea and Flood, 2014), a bijection of 64-bit integers.
"""

from collections.abc import Sequence as AbstractSequence

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_POSITION_STRIDE = 0x9E3779B97F4A7C15  # odd, so that every position gives another input
_FORK_STRIDE = 0xD1B54A32D192ED03  # another odd number: forks do not walk along positions
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def derive_seed(seed: int, index: int) -> int:
    """The seed of fork `index` of a request; fork 0 has the request's own.

    `seed` is an unsigned 64-bit integer, and so is the result. Forks of one seed all differ.
    """
    if index == 0:
        return seed
    z = (seed + index * _FORK_STRIDE) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLIERS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLIERS[1]) & _MASK
    return z ^ (z >> 31)


def uniforms(seeds: AbstractSequence[int], positions: AbstractSequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per (seed, position), with 53 random bits.

    Seeds are unsigned 64-bit integers (OverflowError otherwise), positions are not negative.
    """
    starts = _mix(np.array(seeds, dtype=np.uint64))
    counters = np.array(positions, dtype=np.uint64) + np.uint64(1)
    bits = _mix(starts + counters * np.uint64(_POSITION_STRIDE))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return z ^ (z >> np.uint64(31))
