"""Arrival traces: how many requests come in each second, drawn from a seed.

A trace is written in the slots that its requests would fill, so that it can be made for a pool of
any size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]

HOUR_S = 3600
MEAN_STAY_S = 10.0  # of a request in its slot
_STAY_SIGMA = 0.8  # of its logarithm: some answers are much longer than most
MAX_STAY_S = 120


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    arrivals_T: Counts  # T: seconds
    stay_S: NDArray[np.float64]  # the chance that a request stays 1 … S seconds


def make_trace(name: str, *, num_slots: float, seed: int) -> Trace:
    """A trace of `TRACES`, at whose highest point some `num_slots` sequences run at once."""
    rng = np.random.default_rng([seed, list(TRACES).index(name)])
    rates_T = TRACES[name](rng) * num_slots / MEAN_STAY_S
    return Trace(name, rng.poisson(rates_T).astype(np.int64), stay_chances())


def stay_chances() -> NDArray[np.float64]:
    """Log-normal with the mean `MEAN_STAY_S`, cut at `MAX_STAY_S`, in whole seconds."""
    seconds_S = np.arange(1, MAX_STAY_S + 1)
    mu = np.log(MEAN_STAY_S) - _STAY_SIGMA**2 / 2
    density_S = np.exp(-((np.log(seconds_S) - mu) ** 2) / (2 * _STAY_SIGMA**2)) / seconds_S
    chances_S: NDArray[np.float64] = density_S / density_S.sum()
    return chances_S


def _steady(rng: np.random.Generator) -> Rates:
    """An hour of the same."""
    return np.full(HOUR_S, 1.0)


def _daily(rng: np.random.Generator) -> Rates:
    """A day: a night, a morning and an evening, with some minutes livelier than others."""
    hours_T = np.arange(24 * HOUR_S) / HOUR_S
    shape_T = (
        0.08
        + 0.55 * np.exp(-((hours_T - 10.5) ** 2) / 8)
        + 0.85 * np.exp(-((hours_T - 20) ** 2) / 5)
    )
    steps = rng.normal(0, 0.1, size=24 * 12 + 2)  # every five minutes
    wobble_T = np.exp(np.interp(np.arange(24 * HOUR_S), np.arange(len(steps)) * 300, steps))
    return shape_T * wobble_T / 0.95


def _bursts(rng: np.random.Generator) -> Rates:
    """Two hours at a quarter, and every ten minutes or so four times that for one to three
    minutes."""
    rates_T = np.full(2 * HOUR_S, 0.25)
    at_s = int(rng.integers(120, 600))
    while at_s < len(rates_T):
        for_s = int(rng.integers(60, 180))
        rates_T[at_s : at_s + for_s] = 1.0
        at_s += for_s + int(rng.integers(360, 840))
    return rates_T


def _flash_crowd(rng: np.random.Generator) -> Rates:
    """Two hours, quiet; after half an hour twenty times as many within half a minute, half of
    which are gone after ten."""
    seconds_T = np.arange(2 * HOUR_S)
    since_T = np.maximum(0, seconds_T - 1800)
    rise_T = np.minimum(1, since_T / 30)
    crowd_T = np.where(seconds_T >= 1800, rise_T * 0.5 ** (np.maximum(0, since_T - 30) / 600), 0)
    return 0.05 + 0.95 * crowd_T


TRACES: dict[str, Callable[[np.random.Generator], Rates]] = {
    "steady": _steady,
    "daily": _daily,
    "burst": _bursts,
    "flash crowd": _flash_crowd,
}
